"""What config files share: parsing their argument, named sizes."""

from ml_collections import ConfigDict

from videoar_jax.models.families import FAMILIES


def generator_size(name: str, family: str = "videoar") -> ConfigDict:
  """Returns the `generator` settings of a named size.

  Raises:
    ValueError: there is no such size; lists those there are.
  """
  sizes = FAMILIES[family].sizes
  if name not in sizes:
    raise ValueError(f"size={name!r} is unknown; sizes are {', '.join(sizes)}")
  return ConfigDict(sizes[name])


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
