"""The splash kernel through TPU's own compiler, for a topology that is not there."""

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from videoar_jax.nn.attention import attend
from videoar_jax.nn.visibility import Sight, Visibility
from videoar_jax.parallel.sharding import MeshConfig, make_mesh

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1")
mesh = make_mesh(MeshConfig(data=2, tensor=2), topology.devices)
sharding = NamedSharding(mesh, PartitionSpec("data"))
shape = lambda shape, kind: jax.ShapeDtypeStruct(shape, kind, sharding=sharding)
blocks = (1, 16, 64, 256)
rules = (
  Visibility(72, True, 5, blocks),
  Visibility(72, False, 5, blocks, window=2),
  Visibility(72, True, 5, blocks, summary=256, window=2),
)
for rule in rules:
  for has_keep in (False, True):
    def loss(query, key, value, mask, keep):
      sight = Sight(rule, mask, keep if has_keep else None, backend="splash")
      return jnp.sum(attend(query, key, value, sight).astype(jnp.float32))
    query, key = (shape((2, rule.length, n, 128), jnp.bfloat16) for n in (4, 2))
    arguments = query, key, key, shape((2, 72), bool), shape((2, 5, 5), bool)
    with jax.set_mesh(mesh):
      compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**27
    print("compiled", rule, has_keep)
"""


@pytest.mark.slow
def test_kernel_compiles_for_tpu():
  """All forms of the rule, with gradients, samples and heads split over a mesh."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed; pip install 'videoar_jax[tpu-plan]'")
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.count("compiled") == 6
