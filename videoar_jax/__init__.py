"""Autoregressive video models in JAX."""

__version__ = "0.1.0"
__all__ = ["load_model", "load_tokenizer"]


def __getattr__(name: str):
  # Imported lazily, because it imports JAX, which the data pipeline and `--help` do not need.
  if name in __all__:
    from videoar_jax.experiment import load

    return getattr(load, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
