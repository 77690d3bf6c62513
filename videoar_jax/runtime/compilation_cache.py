"""JAX's persistent compilation cache."""

import jax

from videoar_jax.interop.caches import cache_root


def use_compilation_cache() -> None:
  """Turns on the persistent compilation cache, unless the user has configured a folder for it."""
  if jax.config.jax_compilation_cache_dir is None:
    try:
      folder = cache_root() / "jax"
    except RuntimeError:  # There is no home folder.
      return
    jax.config.update("jax_compilation_cache_dir", str(folder))
