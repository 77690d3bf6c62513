"""Imports go one way, from commands down to modules that only handle arrays."""

import pathlib
import subprocess
import sys

import pytest
from package_imports import IDS, PACKAGE, ROOT, SOURCES, imported_modules

# What each part may import of this package, besides itself. What is not listed is an entry point.
ALLOWED = {
  "parallel": set(),
  "interop": set(),
  "text": {"interop", "parallel", "nn", "train"},
  "data": set(),
  "nn": {"parallel"},
  "runtime": {"parallel"},
  "train": {"parallel", "nn", "runtime"},
  "tokenizers": {"parallel", "nn", "train", "interop"},
  "models": {"parallel", "nn", "train", "tokenizers", "text", "interop"},
  "experiment": {
    *("parallel", "nn", "runtime", "train", "data", "text", "interop", "tokenizers", "models"),
  },
  "evals": {
    *("parallel", "nn", "train", "data", "interop", "tokenizers", "models", "experiment"),
  },
  "converters": {"nn", "train", "text", "interop", "tokenizers", "models", "experiment"},
  "page": {
    *("parallel", "nn", "train", "data", "text", "interop", "models", "experiment", "evals"),
  },
  "planning": {"parallel", "nn", "train", "tokenizers", "models", "experiment"},
}
# Every part may import these modules: they need nothing of the package, and no device.
LEAVES = (
  *("interop.atomic", "interop.caches", "interop.strict_json"),
  *("runtime.huge_pages", "runtime.versions"),
)
# No lower part may need an entry point: `main`, `sample` and what else lies at the top.
EXCEPTIONS = {"": {"experiment"}}  # The package's own `__init__` opens the door to `load`.
# Opens foreign checkpoints, where PyTorch is installed.
MAY_USE_TORCH = {"converters"}
DEVICE_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow"}


def part_of(path: pathlib.Path) -> str:
  """Returns the subpackage of a file; "" for the package's `__init__`."""
  first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
  return "" if first == "__init__" else first


def known_parts() -> set[str]:
  return {part_of(path) for path in PACKAGE.rglob("*.py")} - {""}


def imported_parts(path: pathlib.Path) -> set[str]:
  package = ".".join(path.relative_to(ROOT).parent.parts)
  parts = set()
  for name in imported_modules(path, package):
    top, *rest = name.split(".")
    if top == "videoar_jax" and rest and ".".join(rest[:2]) not in LEAVES:
      parts.add(rest[0])
  return parts & known_parts()


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_imports_go_down_only(path):
  part = part_of(path)
  entry_point = set(ALLOWED)  # Entry points may import every part, but no other entry point.
  allowed = EXCEPTIONS.get(part, ALLOWED.get(part, entry_point)) | {part}
  wrong = imported_parts(path) - allowed
  assert not wrong, f"{path.name} in {part or 'the package'} must not import {sorted(wrong)}"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_need_nothing(leaf):
  path = PACKAGE / f"{leaf.replace('.', '/')}.py"
  libraries = {name.split(".")[0] for name in imported_modules(path, "videoar_jax")}
  assert not imported_parts(path) and not libraries & DEVICE_LIBRARIES


@pytest.mark.parametrize(
  "path", sorted((PACKAGE / "data").rglob("*.py")), ids=lambda path: path.name
)
def test_data_needs_no_device_library(path):
  libraries = {name.split(".")[0] for name in imported_modules(path, "videoar_jax.data")}
  assert not libraries & DEVICE_LIBRARIES


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_package_never_imports_configs_or_torch(path):
  package = ".".join(path.relative_to(ROOT).parent.parts)
  libraries = {name.split(".")[0] for name in imported_modules(path, package)}
  torch = set() if part_of(path) in MAY_USE_TORCH else {"torch"}
  assert not libraries & ({"configs", "tensorflow"} | torch)


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_nothing_is_imported_that_would_import_tensorflow(path):
  """Only these two modules of clu do not import it."""
  names = imported_modules(path, ".".join(path.relative_to(ROOT).parent.parts))
  used = {".".join(name.split(".")[:2]) for name in names if name.startswith("clu.")}
  assert used <= {"clu.metrics", "clu.parameter_overview"}
  assert "clu" not in names or used


def test_training_needs_no_tensorflow():
  program = (
    "import sys\n"
    "import videoar_jax.train.loop, videoar_jax.train.overview\n"
    "assert 'clu.metrics' in sys.modules and 'clu.parameter_overview' in sys.modules\n"
    "assert not [n for n in sys.modules if n.split('.')[0] in ('tensorflow', 'tf_keras')]\n"
  )
  subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
  "path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.name
)
def test_configs_are_plain(path):
  names = imported_modules(path, "configs")
  # One config may build on another, and on what the package says of sizes and defaults.
  assert {name.split(".")[0] for name in names} <= {"ml_collections", "configs", "videoar_jax"}


def test_checks_see_every_kind_of_import(tmp_path):
  path = tmp_path / "module.py"
  path.write_text(
    "import a.b\nfrom c import d\ndef f():\n  from ..nn import rope\n  from . import x\n"
  )
  names = imported_modules(path, "videoar_jax.train")
  assert {"a.b", "c.d", "videoar_jax.nn.rope", "videoar_jax.train.x"} <= names


def test_data_is_opened_without_models():
  """JAX itself is imported by Grain, where it is installed."""
  code = (
    "import sys, videoar_jax; a = {*sys.modules}; videoar_jax.open_data; b = {*sys.modules};"
    "print(sorted({'jax', 'grain'} & a), sorted({'flax', 'optax', 'videoar_jax.models'} & b))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout == "[] []\n"
