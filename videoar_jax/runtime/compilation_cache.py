"""Compiled programs, kept between runs."""

import os
import pathlib

import jax


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, where the user named no place of their own."""
  if jax.config.jax_compilation_cache_dir is None:
    try:
      root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    except RuntimeError:  # No home, as in some containers.
      return
    jax.config.update("jax_compilation_cache_dir", str(root / "videoar_jax" / "jax"))
