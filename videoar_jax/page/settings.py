"""The fields of the page: sampling settings of a model's family, and what is wrong with values."""

import dataclasses
import re
import typing
from typing import Any

from videoar_jax.experiment.fields import allows_none, attribute_docs, fields_of, kinds_of

_KINDS = (int, float, str)


@dataclasses.dataclass(frozen=True)
class Setting:
  """A sampling setting.

  Attributes:
    name: of the field of the family's `sampling`.
    kind: int, float or str.
    default: that of the run; None for a field that may be empty.
    may_be_empty: whether None is a value.
    text: what it does.
  """

  name: str
  kind: type
  default: Any
  may_be_empty: bool
  text: str

  def parse(self, value: Any) -> Any:
    """Returns a value from the page in the field's type; None for an empty one.

    Raises:
      FieldError: it is missing, no number, or names a file of the server.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
      if self.may_be_empty or self.kind is str:
        return None if self.may_be_empty else ""
      raise FieldError(self.name, f"Set {self.label}, such as {self.default}.")
    if self.kind is str:
      if str(value).strip().endswith(".json"):
        raise FieldError(self.name, "The page reads no files; give a number.")
      return str(value).strip()
    try:
      number = float(value)
    except ValueError:
      raise FieldError(self.name, f"{value!r} is not a number.") from None
    if self.kind is int and number != round(number):
      raise FieldError(self.name, f"{number:g} is not a whole number.")
    return self.kind(number)

  @property
  def label(self) -> str:
    """The name, as words."""
    return self.name.replace("_", " ")


class FieldError(ValueError):
  """A value that the model does not take.

  Attributes:
    field: its name; "" if it cannot be told.
    message: one sentence.
  """

  def __init__(self, field: str, message: str):
    super().__init__(message)
    self.field, self.message = field, message

  @classmethod
  def of(cls, error: ValueError, known: tuple[str, ...]) -> "FieldError":
    """Returns the error of a model, which begins with the field's name, for one of some fields."""
    if isinstance(error, cls):
      return error
    message = " ".join(str(error).split())
    start = re.match(r"(\w+)(?=[=:])", message)
    field = start[1] if start and start[1] in known else ""
    return cls(field, message if message.endswith(".") else f"{message}.")


def settings_of(sampling: Any) -> list[Setting]:
  """Returns the settings of a family that are numbers or texts, with a run's values as defaults.

  Args:
    sampling: an instance of the family's `sampling`.
  """
  hints, texts = typing.get_type_hints(type(sampling)), attribute_docs(type(sampling))
  found = []
  for name, field in fields_of(type(sampling)).items():
    kinds = kinds_of(hints[field.name])
    kind = next((kind for kind in _KINDS if kind in kinds and bool not in kinds), None)
    if kind is not None:
      value, text = getattr(sampling, field.name), texts.get(name, "").rstrip(".")
      found.append(Setting(name, kind, value, allows_none(hints[field.name]), text))
  return found


def parse_settings(settings: list[Setting], values: list[Any], sampling: type) -> dict[str, Any]:
  """Returns values from the page, checked by the family.

  Args:
    settings: of the family.
    values: a value for each.
    sampling: the family's dataclass.
  Raises:
    FieldError: one is wrong.
  """
  parsed = {
    setting.name: setting.parse(value) for setting, value in zip(settings, values, strict=True)
  }
  try:
    sampling(**parsed)
  except ValueError as error:
    raise FieldError.of(error, tuple(parsed)) from error
  return parsed


def lengths_of(num_frames: int, stride: int) -> list[int]:
  """Returns the lengths of clips to choose from: 1 + tau k frames, up to those of training."""
  return list(range(1, num_frames + 1, stride))
