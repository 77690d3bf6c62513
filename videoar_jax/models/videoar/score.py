"""Teacher-forced loss and bit accuracy of a generator on given clips."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videoar_jax.models.bits import cross_entropy
from videoar_jax.models.prompts import Text
from videoar_jax.models.videoar.corruption import corrupt
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator


def accuracies(is_right: Bool[Array, "b t q d"], layout: Layout) -> dict[str, Float[Array, "b"]]:
  """Returns each clip's share of correct bits: overall, by scale and by frame.

  The names are `bit_accuracy`, `bit_accuracy/scale_0` and so on, `bit_accuracy/frame_0` and so on.
  """
  share = jnp.mean(is_right, axis=3)
  result = {"bit_accuracy": jnp.mean(share, axis=(1, 2))}
  for s in range(layout.num_scales):
    result[f"bit_accuracy/scale_{s}"] = jnp.mean(share[:, :, layout.cell_slice(s)], axis=(1, 2))
  for frame in range(is_right.shape[1]):
    result[f"bit_accuracy/frame_{frame}"] = jnp.mean(share[:, frame], axis=1)
  return result


def score(
  model: Generator,
  layout: Layout,
  text: Text,
  latents: Float[Array, "b t h w d"],
  *,
  window: int | None = None,
) -> dict[str, Float[Array, "b"]]:
  """Scores given clips, teacher-forced: nothing is corrupted, hidden or sampled.

  Args:
    model: the transformer.
    layout: the sequence, of as many frames as the latents.
    text: tokens, or features, of each prompt.
    latents: of the clips, unquantized.
    window: earlier frames that a frame sees; None for all.
  Returns:
    For each clip `loss`, in nats per bit with all bits weighted equally, and `accuracies`.
  """
  b, t, *_, d = latents.shape
  inputs = corrupt(latents, layout.schedule, prev_frame_input=layout.prev_frame_input)
  logits = model(
    text,
    inputs.features,
    layout,
    quantized=inputs.quantized,
    window=window,
  )
  labels = jnp.concatenate([scale.reshape(b, t, -1, d) for scale in inputs.labels], axis=2)
  loss = jnp.mean(cross_entropy(logits, labels), axis=(1, 2, 3))
  return {"loss": loss} | accuracies((logits > 0) == (labels > 0), layout)
