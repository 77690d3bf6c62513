"""The `loop` section of a stage: how long and how it trains."""

import dataclasses

from videoar_jax.train.optimizer import OptimizerConfig

# Fields of `LoopConfig` that may change when a stage resumes: they do not affect good steps.
FREE_FIELDS = (
  "save_every",
  "max_to_keep",
  "keep_period",
  "save_timeout_s",
  "step_timeout_s",
  "profile_steps",
  "log_every",
  "eval_every",
  "eval_batches",
  "media_every",
  "on_nan",
  "spike",
)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long a stage trains, and how.

  Attributes:
    num_steps: training steps.
    batch_size: clips per step, over all devices.
    optimizer: optimizer of the trained network.
    grad_accum_steps: microbatches per step, whose gradients are accumulated: less memory for the
      same step. Loss terms over a whole batch, such as the entropy of its bits, are over each
      microbatch instead.
    ema_decay: decay of the exponential moving average of the parameters, which later stages and
      sampling use; 0 for no average.
    ema_every: steps between updates of that average.
    save_every: steps between checkpoints.
    max_to_keep: newest checkpoints to keep.
    keep_period: steps between checkpoints that are never deleted, a multiple of `save_every`; 0 for
      none.
    save_timeout_s: seconds that a save may take, and a run after a signal to stop.
    step_timeout_s: seconds after which a step that hangs ends the process, with exit status 134; 0
      for none. A step counts as hanging only after ten times its usual duration, and never in the
      first few steps, which compile. The limit also holds for work between steps, such as sampling.
    profile_steps: (first, last) step to profile; () for none. The signal SIGUSR1 profiles the next
      few steps.
    log_every: steps between lines of the log.
    eval_every: steps between evaluations on held-out clips, in addition to one at the last step; 0
      for none.
    eval_batches: held-out batches per evaluation, each of `batch_size / grad_accum_steps` clips.
    media_every: steps between videos in TensorBoard.
    on_nan: "stop" ends the run at a loss or gradient that is not finite; "skip" leaves out the
      update of that step, and ends the run only after too many in a row.
    spike: factor over its running average above which a loss is handled as `on_nan` says; None for
      no limit.
  """

  num_steps: int
  batch_size: int
  optimizer: OptimizerConfig
  grad_accum_steps: int = 1
  ema_decay: float = 0.0
  ema_every: int = 1
  save_every: int = 100
  max_to_keep: int = 2
  keep_period: int = 0
  save_timeout_s: int = 600
  step_timeout_s: int = 3600
  profile_steps: tuple[int, ...] = ()
  log_every: int = 10
  eval_every: int = 0
  eval_batches: int = 4
  media_every: int = 100
  on_nan: str = "stop"
  spike: float | None = None

  def __post_init__(self):
    counts = ("num_steps", "batch_size", "save_every", "log_every", "media_every", "max_to_keep")
    if self.ema_decay > 0 and self.ema_every > self.num_steps:
      raise ValueError(
        f"ema_every={self.ema_every} is more than num_steps={self.num_steps}: the average would "
        "stay at the initial weights; set it to at most that"
      )
    for name in (*counts, "ema_every", "save_timeout_s", "grad_accum_steps", "eval_batches"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    for name in ("step_timeout_s", "eval_every"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)} must not be negative")
    if self.batch_size % self.grad_accum_steps:
      raise ValueError(
        f"batch_size={self.batch_size} must be a multiple of grad_accum_steps="
        f"{self.grad_accum_steps}"
      )
    if self.keep_period < 0 or self.keep_period % self.save_every:
      raise ValueError(
        f"keep_period={self.keep_period} must be a multiple of save_every={self.save_every}, or 0"
      )
    steps = self.profile_steps
    if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
      raise ValueError(f"profile_steps={steps} must be (first, last), counted from 1, or empty")
    if self.on_nan not in ("stop", "skip"):
      raise ValueError(f"on_nan={self.on_nan!r} must be 'stop' or 'skip'")
    if self.spike is not None and not self.spike > 1:
      raise ValueError(f"spike={self.spike} must be more than 1, or None")
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1)")
