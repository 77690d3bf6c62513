"""Speed of sampling, compared with a decoder of the same size in PyTorch, if that is installed."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videoar_jax.models.families import FAMILIES
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.decode import decode
from videoar_jax.models.infinity.layout import Layout
from videoar_jax.models.infinity.network import Infinity
from videoar_jax.models.request import sample_keys
from videoar_jax.tokenizers.bsq.schedules import PUBLIC

LAYOUT = Layout(PUBLIC[1.0][:7])  # 256x256 pixels, 521 tokens.
PROMPT, BITS, GUIDANCE = 64, 32, 3.0


def llama(torch, config, mlp_dim):
  """Returns a LLaMA decoder of the same width, heads and layers, with a cache."""
  from torch import nn
  from torch.nn import functional

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      m = config.d_model
      self.norms = nn.ModuleList(nn.RMSNorm(m) for _ in range(2))
      self.qkv, self.out = nn.Linear(m, 3 * m, bias=False), nn.Linear(m, m, bias=False)
      self.gate_up = nn.Linear(m, 2 * mlp_dim, bias=False)
      self.down = nn.Linear(mlp_dim, m, bias=False)

    def forward(self, x, cos, sin, seen):
      b, l, _ = x.shape
      qkv = self.qkv(self.norms[0](x)).view(b, l, 3, config.num_heads, -1)
      query, key, value = qkv.transpose(1, 3).unbind(2)

      def rotate(y):
        one, other = y.chunk(2, -1)
        return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)

      query, key = rotate(query), rotate(key)
      if seen is not None:
        key, value = torch.cat([seen[0], key], 2), torch.cat([seen[1], value], 2)
      y = functional.scaled_dot_product_attention(query, key, value)
      x = x + self.out(y.transpose(1, 2).reshape(b, l, -1))
      gate, up = self.gate_up(self.norms[1](x)).chunk(2, -1)
      return x + self.down(functional.silu(gate) * up), (key, value)

  class Llama(nn.Module):
    def __init__(self):
      super().__init__()
      self.inputs = nn.Linear(BITS, config.d_model, bias=False)
      self.blocks = nn.ModuleList(Block() for _ in range(config.num_layers))
      self.norm, self.head = nn.RMSNorm(config.d_model), nn.Linear(config.d_model, 2 * BITS)

    def forward(self, features, cos, sin, seen):
      x, kept = self.inputs(features), []
      for block, cache in zip(self.blocks, seen, strict=True):
        x, new = block(x, cos, sin, cache)
        kept.append(new)
      return self.head(self.norm(x)), kept

  return Llama().eval()


@pytest.mark.slow
def test_sampling_beside_torch(capsys):
  """Medians of alternating images of the 125M network, guided, with a prompt of 64 rows.

  Both have 14 m^2 weights a layer and token. Ours also attends to the prompt, and sums codes; the
  other one draws bits and hands zeros on. The goal is to be as fast; the bound guards against a
  noisy machine.
  """
  torch = pytest.importorskip("torch")
  sizes = FAMILIES["infinity"].sizes["125m"] | {"dtype": "float32"}
  config = InfinityConfig(**sizes, text_dim=2048, text_length=PROMPT)
  model = jax.jit(lambda key: Infinity(nnx.Rngs(params=key), config))(jax.random.key(0))
  num, scales = LAYOUT.num_scales, range(LAYOUT.num_scales)

  def sample(model, text):
    return decode(
      model,
      LAYOUT,
      text,
      sample_keys(0, jnp.arange(1)),
      guidance=jnp.full(num, GUIDANCE),
      temperature=jnp.ones(num),
      top_p=0.97,
    ).quantized

  text = np.random.default_rng(0).normal(size=(1, PROMPT, 2048)).astype(np.float32)
  # The suite compiles without optimizations.
  jax.config.update("jax_disable_most_optimizations", False)
  ours = jax.jit(sample).lower(model, text).compile()
  jax.config.update("jax_disable_most_optimizations", True)
  # Three products with the MLP's hidden width, instead of two products, and those to the prompt.
  other = llama(torch, config, (14 - 4) * config.d_model // 3)
  angles = torch.from_numpy(LAYOUT.angles(config.head_dim))

  @torch.inference_mode()
  def theirs():
    seen = [None] * config.num_layers
    for s in scales:
      tokens = LAYOUT.slice_of(s)
      features = torch.zeros(2, LAYOUT.sizes[s], BITS)
      logits, seen = other(features, angles[tokens].cos(), angles[tokens].sin(), seen)
      guided, without = logits.view(2, -1, BITS, 2)
      guided = GUIDANCE * guided + (1 - GUIDANCE) * without
      torch.bernoulli(torch.softmax(guided, -1)[..., 1])

  calls = {"ours": lambda: jax.block_until_ready(ours(model, text)), "torch": theirs}
  times = {name: [] for name in calls}
  for i in range(8):
    for name, call in calls.items():
      begin = time.perf_counter()
      call()
      if i:
        times[name].append(time.perf_counter() - begin)
  medians = {name: statistics.median(values) for name, values in times.items()}
  with capsys.disabled():
    print(f"\nan image: ours {medians['ours']:.3f} s, torch {medians['torch']:.3f} s")
  assert medians["ours"] <= 1.2 * medians["torch"]
