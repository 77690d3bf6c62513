"""Settings of XLA's compiler that suit this project's programs. They are for CPU only."""

import contextlib
import functools
import pathlib
from collections.abc import Callable

import jax

# Names of what XLA hands over to the library YNNPACK.
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_REDUCTIONS = "LIBRARY_FUSION_TYPE_REDUCE"


def compiler_options(platform: str, *, is_decoding: bool = False) -> dict[str, int | str] | None:
  """Returns `compiler_options` of `jax.jit`, or None for JAX's own.

  LLVM's last level of optimization takes a third to a half of the time in which programs are
  compiled for CPU, and makes them no faster. VideoAR's decoding in float32 is 9 to 22% faster if
  Eigen has its products, on a processor with AVX2 only; with AVX-512 it is no faster, and others
  were not measured, so they keep what XLA chooses. Figures are in docs/speed.md.

  Args:
    platform: of the devices, such as "cpu".
    is_decoding: whether the program decodes scale by scale: many products, most of few rows.
  """
  if platform != "cpu" or jax.config.values["jax_disable_most_optimizations"]:
    return None
  options: dict[str, int | str] = {"xla_backend_optimization_level": 2}
  if is_decoding and _has_avx2_only():
    options[_YNNPACK] = _REDUCTIONS
  return options


def jitted(function: Callable, *, is_decoding: bool = False, **settings) -> Callable:
  """Returns a function under `jax.jit`, with `compiler_options` of the default backend.

  The first call asks for the backend, not this one, so that it can be made when a module is
  imported, before anyone has chosen a backend. A call with traced arguments becomes part of the
  program that they are of.

  Args:
    function: of arrays.
    is_decoding: see `compiler_options`.
    **settings: of `jax.jit`.
  """

  inside = jax.jit(function, **settings)  # Where JAX refuses options.

  @functools.cache
  def alone() -> Callable:
    options = compiler_options(jax.default_backend(), is_decoding=is_decoding)
    return jax.jit(function, compiler_options=options, **settings)

  @functools.wraps(function)
  def call(*arguments, **named):
    leaves = jax.tree.leaves((arguments, named))
    is_inside = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    return (inside if is_inside else alone())(*arguments, **named)

  return call


@functools.cache
def _has_avx2_only() -> bool:
  """Returns whether the processor has AVX2 without AVX-512; false where Linux does not say so."""
  with contextlib.suppress(OSError):
    words = pathlib.Path("/proc/cpuinfo").read_text().split()
    return "avx2" in words and "avx512f" not in words
  return False
