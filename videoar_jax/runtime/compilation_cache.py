"""JAX's persistent compilation cache, and the files of compiled programs beside it."""

import jax

from videoar_jax.interop.caches import cache_root
from videoar_jax.parallel.programs import keep_programs_in


def use_compilation_cache() -> None:
  """Turns on both, unless the user has configured another folder for JAX's cache."""
  if jax.config.jax_compilation_cache_dir is None and jax.config.jax_enable_compilation_cache:
    try:
      folder = cache_root()
    except RuntimeError:  # There is no home folder.
      return
    jax.config.update("jax_compilation_cache_dir", str(folder / "jax"))
    keep_programs_in(folder / "programs")
