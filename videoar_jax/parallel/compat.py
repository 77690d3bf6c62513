"""Names of libraries that are private, or of modules that may move: they are here, nowhere else.

Any release may take one away. It is looked up when it is needed; all that does without it works.
"""

import dataclasses
import importlib
from types import ModuleType
from typing import Any

from videoar_jax.runtime.versions import installed, tested_range

_SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention"
# What the package asks the client of the service that processes find each other by.
_CLIENT_METHODS = ("key_value_set", "key_value_dir_get", "wait_at_barrier")


@dataclasses.dataclass(frozen=True)
class SplashAttention:
  """What JAX has of splash attention.

  Attributes:
    kernels: its module `splash_attention_kernel`.
    masks: its module `splash_attention_mask`.
    ComputableMask: base class of masks that the kernel computes from indices.
  """

  kernels: ModuleType
  masks: ModuleType
  ComputableMask: type


def splash_attention() -> SplashAttention:
  """Returns what JAX has of splash attention.

  Raises:
    ImportError: it is no longer where it was.
  """
  need = "attention='splash'"
  masks = _module("jax", f"{_SPLASH}.splash_attention_mask", need)
  kernels = _module("jax", f"{_SPLASH}.splash_attention_kernel", need)
  return SplashAttention(kernels, masks, _attribute("jax", masks, "_ComputableMask", need))


def distributed_state() -> Any:
  """Returns how this process takes part in a run of several, asking no device for it.

  Returns:
    What has `process_id`, `num_processes` and `client`, which is None in a process that is alone.
  Raises:
    ImportError: JAX no longer tells.
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
    f"{library} {installed(library)} has no {name}, which {need} needs; install a version that is "
    f"tested: {tested_range('jax')}"
  )
