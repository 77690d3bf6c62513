"""What fails when a library removes a private name, and where the package uses such names."""

import ast
import sys
import types

import jax.numpy as jnp
import pytest
from package_imports import IDS, PACKAGE, ROOT, SOURCES, imported_modules

from videoar_jax.nn import splash
from videoar_jax.nn.attention import attend
from videoar_jax.nn.mask import AttentionMask, BlockCausalMask
from videoar_jax.parallel import barrier, compat
from videoar_jax.runtime.versions import installed

TESTED = "install a tested version: jax 0.10.2 to 0.12.x"
KERNEL = "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel"
MASK = "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask"


def attend_to_three(backend):
  rule = BlockCausalMask(2, False, 1, (1,))
  x = jnp.zeros((1, rule.length, 1, 128))
  return attend(x, x, x, AttentionMask(rule, jnp.ones((1, 2), bool), None, backend=backend))


@pytest.fixture
def without(monkeypatch):
  """Returns a function that removes a module, or a name in one."""
  compat.splash_attention()  # Is imported, so that one of its modules alone can be gone.
  splash._mask_class.cache_clear()

  def take(module, name=None):
    if name is None:
      monkeypatch.setitem(sys.modules, module, None)
    else:
      monkeypatch.delattr(f"{module}.{name}")

  yield take
  splash._mask_class.cache_clear()


@pytest.mark.parametrize(
  ("module", "name"), [(KERNEL, None), (MASK, None), (MASK, "_ComputableMask")]
)
def test_without_splash_attention_only_its_backend_fails(without, module, name):
  without(module, name)
  what = f"{module}.{name}" if name else module
  with pytest.raises(ImportError) as error:
    attend_to_three("splash")
  expected = f"jax {installed('jax')} has no {what}, which attention='splash' needs; {TESTED}"
  assert str(error.value) == expected
  assert attend_to_three("dense").shape == attend_to_three("blocked").shape == (1, 3, 1, 128)


@pytest.mark.parametrize("name", [None, "global_state"])
def test_without_the_state_of_processes_none_meet(without, name):
  module = "jax._src.distributed"
  without(module, name)
  what = f"{module}.{name}" if name else module
  with pytest.raises(ImportError) as error:
    barrier.Barrier("saves", is_last=lambda key: True)
  expected = f"jax {installed('jax')} has no {what}, which a run of several processes needs"
  assert str(error.value) == f"{expected}; {TESTED}"


@pytest.mark.parametrize("name", ["client", "process_id", "num_processes"])
def test_what_the_state_lacks_is_named(monkeypatch, name):
  known = {"client": None, "process_id": 0, "num_processes": 1}
  del known[name]
  monkeypatch.setattr("jax._src.distributed.global_state", types.SimpleNamespace(**known))
  with pytest.raises(ImportError, match=rf"has no SimpleNamespace\.{name}, which a run of several"):
    compat.distributed_state()


@pytest.mark.parametrize("name", ["key_value_set", "key_value_dir_get", "wait_at_barrier"])
def test_what_the_client_lacks_is_named(monkeypatch, name):
  client = types.SimpleNamespace(key_value_set=1, key_value_dir_get=1, wait_at_barrier=1)
  monkeypatch.setattr("jax._src.distributed.global_state.client", client)
  assert compat.distributed_state().client is client
  delattr(client, name)
  with pytest.raises(ImportError, match=rf"^jaxlib .* has no SimpleNamespace\.{name}, which"):
    compat.distributed_state()


def test_alone_there_is_no_client():
  state = compat.distributed_state()
  assert state.client is None and state.num_processes in (1, None)


# Of Python itself: the one is documented, the other is there to be overridden.
DOCUMENTED = {"os._exit", "super()._get_help_string"}
# A named tuple's public methods and attributes; the underscore keeps them apart from its fields.
NAMEDTUPLE = {"_replace", "_asdict", "_fields", "_make", "_field_defaults"}


def private_names(path, package="videoar_jax"):
  """Returns the libraries' private names that a file imports, accesses, or has in strings."""
  modules = {name for name in imported_modules(path, package) if not name.startswith("videoar_jax")}
  found = {name for name in modules if any(map(is_private, name.split(".")))}
  tree = ast.parse(path.read_text())
  own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
  for node in ast.walk(tree):
    match node:
      case ast.Attribute(ast.Name("self" | "cls")):
        continue
      case ast.Attribute(_, name) if is_private(name) and name not in own | NAMEDTUPLE:
        found.add(ast.unparse(node))
      case ast.Constant(str(text)) if "._src" in text:
        found.add(text)
      case ast.Call(ast.Name("getattr" | "hasattr"), [_, ast.Constant(name), *_]):
        found |= {name} if is_private(name) else set()
  return found - DOCUMENTED


def is_private(name):
  return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_private_names_of_libraries_are_in_one_place(path):
  package = ".".join(path.relative_to(ROOT).parent.parts)
  if path != PACKAGE / "parallel" / "compat.py":
    assert not private_names(path, package)


def test_the_walk_sees_private_names_of_every_form(tmp_path):
  path = tmp_path / "module.py"
  path.write_text(
    "from __future__ import annotations\n"
    "from jax._src import distributed\nimport a._b.c\nfrom flax import nnx, _private\n"
    "from videoar_jax.nn.splash import _order\n"
    "class Own:\n  def f(self, other):\n    other._g(self._client, nnx._graph, other._client)\n"
    "    self._manager._options\n    getattr(other, '_place')\n    import_module('jax._src.x')\n"
    "    other.__name__\n  def _g(self): pass\n"
  )
  assert private_names(path) == {
    *("jax._src", "jax._src.distributed", "a._b.c", "flax._private", "nnx._graph"),
    *("other._client", "self._manager._options", "_place", "jax._src.x"),
  }
