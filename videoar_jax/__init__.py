"""Autoregressive video models in JAX."""

import importlib
import sys

from videoar_jax.runtime.huge_pages import restart_command

__version__ = "0.1.0"

# Imported lazily: models import JAX, which the data pipeline and `--help` do not need.
_MODULES = {
  "load_model": "videoar_jax.experiment.load",
  "load_tokenizer": "videoar_jax.experiment.load",
  "open_data": "videoar_jax.data.pipeline",
  "read_clip": "videoar_jax.data.media.clips",
}
__all__ = list(_MODULES)

# Here and not in the commands, whose imports take a second.
restart_command(sys.orig_argv, sys.argv)


def __getattr__(name: str):
  if name in _MODULES:
    return getattr(importlib.import_module(_MODULES[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
