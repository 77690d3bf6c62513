"""The `loop` section of a stage: how long and how it trains."""

import dataclasses

from videoar_jax.train.optimizer import OptimizerConfig

# Fields of `LoopConfig` that may change while a stage goes on: steps that go well stay the same.
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
  """How long and how a stage trains.

  Attributes:
    num_steps: steps in all.
    batch_size: clips a step, over all devices.
    grad_accum_steps: parts in which a batch goes through, one after the other, their gradients
      added up: less memory for the same step. What a loss says of a batch as a whole, as the
      entropy of its bits, it says of each part.
    optimizer: see `OptimizerConfig`.
    ema_decay: of the averaged parameters; 0 keeps none.
    save_every: steps between checkpoints.
    max_to_keep: newest checkpoints that are kept.
    keep_period: steps between checkpoints that are kept for good; 0 for none.
    save_timeout_s: seconds that a save may take, and a run that is told to stop.
    step_timeout_s: seconds after which a step that does not end ends the process, with status 134;
      0 for none. Not before ten times the usual, nor in the first few steps, which compile. It
      bounds what comes between steps, too, of which samples compile.
    profile_steps: first and last step to profile; empty for none. SIGUSR1 profiles the next few.
    log_every: steps between lines of the log.
    eval_every: steps between evaluations on held-out clips, of which the last step has one too; 0
      for none.
    eval_batches: held-out batches, of `batch_size / grad_accum_steps` clips.
    media_every: steps between videos in TensorBoard.
    on_nan: "stop" ends the run where a loss or gradient is not finite; "skip" leaves all but the
      number of the step as it was, and goes on, but not past too many in a row.
    spike: how many times its running average a loss may be; more is handled as `on_nan` says.
      None for any.
  """

  num_steps: int
  batch_size: int
  optimizer: OptimizerConfig
  grad_accum_steps: int = 1
  ema_decay: float = 0.0
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
    for name in (*counts, "save_timeout_s", "grad_accum_steps", "eval_batches"):
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
