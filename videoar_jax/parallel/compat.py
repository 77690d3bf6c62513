"""All uses of private names of libraries, and of modules that may move.

Any release may remove one. Each is looked up only when needed, so that everything else still works.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from videoar_jax.runtime.versions import installed, tested_range

_SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention"
# Methods of the coordination service's client that the package uses.
_CLIENT_METHODS = ("key_value_set", "key_value_dir_get", "wait_at_barrier")


@dataclasses.dataclass(frozen=True)
class SplashAttention:
  """JAX's splash attention.

  Attributes:
    kernels: its module `splash_attention_kernel`.
    masks: its module `splash_attention_mask`.
    ComputableMask: base class of masks that the kernel computes from indices.
  """

  kernels: ModuleType
  masks: ModuleType
  ComputableMask: type


def splash_attention() -> SplashAttention:
  """Returns JAX's splash attention.

  Raises:
    ImportError: the installed JAX has moved or removed it.
  """
  need = "attention='splash'"
  masks = _module("jax", f"{_SPLASH}.splash_attention_mask", need)
  kernels = _module("jax", f"{_SPLASH}.splash_attention_kernel", need)
  return SplashAttention(kernels, masks, _attribute("jax", masks, "_ComputableMask", need))


@dataclasses.dataclass(frozen=True)
class TokamaxAttention:
  """The attention kernels of tokamax, which is no requirement.

  Attributes:
    implementations: kernels by name.
    Mask: masks with a range of keys for each query; the public function takes dense ones only.
  """

  implementations: Mapping[str, Callable]
  Mask: type


def tokamax_attention() -> TokamaxAttention:
  """Returns tokamax's attention.

  Raises:
    ImportError: tokamax is not installed, or the installed one has moved or removed it.
  """
  api, base = (
    importlib.import_module(f"tokamax._src.ops.attention.{name}") for name in ("api", "base")
  )
  try:
    return TokamaxAttention(api.IMPLEMENTATIONS, base.Mask)
  except AttributeError as error:
    raise ImportError(f"tokamax {installed('tokamax')}: {error}") from error


def distributed_state() -> Any:
  """Returns JAX's state of a multi-process run, without initializing a device.

  Returns:
    An object with `process_id`, `num_processes` and `client`; the client is None in a
    single-process run.
  Raises:
    ImportError: the installed JAX has moved or removed it.
  """
  need = "a run of several processes"
  state = _attribute("jax", _module("jax", "jax._src.distributed", need), "global_state", need)
  for name in ("process_id", "num_processes"):
    _attribute("jax", state, name, need)
  client = _attribute("jax", state, "client", need)
  for name in _CLIENT_METHODS if client is not None else ():
    _attribute("jaxlib", client, name, need)
  return state


def _module(library: str, name: str, need: str) -> ModuleType:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise _gone(library, name, need) from error


def _attribute(library: str, owner: Any, name: str, need: str) -> Any:
  try:
    return getattr(owner, name)
  except AttributeError as error:
    place = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__name__
    raise _gone(library, f"{place}.{name}", need) from error


def _gone(library: str, name: str, need: str) -> ImportError:
  return ImportError(
    f"{library} {installed(library)} has no {name}, which {need} needs; install a tested version: "
    f"{tested_range('jax')}"
  )
