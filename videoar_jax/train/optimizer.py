"""AdamW or Muon, with warm-up, cosine decay and clipping. Source: VIDEOAR section 3.7."""

import dataclasses

import jax
import optax

from videoar_jax.train.muon import scale_by_muon


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer and its learning-rate schedule: linear warm-up, then cosine decay.

  Attributes:
    kind: "adamw", or "muon": orthogonalized momentum for matrices and convolutions, AdamW for the
      rest. A step of Muon costs more and makes more progress; its learning rate is about ten times
      AdamW's.
    learning_rate: peak learning rate.
    adamw_share: learning rate of the parameters that Muon leaves to AdamW, as a share of Muon's.
    muon_steps: Newton-Schulz iterations of Muon.
    warmup_steps: steps over which the learning rate rises to its peak, by the same amount each: the
      first step has a share of 1 / warmup_steps, the last one all of it.
    final_fraction: learning rate at the last step, as a share of the peak.
    b1: decay of AdamW's average of the gradient.
    b2: decay of AdamW's average of the squared gradient.
    weight_decay: decoupled weight decay, of matrices, embeddings and convolutions but not of norms
      and biases, whatever the optimizer. NOVA's biases decay, too, as in its public code.
    grad_clip_norm: global gradient norm above which gradients are scaled down to it.
  """

  kind: str = "adamw"
  learning_rate: float = 1e-4
  adamw_share: float = 0.1
  muon_steps: int = 5
  warmup_steps: int = 100
  final_fraction: float = 0.0
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.05
  grad_clip_norm: float = 1.0

  def __post_init__(self):
    if self.kind not in ("adamw", "muon"):
      raise ValueError(f"optimizer.kind={self.kind!r} must be 'adamw' or 'muon'")
    for name in ("learning_rate", "grad_clip_norm"):
      if not getattr(self, name) > 0:
        raise ValueError(f"optimizer.{name}={getattr(self, name)} must be positive")
    for name in ("b1", "b2"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"optimizer.{name}={getattr(self, name)} must be in [0, 1)")
    for name in ("weight_decay", "adamw_share", "final_fraction"):
      if not getattr(self, name) >= 0:
        raise ValueError(f"optimizer.{name}={getattr(self, name)} must not be negative")
    if self.muon_steps < 1:
      raise ValueError(f"optimizer.muon_steps={self.muon_steps} must be at least 1")
    if self.warmup_steps < 0:
      raise ValueError(f"optimizer.warmup_steps={self.warmup_steps} must not be negative")


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Returns the learning rate by step; it is never 0 before the end."""
  num_warmup = max(1, min(config.warmup_steps, num_steps // 2))
  return optax.warmup_cosine_decay_schedule(
    init_value=config.learning_rate / num_warmup,
    peak_value=config.learning_rate,
    # The first step is part of the warm-up: the rate rises between steps, one time less.
    warmup_steps=num_warmup - 1,
    decay_steps=num_steps,
    end_value=config.learning_rate * config.final_fraction,
  )


def make_optimizer(
  config: OptimizerConfig,
  num_steps: int,
  axes: dict,
  *,
  is_decayed: dict | None = None,
  is_trained: dict | None = None,
) -> optax.GradientTransformation:
  """Returns the optimizer.

  Args:
    config: settings.
    num_steps: length of the schedule.
    axes: logical axis names of each parameter.
    is_decayed: whether each parameter decays; None for matrices, those with two or more axes.
    is_trained: whether each parameter is trained; None for all. Others have no state.
  """
  if is_decayed is None:
    is_decayed = jax.tree.map(lambda names: len(names) > 1, axes, is_leaf=_is_axes)
  schedule = learning_rate_schedule(config, num_steps)
  if config.kind == "adamw":
    step = optax.adamw(
      schedule,
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=is_decayed,
    )
  else:
    labels = jax.tree.map(
      lambda names: "muon" if _is_of_muon(names) else "adam", axes, is_leaf=_is_axes
    )
    # Named and nested like those of `optax.contrib.muon`, so that checkpoints of both load.
    kernels = optax.chain(
      scale_by_muon(axes, config.muon_steps),
      optax.identity(),
      optax.add_decayed_weights(config.weight_decay, is_decayed),
      optax.scale_by_learning_rate(schedule),
    )
    rest = optax.chain(
      optax.scale_by_adam(b1=config.b1, b2=config.b2, nesterov=True),
      _decay(config.weight_decay, is_decayed),
      optax.scale_by_learning_rate(lambda count: config.adamw_share * schedule(count)),
    )
    step = optax.partition({"muon": kernels, "adam": rest}, labels)
  step = optax.chain(optax.clip_by_global_norm(config.grad_clip_norm), step)
  if is_trained is None:
    return step
  labels = jax.tree.map(lambda is_own: "trained" if is_own else "frozen", is_trained)
  return optax.partition({"trained": step, "frozen": optax.set_to_zero()}, labels)


def _decay(weight_decay: float, is_decayed: dict) -> optax.GradientTransformation:
  """Returns the decay of some parameters of a partition.

  Optax's own has another state with a mask than without: checkpoints that were made without one
  would not load.
  """

  def is_masked(x) -> bool:
    return isinstance(x, optax.MaskedNode)

  def decay(update, param, is_decayed: bool):
    return update if is_masked(update) or not is_decayed else update + weight_decay * param

  return optax.stateless(
    lambda updates, params: jax.tree.map(decay, updates, params, is_decayed, is_leaf=is_masked)
  )


def _is_of_muon(names: tuple) -> bool:
  """Returns whether Muon trains a parameter: matrices and convolutions, but no embeddings."""
  return len(names) > 1 and "vocabulary" not in names


def _is_axes(x) -> bool:
  return isinstance(x, tuple)
