"""The splash kernel, compiled ahead of time for a TPU topology."""

import importlib.util
import os
import subprocess
import sys

import pytest

# Called with the mesh as `axis:size,axis:size`. Its 6 forms of the rule have 3437 or 5485 tokens:
# scores would be most of what is held.
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from flax import nnx
from videoar_jax.nn.splash import filled_length
from videoar_jax.nn.mask import AttentionMask, BlockCausalMask
from videoar_jax.nn.transformer import Attention
from videoar_jax.parallel.mesh import make_mesh, parse_mesh
from videoar_jax.parallel.rules import sharding_of
from videoar_jax.train.state import Template, with_shardings
from videoar_jax.models.videoar.config import GeneratorConfig

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1")
mesh = make_mesh(parse_mesh(sys.argv[1]), topology.devices)
config = GeneratorConfig(
  num_layers=1, d_model=256, num_heads=8, num_kv_heads=2, head_dim=128, mlp_dim=256, num_bits=1,
  vocabulary_size=1,
)
template = Template.of(lambda key: Attention(nnx.Rngs(params=key), config))
params = with_shardings(template.shapes, template.shardings(mesh))
blocks = (1, 32, 128, 512)
rules = (
  BlockCausalMask(72, True, 5, blocks),
  BlockCausalMask(72, False, 5, blocks, window=2),
  BlockCausalMask(72, True, 5, blocks, summary=512, window=2),
)

def shape(shape, kind, *axes):
  return jax.ShapeDtypeStruct(shape, kind, sharding=sharding_of(("batch", *axes), shape, mesh))

for rule in rules:
  for has_keep in (False, True):
    def loss(params, x, mask, keep):
      attention_mask = AttentionMask(rule, mask, keep if has_keep else None, backend="splash")
      y, _ = template.module(params)(x, None, attention_mask, None)
      return jnp.sum(y.astype(jnp.float32))
    length = filled_length(rule.length, mesh.shape["sequence"])  # As the generator has it.
    x = shape((2, length, config.d_model), jnp.bfloat16, "sequence", None)
    mask, keep = shape((2, 72), bool, None), shape((2, 5, 5), bool, None, None)
    with jax.set_mesh(mesh):
      compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, x, mask, keep).compile()
    print("compiled", length, compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data:2,tensor:2", "data:2,sequence:2", "sequence:2,tensor:2"])
def test_attention_compiles_for_tpu(mesh):
  """All forms of the mask, with gradients, on a mesh of 4 that shards samples, heads or tokens.

  On the last mesh each device has two query heads, and both key heads are repeated. Temporary
  memory is less than the attention scores alone would take.
  """
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed; pip install 'videoar_jax[plan]'")
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }
  command = [sys.executable, "-c", PROGRAM, mesh]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  rows = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("compiled")]
  assert len(rows) == 6
  # Two samples' eight heads over four devices, of two bytes a score at the least.
  for length, temporaries in (map(int, row) for row in rows):
    assert temporaries < 4 * length**2 * 2
