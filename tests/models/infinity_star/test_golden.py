"""InfinityStar against reference numbers of the public code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import star_golden as golden
from flax import nnx
from safetensors.numpy import load_file

from videoar_jax.models.infinity_star import convert, generate, loss
from videoar_jax.models.infinity_star.config import InfinityStarSampling
from videoar_jax.models.infinity_star.interactive import conditions_of
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.models.infinity_star.network import rotary_angles
from videoar_jax.models.infinity_star.sequences import released_parts
from videoar_jax.tokenizers.star.quantizer import quantize
from videoar_jax.tokenizers.star.schedules import Pyramid
from videoar_jax.train.state import flatten

pytestmark = pytest.mark.golden
LOGITS, GUIDED, LOSS, GRADIENT, ROPE = 1e-4, 5e-4, 1e-5, 1e-4, 1e-5

parametrize = functools.partial(pytest.mark.parametrize, "name")


class Sample:
  """One of the samples that a reference sequence packs, as a row of ours."""

  def __init__(self, arrays, i: int, first_token: int, first_text: int):
    is_own = arrays["sample_of_scale"] == i
    numbers = np.flatnonzero(is_own)
    latents = arrays[f"raw_features_{i}"].shape
    self.layout = golden.layout(latents, len(numbers))
    np.testing.assert_array_equal(
      arrays["schedule"][is_own], [(s.num_frames, *s.grid) for s in self.layout.scales]
    )
    self.tokens = slice(first_token, first_token + self.layout.num_tokens)
    self.num_text = int(arrays["lens"][i])
    self.features = arrays["text"][first_text : first_text + self.num_text]
    self.inputs = jnp.asarray(arrays["x_BLC"][:, self.tokens])
    self.repetitions = jnp.array([[int(arrays[f"select_{k}"]) for k in numbers]])
    self.labels = [
      jnp.asarray(arrays[f"gt_{k}"]).reshape(1, scale.num_frames, *scale.grid, -1)
      for k, scale in zip(numbers, self.layout.scales, strict=True)
    ]


def samples_of(arrays) -> list[Sample]:
  samples, token, text = [], 0, 0
  for i in range(len(arrays["lens"])):
    if (arrays["sample_of_scale"] == i).any():
      samples.append(Sample(arrays, i, token, text))
      token = samples[-1].tokens.stop
    text += int(arrays["lens"][i])
  return samples


def dropped(arrays, name: str) -> np.ndarray:
  if "cond_drop_rate" in arrays:
    return arrays["cond_drop_draws"] < float(arrays["cond_drop_rate"])
  return arrays["cond_drop_draws"] < (0.5 if "conddrop" in name else 0.0)


@parametrize(golden.cases("a_tf_*.npz"))
def test_teacher_forcing(name):
  arrays = golden.read(name)
  net, samples = golden.load(name), samples_of(arrays)
  is_dropped = dropped(arrays, name)
  graph, params = nnx.split(net)
  weights = [sample.layout.weights(4.0) for sample in samples]
  total = sum(x.sum() for x in weights)

  def run(params):
    net, outputs, value = nnx.merge(graph, params), [], 0.0
    for i, sample in enumerate(samples):
      logits = net(
        golden.padded(sample.features),
        sample.inputs,
        sample.layout,
        repetitions=sample.repetitions,
        is_dropped=jnp.asarray(is_dropped[i : i + 1]),
      )
      losses = loss.token_losses(logits, sample.labels, sample.layout)
      value = value + losses.cross_entropy[0] @ weights[i]
      outputs.append((logits, losses))
    return value / total, outputs

  (value, outputs), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
  for k, title in enumerate(("logits_semantic", "logits_detail")):
    ours = jnp.concatenate([logits[k] for logits, _ in outputs], axis=1)
    assert golden.error(ours.reshape(*ours.shape[:2], -1), arrays[title]) < LOGITS
  losses = jnp.concatenate([losses.cross_entropy for _, losses in outputs], axis=1)[0]
  assert golden.error(losses, arrays["loss_per_token"]) < 1e-4
  assert golden.error(value, arrays["loss"]) < LOSS
  if "acc_per_token" in arrays:
    accuracies = jnp.concatenate([losses.accuracy for _, losses in outputs], axis=1)[0]
    assert golden.error(accuracies, arrays["acc_per_token"]) < 1e-6
  if "loss_rw0" in arrays:
    equal = np.concatenate([sample.layout.weights(0.0) for sample in samples])
    assert golden.error(losses @ equal / equal.sum(), arrays["loss_rw0"]) < LOSS
  check_gradients(name, arrays, flatten(nnx.to_pure_dict(gradients)))


def check_gradients(name, arrays, ours):
  found = {}
  path = golden.FOLDER / name.replace(".npz", "_grads.safetensors")
  if path.exists():
    found = load_file(path)
  for key in arrays:
    if key.startswith("grad_text_proj_"):
      found[f"text_proj.{key.removeprefix('grad_text_proj_')}"] = arrays[key]
  if "grad_cfg_uncond_first16" in arrays:
    found["cfg_uncond"] = arrays["grad_cfg_uncond_first16"]
  if not found:
    return
  whole = {key: np.zeros_like(value) for key, value in golden.tensors_of(name).items()}
  wanted = flatten(convert.import_params(whole | found, golden.config_of(name)))
  marked = {key: np.full(value.shape, float(key in found)) for key, value in whole.items()}
  is_given = flatten(
    convert.import_params(
      marked | {k: np.ones(v.shape) for k, v in found.items()}, golden.config_of(name)
    )
  )
  for key, value in wanted.items():
    if is_given[key].all():
      bound = GRADIENT * max(np.abs(value).max(), 1e-30) if value.any() else 1e-12
      assert golden.error(ours[key], value) <= bound, key


@parametrize(golden.cases("a_tf_*.npz"))
def test_sequence(name):
  arrays = golden.read(name)
  if "mask_packed" in arrays:
    length = len(arrays["mask_packed"])
    mask = np.unpackbits(arrays["mask_packed"], axis=1)[:, :length].astype(bool)
  text = samples_of(arrays)[-1].tokens.stop
  for sample in samples_of(arrays):
    layout, num = sample.layout, sample.num_text
    chosen = np.asarray(sample.repetitions)[0][layout.scale_of_token]
    positions = layout.positions.copy()
    positions[: layout.num_tokens, 0] += chosen
    places = np.r_[sample.tokens, text : text + num]
    own = np.arange(layout.length)[: layout.num_tokens + num]
    angles = np.asarray(rotary_angles(positions[own], golden.config_of(name).head_dim))
    theirs = arrays["rope_cos_sin"][:, places]
    assert golden.error(np.stack([np.cos(angles), np.sin(angles)]), theirs) < ROPE
    if "mask_packed" in arrays:
      np.testing.assert_array_equal(
        mask[np.ix_(places, places)], layout.rule.visible()[own][:, own]
      )
    text += num


@parametrize(golden.cases("b_*.npz"))
def test_sampling(name):
  arrays = golden.read(name)
  net, reps = golden.load(name), arrays["reps"]
  layout = golden.layout(arrays["summed_codes"].shape)
  np.testing.assert_array_equal([scale.repetitions for scale in layout.scales], reps)
  sampling = sampling_of(arrays)
  plan = generate.Plan.of(layout, sampling)
  prompts = prompts_in(arrays, net, sampling.guidance != 1)
  given = given_bits(arrays, layout)
  steps = []

  def run(*arguments, **settings):
    done = generate.run_scale(*arguments, **settings)
    parts = [
      jax.tree.map(lambda x, r=r: x[r], part)
      for part in done.steps
      for r in range(len(part.inputs))
    ]
    steps.extend(parts)
    return done

  @jax.jit
  def sample(net):
    latents = generate.generate(net, plan, prompts, None, given, run=run)
    return latents, list(steps)

  latents, found = sample(net)
  assert len(found) == reps.sum()
  for k, step in enumerate(found):
    np.testing.assert_array_equal(step.bits, arrays[f"bits_{k}"], err_msg=str(k))
    assert golden.error(step.inputs, arrays[f"input_{k}"]) < 1e-5
    if step.logits is not None:
      raw = arrays[f"rawlogits_{k}"]
      assert golden.error(step.logits.reshape(*raw.shape[:2], -1), raw) < LOGITS, k
      if f"guided_{k}" in arrays:
        guided = arrays[f"guided_{k}"]
        assert golden.error(step.guided.reshape(*guided.shape[:2], -1), guided) < GUIDED, k
  assert golden.error(latents, golden.clips(arrays["summed_codes"])) < 1e-5


def sampling_of(arrays) -> InfinityStarSampling:
  tau = arrays["tau"]
  return InfinityStarSampling(
    guidance_kind="apg" if arrays["use_apg"] else "cfg",
    guidance=float(arrays["cfg"]),
    apg_threshold=float(arrays["apg_norm_threshold"]),
    image_temperature=float(tau[0]),
    video_temperature=float(tau[-1]),
  )


def prompts_in(arrays, net, is_guided: bool) -> generate.Prompts:
  text = golden.padded(arrays["text"])
  prompts = generate.prompts_of(net, text, None, is_guided)
  if "neg_text" not in arrays:
    return prompts
  # The public code pads a shorter negative prompt with zeros that are seen.
  prompts = generate.prompts_of(net, text, golden.padded(arrays["neg_text"]), is_guided)
  return prompts._replace(is_seen=jnp.tile(prompts.is_present[:1], (2, 1, 1)))


def given_bits(arrays, layout):
  num = max(int(arrays["gt_leak"]), 0)
  if not num:
    return ()
  latents = next(arrays[key] for key in arrays if key.startswith("raw_") and "latent" in key)
  schedule = layout.schedule[:num]
  return quantize(golden.clips(latents)[:, : schedule[-1].stop], schedule).bits


@parametrize(golden.cases("e_interact_*.npz"))
def test_interactive_clips(name):
  arrays = golden.read(name)
  net, grids = golden.load(name), [tuple(map(int, row[1:])) for row in arrays["schedule"]]
  first, former = (
    golden.clips(arrays[f"{key}_features"]) for key in ("first_frame", "former_clip")
  )
  num_semantic = int(arrays.get("semantic_scales", 8))
  schedule = tuple(
    dataclasses.replace(
      scale,
      is_detail=s >= num_semantic,
      num_bits=64 if s >= num_semantic else 16,
    )
    for s, scale in enumerate(
      Pyramid(
        grids=tuple(grids),
        image_repetitions=tuple(int(x) for x in arrays["reps"][: len(grids)]),
        clip_repetitions=(1,) * len(grids),
        min_detail_tokens=1,
      ).whole(int(arrays["schedule"][0][0]))
    )
  )
  sampling = sampling_of(arrays)
  plan = generate.Plan.of(Layout(golden.TEXT_LENGTH, schedule), sampling)
  conditions = conditions_of(first, former[:, 1:], plan.layout)
  for condition, kind in zip(conditions, ("semantic", "detail"), strict=True):
    theirs = arrays[f"cond_{kind}_input"]
    theirs = theirs if theirs.ndim == 3 else np.moveaxis(theirs, 1, -1)
    assert golden.error(condition.latents.reshape(1, -1, 64), theirs.reshape(1, -1, 64)) < 1e-5

  @jax.jit
  def sample(net):
    steps = []

    def run(*arguments, **settings):
      done = generate.run_scale(*arguments, **settings)
      steps.extend((step, r) for step in done.steps for r in range(len(step.inputs)))
      return done

    prompts = prompts_in(arrays, net, sampling.guidance != 1)
    context = tuple(generate.read_latents(net, *x, len(prompts.rows)) for x in conditions)
    latents = generate.generate(net, plan, prompts, None, (), context, run=run)
    return latents, [(step.bits[r], step.logits[r]) for step, r in steps]

  latents, found = sample(net)
  for k, (bits, logits) in enumerate(found):
    shape = arrays[f"bits_shape_{k}"]
    packed = np.unpackbits(arrays[f"bits_{k}"])[: np.prod(shape)]
    np.testing.assert_array_equal(np.asarray(bits).reshape(shape), packed.reshape(shape), str(k))
    raw = arrays[f"rawlogits_{k}"]
    ours = logits.reshape(*logits.shape[:2], -1)[:, :: 6 if raw.shape[1] < logits.shape[1] else 1]
    assert golden.error(ours, raw) < LOGITS, k
  returned = jnp.concatenate([former[:, 1:], latents], axis=1)[:, -21:]
  assert golden.error(returned, golden.clips(arrays["returned_latents"])) < 1e-5


@parametrize(golden.cases("c_varlen_*.npz"))
def test_released_parts(name):
  arrays = golden.read(name)
  draws = [key.removeprefix("selected_si_") for key in arrays if key.startswith("selected_si_")]
  assert draws
  for draw in draws:
    kept = tuple(int(s) for s in arrays[f"selected_si_{draw}"])
    num_clips = 1 if "5s" in name else 2
    schedule = many_scales(1 + num_clips)
    part = released_parts(schedule)[int(arrays[f"choice_{draw}"])]
    assert part.kept == kept
    table = Layout(512, schedule, kept).rule.table
    # After the prompt, the reference has padding.
    np.testing.assert_array_equal(arrays[f"table_{draw}"][: len(table), : len(table)], table)
  if "choice_p" in arrays:
    shares = [part.share for part in released_parts(schedule)]
    weights = np.ravel(arrays["choice_p"])
    np.testing.assert_allclose(weights / weights.sum(), shares, atol=1e-6)


def many_scales(num_latents: int):
  """Returns a schedule of 14 scales a pyramid."""
  return Pyramid(
    grids=tuple((1 + s // 2, 1 + (s + 1) // 2) for s in range(14)),
    image_repetitions=(1,) * 14,
    clip_repetitions=(1,) * 14,
    min_detail_tokens=20,
    clip_length=1,
  ).schedule(num_latents)
