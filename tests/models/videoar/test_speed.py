"""Speed of a training step, compared with the same network in PyTorch, if that is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from speed import medians, optimized

from configs.common import generator_size
from videoar_jax.models.bits import cross_entropy
from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.nn import conv
from videoar_jax.parallel.compiler import compiler_options

LAYOUT = Layout(1, 5, tuple((n, n) for n in (1, 2, 3, 4, 6, 8)))
BATCH, BITS = 4, 48


def llama(torch, config, visible):
  """Returns a LLaMA decoder over the same tokens, with a dense mask."""
  from torch import nn
  from torch.nn import functional

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      m, n, k = config.d_model, config.num_heads, config.head_dim
      self.norms = nn.ModuleList(nn.RMSNorm(m) for _ in range(2))
      self.head_norms = nn.ModuleList(nn.RMSNorm(k) for _ in range(2))
      self.qkv = nn.Linear(m, 3 * n * k, bias=False)
      self.out = nn.Linear(n * k, m, bias=False)
      self.gate_up = nn.Linear(m, 2 * config.mlp_dim, bias=False)
      self.down = nn.Linear(config.mlp_dim, m, bias=False)

    def forward(self, x, cos, sin):
      b, l, _ = x.shape
      qkv = self.qkv(self.norms[0](x)).view(b, l, 3, config.num_heads, config.head_dim)
      query, key, value = qkv.transpose(1, 3).unbind(2)
      query, key = self.head_norms[0](query), self.head_norms[1](key)

      def rotate(y):
        one, other = y.chunk(2, -1)
        return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)

      y = functional.scaled_dot_product_attention(
        rotate(query), rotate(key), value, attn_mask=visible
      )
      x = x + self.out(y.transpose(1, 2).reshape(b, l, -1))
      gate, up = self.gate_up(self.norms[1](x)).chunk(2, -1)
      return x + self.down(functional.silu(gate) * up)

  class Llama(nn.Module):
    def __init__(self):
      super().__init__()
      self.text = nn.Embedding(3, config.d_model)
      self.inputs = nn.Linear(BITS, config.d_model, bias=False)
      self.blocks = nn.ModuleList(Block() for _ in range(config.num_layers))
      self.norm, self.head = nn.RMSNorm(config.d_model), nn.Linear(config.d_model, BITS, bias=False)

    def forward(self, text, features, cos, sin):
      x = torch.cat([self.text(text), self.inputs(features)], 1)
      for block in self.blocks:
        x = block(x, cos, sin)
      return self.head(self.norm(x[:, 1:]))

  return Llama()


@pytest.mark.slow
def test_gradient_beside_torch(monkeypatch, capsys):
  """Medians of alternating forward and gradient runs of `small` at 17x128x128 pixels.

  In processes of their own ours takes 0.82 of PyTorch's time, on two cores; see docs/speed.md. Here
  PyTorch's idle threads disturb ours: the bound guards against more than that.
  """
  torch = pytest.importorskip("torch")
  monkeypatch.setattr(conv, "REWRITE", True)
  sizes = generator_size("small").to_dict()
  config = GeneratorConfig(
    **sizes, num_bits=BITS, vocabulary_size=3, remat="none", scan_layers=False
  )
  model = jax.jit(lambda key: Generator(nnx.Rngs(params=key), config, LAYOUT))(jax.random.key(0))
  rng = np.random.default_rng(0)
  features = rng.normal(size=(BATCH, 5, LAYOUT.frame_size, BITS)).astype(np.float32)
  labels = (rng.random(features.shape) < 0.5).astype(np.float32)

  def loss(model, features, labels):
    logits = model(jnp.ones((BATCH, 1), jnp.int32), features, LAYOUT)
    return jnp.mean(cross_entropy(logits, labels))

  with optimized():
    # As training compiles it.
    jitted = jax.jit(jax.value_and_grad(loss), compiler_options=compiler_options("cpu"))
    ours = jitted.lower(model, features, labels).compile()
  visible = torch.from_numpy(LAYOUT.mask().visible())
  other = llama(torch, config, visible)
  angles = torch.from_numpy(np.array(model.angles(LAYOUT.positions)))
  flat = torch.from_numpy(features).reshape(BATCH, -1, BITS)
  target = torch.from_numpy(labels).reshape(BATCH, -1, BITS)
  text = torch.ones(BATCH, 1, dtype=torch.long)

  def theirs():
    other.zero_grad()
    logits = other(text, flat, angles.cos(), angles.sin())
    torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()

  calls = {
    "ours": lambda: jax.block_until_ready(ours(model, features, labels)),
    "torch": theirs,
  }
  found = medians(calls, 7)
  with capsys.disabled():
    print(f"\nforward and gradient: ours {found['ours']:.3f} s, torch {found['torch']:.3f} s")
  assert found["ours"] <= 1.6 * found["torch"]
