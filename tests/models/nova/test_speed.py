"""Speed of sampling, compared with the public code, if there is a checkout of it.

`VIDEOAR_PUBLIC_NOVA` names one of github.com/baaivision/NOVA; it needs torch and diffusers.
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from speed import medians, optimized

from videoar_jax.models.nova import convert, generate
from videoar_jax.models.nova.network import network_of
from videoar_jax.models.nova.noise import DDPM

CHECKOUT = os.environ.get("VIDEOAR_PUBLIC_NOVA")
# Half as wide as the public networks, a quarter of the layers; heads of 64 as theirs.
WIDTH, NUM_HEADS, NUM_VIDEO, NUM_IMAGE = 512, 8, 4, 8
HEAD_WIDTH, NUM_HEAD = 640, 3
GRID, NUM_FRAMES, NUM_SETS, NUM_STEPS = (8, 12), 9, 32, 25
TEXT_WIDTH, TEXT_LENGTH, GUIDANCE = 2560, 256, 7.0
NUM_TURNS = 5
CONFIG = {
  "image_dim": 4,
  "image_size": [16 * side for side in GRID],
  "image_stride": 8,
  "text_token_dim": TEXT_WIDTH,
  "text_token_len": TEXT_LENGTH,
  "image_base_size": list(GRID),
  "video_base_size": [NUM_FRAMES, *(side // 2 for side in GRID)],
  "video_mixer_rank": 24,
  "arch": ["test_video", "test_image", "test_head"],
}


@pytest.fixture
def public(monkeypatch):
  """The public network, with random weights, and a function that makes a clip with it."""
  if not CHECKOUT:
    pytest.skip("VIDEOAR_PUBLIC_NOVA names no checkout of the public code")
  torch = pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  monkeypatch.syspath_prepend(CHECKOUT)
  from diffnext.models.transformers import transformer_nova as code
  from diffnext.schedulers.scheduling_ddpm import DDPMScheduler

  vit = {"embed_dim": WIDTH, "num_heads": NUM_HEADS}
  code.VIDEO_ENCODERS.register("test_video", depth=NUM_VIDEO, **vit)(code.video_encoder)
  code.IMAGE_ENCODERS.register("test_image", depth=NUM_IMAGE, **vit)(code.image_encoder)
  head = {"depth": NUM_HEAD, "embed_dim": HEAD_WIDTH}
  code.IMAGE_DECODERS.register("test_head", **head)(code.image_decoder)
  torch.manual_seed(0)
  net = code.NOVATransformer3DModel(**CONFIG).eval()
  net.sample_scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
  unknown = np.cos(np.pi / 2 * np.arange(NUM_SETS + 1) / NUM_SETS)
  sizes = -np.diff(np.round(unknown * GRID[0] * GRID[1]).astype(int))

  def sample(prompt):
    text = net.text_embed.encode_prompts([torch.from_numpy(prompt)])
    null = net.text_embed.weight[None, :TEXT_LENGTH]
    net.mask_embed.pred_ids = None
    inputs = {"prompt": torch.cat([text, null]), "motion_flow": [5.0], "guidance_scale": GUIDANCE}
    inputs |= {"num_preds": sizes, "num_diffusion_steps": NUM_STEPS, "batch_size": 1}
    with torch.no_grad():
      return net(inputs | {"max_latent_length": NUM_FRAMES, "latents": [], "tqdm1": False})["x"]

  yield net, sample
  for name in [name for name in sys.modules if name.split(".")[0] == "diffnext"]:
    del sys.modules[name]


@pytest.mark.slow
def test_a_clip_takes_at_most_half_of_the_public_time(public, capsys):
  """Medians of alternating clips with the same weights: 9 latents, 32 sets, 25 steps, guidance."""
  net, theirs = public
  tensors = {name: x.numpy() for name, x in net.state_dict().items()}
  config = convert.config_of(CONFIG, tensors, NUM_HEADS)
  ours = network_of(config, convert.import_params(tensors, config))
  size = tuple(2 * side for side in GRID)
  guidance = generate.Guidance(GUIDANCE)
  plan = generate.Plan(NUM_FRAMES, size, NUM_SETS, NUM_STEPS, DDPM(), guidance)
  prompt = np.random.default_rng(0).normal(size=(20, TEXT_WIDTH)).astype(np.float32)
  text = jnp.zeros((1, TEXT_LENGTH, TEXT_WIDTH)).at[0, : len(prompt)].set(prompt)

  def sample(net, text, seed):
    draws = generate.key_draws(seed, jnp.arange(1), plan, config)
    return generate.generate(net, plan, text, jnp.zeros_like(text), None, draws)

  with optimized():
    compiled = jax.jit(sample).lower(ours, text, jnp.uint32(0)).compile()

  def check(clip):
    assert np.isfinite(clip).all() and clip.size == 4 * NUM_FRAMES * size[0] * size[1]

  calls = {
    "ours": lambda: check(np.asarray(compiled(ours, text, jnp.uint32(0)))),
    "public": lambda: check(np.asarray(theirs(prompt))),
  }
  found = medians(calls, NUM_TURNS)
  ratio = found["public"] / found["ours"]
  with capsys.disabled():
    print(f"\na clip: ours {found['ours']:.2f} s, public {found['public']:.2f} s, {ratio:.2f}")
  assert ratio >= 2
