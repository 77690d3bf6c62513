"""What config files share: parsing their argument, named sizes."""

from ml_collections import ConfigDict

# Depth, width, heads, key and value heads, head width, MLP width; `l`, `xl`, `4b` as in the paper.
_SIZES = {
  "tiny": (4, 128, 2, 2, 64, 384),
  "small": (6, 256, 4, 4, 64, 768),
  "base": (12, 768, 12, 12, 64, 2048),
  "l": (24, 1536, 12, 12, 128, 4096),
  "xl": (32, 2048, 16, 16, 128, 5632),
  "4b": (36, 2560, 32, 8, 128, 9728),
}


def generator_size(name: str) -> ConfigDict:
  """Returns the `generator` settings of a named size.

  Raises:
    ValueError: there is no such size; lists those there are.
  """
  if name not in _SIZES:
    raise ValueError(f"size={name!r} is unknown; sizes are {', '.join(_SIZES)}")
  fields = ("num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
  config = ConfigDict(dict(zip(fields, _SIZES[name], strict=True)))
  # The large ones are for accelerators.
  config.dtype = "bfloat16" if name in ("l", "xl", "4b") else "float32"
  return config


def parse_arg(arg: str | None, **defaults):
  """Parses `"name=value,other=value"`, what follows the colon of `--config=FILE.py:...`.

  Args:
    arg: the text.
    **defaults: names that are known; a value is converted to its default's type.
  Returns:
    A ConfigDict of the defaults and what the text changes.
  Raises:
    ValueError: a name is unknown, or a value is not of its type.
  """
  values = ConfigDict(defaults)
  parts: list[str] = []
  for text in filter(None, (arg or "").split(",")):
    if "=" in text or not parts:
      parts.append(text)
    else:
      # A comma that no `name=` follows belongs to the value: folders may have one.
      parts[-1] += f",{text}"
  for part in parts:
    name, equals, text = part.partition("=")
    if not equals or name not in defaults:
      known = ", ".join(f"{key}={value}" for key, value in defaults.items())
      raise ValueError(f"config argument {part!r} is unknown; known, with defaults: {known}")
    kind = type(defaults[name])
    try:
      values[name] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
    except ValueError:
      raise ValueError(f"config argument {part!r}: needs a value of type {kind.__name__}") from None
  return values
