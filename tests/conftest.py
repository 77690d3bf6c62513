"""Shared fixtures: golden vectors, real clips, tiny models."""

# ruff: noqa: E402 (variables and the import hook come before what reads them)

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two host devices for the sharding tests; the others use the first one.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
).strip()

import jaxtyping

# Annotations of shapes and types are checked at every call of the package's functions.
jaxtyping.install_import_hook("videoar_jax", "type_checks.check")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import command, run

from videoar_jax.interop import weights
from videoar_jax.nn import conv

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# Tiny programs take far longer to compile than to run. The tests of the command line, which are
# processes of their own, have convolutions as users' runs on CPU have them.
conv.REWRITE = False
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def golden_root() -> pathlib.Path:
  """Returns the folder of golden files, with a folder for each public model."""
  return pathlib.Path(os.environ.get("VIDEOAR_GOLDEN", SHARED / "golden"))


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory):
  """Keeps what is kept from one start to the next out of the user's own cache."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("VIDEOAR_JAX_DATA", str(tmp_path_factory.mktemp("data_cache")))
    yield


@pytest.fixture(scope="session")
def golden_folder():
  """Returns the folder of golden files of Infinity's tokenizer."""
  folder = golden_root() / "infinity"
  if not folder.is_dir():
    pytest.skip(f"golden vectors are not in {folder}")
  return folder


@pytest.fixture(scope="session")
def golden(golden_folder):
  """Returns a function that loads a golden file by name."""
  return lambda name: np.load(golden_folder / name)


@pytest.fixture(scope="session")
def media():
  """Returns the folder of real clips."""
  folder = SHARED / "media"
  if not folder.is_dir():
    pytest.skip(f"real clips are not in {folder}")
  return folder


@pytest.fixture(scope="session")
def weights_of():
  """Returns a function that loads converted weights by their name in `convert`."""

  def load(name, shapes):
    path = weights.default_path(name)
    if not path.is_file():
      pytest.skip(f"no {path}; `python -m videoar_jax.convert {name} --help` says how to make it")
    return weights.load(path, shapes)

  return load


@pytest.fixture(scope="session")
def random_autoencoder():
  """Returns a function that makes an autoencoder with random weights, also for earlier frames."""
  from videoar_jax.tokenizers.autoencoder import abstract_params, autoencoder_of

  def make(config):
    generator = np.random.default_rng(0)

    def draw(leaf):
      fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10
      return jnp.asarray(generator.normal(0, fan_in**-0.5, leaf.shape), jnp.float32)

    return autoencoder_of(config, jax.tree.map(draw, abstract_params(config)))

  return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """A workdir in which all stages were trained without interruption."""
  workdir = tmp_path_factory.mktemp("trained") / "run"
  done = run(command(workdir))
  assert done.returncode == 0, done.stderr[-3000:]
  return workdir


@pytest.fixture
def without_type_checks(monkeypatch):
  """For tests that expect the package's own errors for wrong types, and for those of speed."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# A file is one worker's work. Those that take longest begin first, so that none is left to the end.
_LONGEST = ("test_end_to_end.py", "test_adversary.py", "test_network.py", "test_mixed_stages.py")


def pytest_collection_modifyitems(items):
  """Sorts the longest files to the front, and marks the tests that take reference numbers."""
  for item in items:
    if {"golden", "golden_folder"} & set(item.fixturenames):
      item.add_marker("golden")
  order = {name: i for i, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: order.get(item.path.name, len(order)))
