"""Autoregressive video models in JAX."""

import importlib

__version__ = "0.1.0"
_MODULES = {
  "load_model": "experiment.load",
  "load_tokenizer": "experiment.load",
  "open_data": "data.pipeline",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
  # Imported lazily: models need JAX, which the data pipeline and `--help` do not.
  if name in _MODULES:
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
