"""AdamW with warm-up, cosine decay and clipping. Source: VIDEOAR section 3.7."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How parameters move.

  Attributes:
    learning_rate: peak.
    warmup_steps: linear rise from 0.
    final_fraction: learning rate at the last step, as a share of the peak.
    b1, b2: AdamW's averages.
    weight_decay: on matrices, not on norms and biases.
    clip_norm: bound on the global gradient norm.
  """

  learning_rate: float = 1e-4
  warmup_steps: int = 100
  final_fraction: float = 0.0
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.05
  clip_norm: float = 1.0

  def __post_init__(self):
    if self.learning_rate <= 0:
      raise ValueError(f"optimizer.learning_rate={self.learning_rate} must be positive")
    if self.warmup_steps < 0:
      raise ValueError(f"optimizer.warmup_steps={self.warmup_steps} must not be negative")


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Returns the learning rate by step."""
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=min(config.warmup_steps, num_steps // 2),
    decay_steps=num_steps,
    end_value=config.learning_rate * config.final_fraction,
  )


def make_optimizer(
  config: OptimizerConfig, num_steps: int, axes: dict
) -> optax.GradientTransformation:
  """Returns the optimizer.

  Args:
    config: settings.
    num_steps: length of the schedule.
    axes: logical axis names of each parameter; those with two or more are matrices and decay.
  """
  is_matrix = jax.tree.map(lambda names: len(names) > 1, axes, is_leaf=_is_axes)
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      learning_rate_schedule(config, num_steps),
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=is_matrix,
    ),
  )


def _is_axes(x) -> bool:
  return isinstance(x, tuple)
