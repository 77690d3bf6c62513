"""JAX's persistent compilation cache."""

import os
import pathlib

import jax


def use_compilation_cache() -> None:
  """Turns on the persistent compilation cache, unless the user has configured a folder for it."""
  if jax.config.jax_compilation_cache_dir is None:
    try:
      root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    except RuntimeError:  # There is no home folder, as in some containers.
      return
    jax.config.update("jax_compilation_cache_dir", str(root / "videoar_jax" / "jax"))
