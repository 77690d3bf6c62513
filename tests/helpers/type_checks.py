"""The checker of annotations in the tests, and fake instances of the package's classes."""

from typing import Self

import beartype

# An int is accepted for a float, as by static type checkers.
_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def check(annotated):
  """Checks a function's or class's annotations; `Self` is the class that a method is defined in."""
  hints = getattr(annotated, "__annotations__", {})
  for name, hint in hints.items():
    if hint is Self:
      hints[name] = f"{annotated.__module__}.{annotated.__qualname__.rpartition('.')[0]}"
  return _check(annotated)


def stand_in(cls, **members):
  """Returns an uninitialized instance of a class with the given members."""
  members = {k: staticmethod(v) if callable(v) else v for k, v in members.items()}
  return object.__new__(type(cls.__name__, (cls,), members))
