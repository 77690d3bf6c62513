"""NOVA against reference numbers of the public code."""

import functools
import json

import jax
import jax.numpy as jnp
import nova_golden as golden
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from videoar_jax.models.nova import convert, generate, orders
from videoar_jax.models.nova.loss import Draws, losses
from videoar_jax.models.nova.noise import DDPM, Flow
from videoar_jax.models.nova.tokens import patchify, unpatchify
from videoar_jax.nn.cache import join
from videoar_jax.train.state import flatten

pytestmark = pytest.mark.golden
FORWARD, GRADIENT, FLOW, GUIDED_DDPM = 2e-5, 1e-4, 1e-4, 5e-4

parametrize = functools.partial(pytest.mark.parametrize, "name")


@parametrize(golden.cases("*_forward.npz"))
def test_temporal_encoder(name):
  arrays = np.load(golden.FOLDER / name)
  net = golden.load(golden.model_of(name))
  config, clips = net.config, golden.clips(arrays["x"])
  b, t, h, w, _ = clips.shape
  grid = h // config.video_patch_size, w // config.video_patch_size
  text, flow = jnp.asarray(golden.prompts(arrays, config)), golden.flow(arrays, config)

  def at_once(net):
    prefix = net.temporal.prefix(text, flow, jnp.float32)
    outputs = net.temporal(prefix, clips)
    return prefix, outputs, net.temporal.conditions(outputs)

  def frame_by_frame(net):
    prefix = net.temporal.prefix(text, flow, jnp.float32)
    outputs, cache, n = [], None, prefix.shape[1]
    for i in range(t):
      x = net.temporal.slots(clips[:, max(i - 1, 0)][:, None], i, t, jnp.float32)[:, 0]
      angles = net.temporal.angles(0 if i else n, i, 1, grid)
      x = x if i else jnp.concatenate([prefix, x], axis=1)
      output, new = net.temporal.step(x, angles, cache, num_prefix=0 if i else n)
      outputs.append(output)
      cache = new if cache is None else join(cache, new)
    return net.temporal.conditions(jnp.stack(outputs, axis=1))

  prefix, outputs, conditions = jax.jit(at_once)(net)
  assert golden.error(prefix, arrays["cond"]) < FORWARD
  outputs = outputs.reshape(b, -1, config.d_model)
  assert golden.error(outputs, arrays["video_encoder_out"]) < FORWARD
  assert golden.error(conditions, arrays["indicator"]) < FORWARD
  assert golden.error(jax.jit(frame_by_frame)(net), arrays["indicator"]) < FORWARD


@parametrize(golden.cases("*_forward.npz"))
def test_spatial_transformer_and_head(name):
  arrays = np.load(golden.FOLDER / name)
  net = golden.load(golden.model_of(name))
  clips, size = golden.clips(arrays["x"]), net.config.patch_size
  grid = clips.shape[2] // size, clips.shape[3] // size
  condition, known = jnp.asarray(arrays["indicator"])[:, -1], arrays["prev_ids"][..., 0]
  rest = [np.setdiff1d(np.arange(grid[0] * grid[1]), row) for row in known]
  order = jnp.asarray(np.concatenate([known, np.stack(rest)], axis=1))

  @functools.partial(jax.jit, static_argnums=2)
  def spatial(net, num_known, capacity):
    return net.spatial(
      condition, patchify(clips[:, -1], size), order[:, :capacity], num_known, grid
    )

  num = known.shape[1]
  # Filler must not change anything.
  for capacity in (num, order.shape[1]):
    assert golden.error(spatial(net, num, capacity), arrays["image_encoder_out"]) < FORWARD
  nothing_known = spatial(net, 0, order.shape[1])
  assert golden.error(nothing_known, arrays["image_encoder_out_allmask"]) < FORWARD

  noisy, z = patchify(golden.latents(arrays["x_t"]), size), jnp.asarray(arrays["image_encoder_out"])
  head = jax.jit(lambda net, time: net.head.predict(noisy, time, net.head.condition(z)))
  assert golden.error(head(net, jnp.asarray(arrays["t_token"])), arrays["mlp_out_train"]) < FORWARD
  by_clip = head(net, jnp.asarray(arrays["t_sample"])[:, None])
  assert golden.error(by_clip, arrays["mlp_out_sample"]) < FORWARD
  cells = unpatchify(jnp.asarray(arrays["mlp_out_train"]), grid, size)
  assert golden.error(cells, golden.latents(arrays["unpatchify_check"])) == 0


@parametrize(golden.cases("train_*.npz"))
def test_losses_and_gradients(name):
  arrays = np.load(golden.FOLDER / name)
  model = golden.model_of(name)
  net = golden.load(model)
  config, clips = net.config, golden.clips(arrays["x"])
  text = golden.prompts(arrays, config, arrays["text_dropout_rand"] < arrays["p_drop"])
  flow = golden.flow(arrays, config)
  is_flow, level = "flow_index" in arrays, jnp.asarray(arrays["timestep_draw"])
  process = Flow() if is_flow else DDPM()
  level = process.level_of(level) if is_flow else level
  order = orders.order_of(jnp.asarray(arrays["u_dist"][..., 0]))
  num_known = arrays["prev_ids"].shape[1]
  np.testing.assert_array_equal(order[:, :num_known], arrays["prev_ids"][..., 0])
  draws = Draws(order, jnp.asarray(num_known), jnp.asarray(arrays["noise"]), level)
  graph, params = nnx.split(net)

  def total(params):
    net = nnx.merge(graph, params)
    prefix = net.temporal.prefix(jnp.asarray(text), flow, jnp.float32)
    parts = losses(net, clips, prefix, draws, process)
    return sum(parts), parts

  gradients, parts = jax.jit(jax.grad(total, has_aux=True))(params)
  assert golden.error(sum(parts), arrays["total_loss"]) < FORWARD
  names = ("loss_t2i", "loss_i2i") if "loss_t2i" in arrays else ()
  for part, title in zip(parts, names, strict=False):
    assert golden.error(part, arrays[title]) < FORWARD
  path = golden.FOLDER / name.replace(".npz", ".grads.safetensors")
  if path.exists():
    _, tensors = golden.config_of(model)
    found = {key: np.zeros_like(value) for key, value in tensors.items()} | load_file(path)
    wanted = flatten(convert.import_params(found, config))
    ours = flatten(nnx.to_pure_dict(gradients))
    for key, value in wanted.items():
      if not key.endswith("key.bias"):  # It changes nothing.
        assert golden.error(ours[key], value) < GRADIENT, key


@parametrize(golden.cases("gen_*.npz"))
def test_generation(name):
  arrays = np.load(golden.FOLDER / name)
  net = golden.load(str(arrays["model"]))
  config = net.config
  given, process = (json.loads(str(arrays[key])) for key in ("guidance", "scheduler_kwargs"))
  is_flow = str(arrays["scheduler"]) == "flow"
  if is_flow:
    noise = Flow(process.get("shift", 1.0), given.get("flow_shift"))
  else:
    noise = DDPM(process.get("timestep_spacing", "leading"), process.get("steps_offset", 0))
  guidance = generate.Guidance(
    given.get("guidance_scale", 5.0),
    given.get("min_guidance_scale"),
    given.get("guidance_trunc", 0.0),
    given.get("guidance_renorm", 1.0),
    given.get("image_guidance_scale", 0.0),
  )
  *_, num_frames, h, w = arrays["latents_out"].shape
  plan = generate.Plan(
    num_frames,
    (h, w),
    int(arrays["num_inference_steps"]),
    int(arrays["num_diffusion_steps"]),
    noise,
    guidance,
  )
  steps = noise.steps(plan.num_diffusion_steps)
  np.testing.assert_allclose(steps.times, arrays["timesteps"], rtol=1e-6)
  sizes = orders.set_sizes(plan.num_ar_steps, arrays["order_ids"].shape[1])
  np.testing.assert_array_equal(sizes, arrays["num_preds"][arrays["num_preds"] > 0])
  draws = golden.Replay.of(arrays, config.patch_size, len(sizes), int((steps.noise > 0).sum()))
  text = jnp.asarray(golden.prompts(arrays, config))
  flow = jnp.full(len(text), float(given.get("motion_flow", 5))) if config.has_motion else None
  given = None
  if "first_latent" in arrays:
    given = golden.latents(arrays["first_latent"]).reshape(-1, 1, h, w, config.num_channels)
    given = jnp.broadcast_to(given, (len(text), *given.shape[1:]))
  ours = jax.jit(
    lambda net: generate.generate(net, plan, text, jnp.zeros_like(text[:1]), flow, draws, given)
  )(net)
  bound = FLOW if is_flow else GUIDED_DDPM
  assert golden.error(jnp.moveaxis(ours, -1, 1), arrays["latents_out"]) < bound


@parametrize(golden.cases("ar_schedule.npz"))
def test_sizes_of_sets(name):
  arrays = np.load(golden.FOLDER / name)
  for key in arrays:
    steps, tokens = (int(part[1:]) for part in key.split("_")[-2:])
    np.testing.assert_array_equal(orders.set_sizes(steps, tokens), arrays[key][arrays[key] > 0])


@parametrize(golden.cases("schedulers.npz"))
def test_noise_processes(name):
  arrays = np.load(golden.FOLDER / name)
  for spacing, offset in (("leading", 1), ("trailing", 0), ("linspace", 0)):
    np.testing.assert_array_equal(DDPM(spacing, offset).levels(25), arrays[f"ddpm_ts25_{spacing}"])
  assert golden.error(DDPM().signal, arrays["ddpm_alphas_cumprod"]) < 1e-6
  steps = DDPM().steps(10)
  for i, (time, keep, add, noise) in enumerate(zip(*steps, strict=True)):
    assert time == arrays["ddpm10_ts"][i]
    x = keep * arrays["ddpm_x"] + add * arrays["ddpm_eps"]
    x = x + noise * arrays[f"ddpm_step{i}_noise"]
    assert golden.error(x, arrays[f"ddpm_step{i}"]) < 1e-5
  tokens, noise = (jnp.asarray(arrays[key].reshape(2, 4, 9)) for key in ("ddpm_x", "ddpm_eps"))
  noisy = DDPM().add(tokens, noise, jnp.asarray(arrays["ddpm_addnoise_t"])).tokens
  assert golden.error(noisy, arrays["ddpm_addnoise"].reshape(2, 4, 9)) < 1e-6
  for shift in (1.0, 3.0):
    flow, end = Flow(shift), f"s{shift}"
    sigmas = flow.add(jnp.zeros((1000, 1)), jnp.ones((1000, 1)), jnp.arange(1000))
    assert golden.error(sigmas.tokens[:, 0], arrays[f"flow_train_sigmas_{end}"]) < 1e-6
    assert golden.error(sigmas.time, arrays[f"flow_train_timesteps_{end}"]) < 1e-6
    steps = flow.steps(10)
    assert golden.error(steps.times, arrays[f"flow10_ts_{end}"]) < 1e-6
    assert golden.error(np.diff(arrays[f"flow10_sigmas_{end}"]), steps.add) < 1e-6
