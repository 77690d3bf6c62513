"""Tables that say how the tensors of a foreign checkpoint make the parameters of a network.

A table is a list of entries, one for each parameter: `to`, its name, and what makes it:

  {"from": NAME, "shape": [...]}    a tensor of this shape
  {"join": [...], "axis": N}        such things, joined along an axis
  {"fill": NUMBER, "shape": [...]}  a constant, for what the checkpoint lacks

each with `steps`, if any, which are done in order:

  {"transpose": [...]}                           the order of axes, as numpy's
  {"reshape": [...]}                             in row-major order
  {"take": {"axis": N, "start": A, "stop": B}}   a part of an axis
  {"subtract": N}                                of an axis of two, the second less the first

`{layer}` in a name stands for 0, 1 and so on: what the layers give is stacked to a leading axis.
"""

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from videoar_jax.interop.public_keys import check_floats
from videoar_jax.interop.tensor_files import shapes_of

Shapes = Mapping[str, tuple[int, ...]]
LAYER = "{layer}"
_KINDS = {"from": {"shape"}, "join": {"axis"}, "fill": {"shape"}}


@dataclasses.dataclass(frozen=True)
class Node:
  """What makes a parameter, or a part of one.

  Attributes:
    kind: "from", "join" or "fill".
    value: a name, nodes, or a number.
    shape: of a tensor or a constant.
    axis: along which nodes are joined.
    steps: pairs of a name and its argument.
  """

  kind: str
  value: Any
  shape: tuple[int, ...] = ()
  axis: int = 0
  steps: tuple[tuple[str, Any], ...] = ()

  def tensors(self) -> Iterable["Node"]:
    """Yields the nodes that are tensors."""
    if self.kind == "from":
      yield self
    for part in self.value if self.kind == "join" else ():
      yield from part.tensors()

  def has_take(self) -> bool:
    """Returns whether parts of an array are left out on the way."""
    inner = self.value if self.kind == "join" else ()
    return any(name == "take" for name, _ in self.steps) or any(part.has_take() for part in inner)

  def make(self, read: Callable[["Node"], np.ndarray], minuend: int | None = None) -> np.ndarray:
    """Returns the array.

    Args:
      read: returns a tensor.
      minuend: to follow what is read: instead of a difference, take this one of the two, and 0 for
        constants; None for the values themselves.
    Raises:
      ValueError, IndexError: a step does not fit the shape before it.
    """
    if self.kind == "from":
      x = read(self)
    elif self.kind == "fill":
      x = np.full(self.shape, self.value if minuend is None else 0, np.float32)
    else:
      x = np.concatenate([part.make(read, minuend) for part in self.value], self.axis)
    for name, argument in self.steps:
      x = _step(x, name, argument, minuend)
    return x


def _step(x: np.ndarray, name: str, argument: Any, minuend: int | None) -> np.ndarray:
  if name == "transpose":
    return x.transpose(argument)
  if name == "reshape":
    return x.reshape(argument)
  if name == "take":
    axis, start, stop = argument
    if not 0 <= start < stop <= x.shape[axis]:
      raise ValueError(f"axis {axis} of {x.shape} has no part from {start} to {stop}")
    return x[(slice(None),) * (axis % x.ndim) + (slice(start, stop),)]
  if x.shape[argument] != 2:
    raise ValueError(f"axis {argument} of {x.shape} has not two entries to subtract")
  first, second = np.moveaxis(x, argument, 0)
  return second - first if minuend is None else (first, second)[minuend]


@dataclasses.dataclass(frozen=True)
class TensorMap:
  """A table.

  Attributes:
    where: it is, for errors.
    entries: what makes each parameter.
    ignored: patterns, with `*`, of the names of tensors that need not be used, or not as a whole.
    part: the entry of a PyTorch file that holds the tensors, such as "trainer.ema"; None for all.
  """

  where: str
  entries: dict[str, Node]
  ignored: tuple[str, ...] = ()
  part: str | None = None

  @classmethod
  def parse(cls, values: Any, where: str) -> "TensorMap":
    """Reads a table.

    Args:
      values: from JSON: `tensors`, a list of entries, and maybe `ignore` and `part`.
      where: it is, for errors.
    Raises:
      ValueError: something in it is wrong; says where.
    """
    _check_fields(values, {"tensors"}, {"ignore", "part"}, where)
    entries: dict[str, Node] = {}
    for i, entry in enumerate(_list(values["tensors"], f"{where}.tensors")):
      place = f"{where}.tensors[{i}]"
      if not isinstance(entry, dict) or not isinstance(entry.get("to"), str):
        raise ValueError(f"{place} has no `to`, the name of a parameter")
      name = entry["to"]
      if name in entries:
        raise ValueError(f"{place}: {name} has another entry before; remove one of them")
      entries[name] = _node({key: x for key, x in entry.items() if key != "to"}, place)
    ignored = _list(values.get("ignore", []), f"{where}.ignore")
    if not all(isinstance(pattern, str) for pattern in ignored):
      raise ValueError(f"{where}.ignore must be names of tensors, which may have *")
    part = values.get("part")
    if not isinstance(part, str | None):
      raise ValueError(f"{where}.part={part!r} must be the name of an entry of the file")
    return cls(where, entries, tuple(ignored), part)

  def apply(self, tensors: Mapping[str, np.ndarray], shapes: Shapes) -> "MappedTensors":
    """Checks a checkpoint against the table, by names and shapes alone; reads nothing of it.

    Args:
      tensors: of the checkpoint; a lazy mapping is read one tensor at a time.
      shapes: of the parameters.
    Returns:
      The parameters, to be read.
    Raises:
      ValueError: lists every parameter without an entry, every entry that makes another shape, and
        every missing, misshapen, unexpected or only partly used tensor.
    """
    self._check_parameters(shapes)
    found, wrong = shapes_of(tensors), []
    known: dict[str, tuple[int, ...]] = {}
    for name, node in self.entries.items():
      wanted = tuple(shapes[name])
      is_stacked = _is_stacked(node)
      made = _shape_of(node)
      if made != (wanted[1:] if is_stacked else wanted):
        what = "each layer of it is" if is_stacked else "it is"
        wrong.append(f"{name}: its entry makes {made}, but {what} {wanted[is_stacked:]}")
      for tensor in node.tensors():
        for layer in range(wanted[0] if is_stacked else 1):
          known[_in_layer(tensor.value, layer)] = tensor.shape
    wrong += [f"missing: {name}" for name in _merged(x for x in known if x not in found)]
    shapes_of_both = {name: (tuple(found[name]), x) for name, x in known.items() if name in found}
    for own, wanted in sorted({pair for pair in shapes_of_both.values() if pair[0] != pair[1]}):
      names = [name for name, pair in shapes_of_both.items() if pair == (own, wanted)]
      wrong += [f"shape: {x} is {own}, but {wanted} in the table" for x in _merged(names)]
    unexpected = [x for x in found if x not in known and not self._is_ignored(x)]
    wrong += [f"unexpected: {name}" for name in _merged(unexpected)]
    if not wrong:
      wrong = [f"only a part is used of {name}" for name in self._partly_used()]
    if wrong:
      raise ValueError(f"{self.where} does not fit: {'; '.join(wrong)}")
    return MappedTensors(self, tensors, shapes)

  def _check_parameters(self, shapes: Shapes) -> None:
    """Raises ValueError unless there is one entry for each parameter."""
    wrong = [f"no entry for {name} {tuple(shapes[name])}" for name in shapes.keys() - self.entries]
    for name in self.entries.keys() - shapes:
      similar = difflib.get_close_matches(name, shapes, 1)
      wrong.append(f"no parameter {name}" + (f"; {similar[0]}?" if similar else ""))
    if wrong:
      raise ValueError(f"{self.where} does not fit the network: {'; '.join(sorted(wrong))}")

  def _is_ignored(self, name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignored)

  def _partly_used(self) -> list[str]:
    """Returns the tensors of which no entry reads some places; one layer stands for all."""
    partly = {x.value for node in self.entries.values() if node.has_take() for x in node.tensors()}
    names = [name for name in sorted(partly) if not self._is_ignored(_in_layer(name, 0))]
    return [name for name in names if not self._is_whole(name)]

  def _is_whole(self, name: str) -> bool:
    nodes = [x for x in self.entries.values() if any(t.value == name for t in x.tensors())]
    shape = next(t.shape for node in nodes for t in node.tensors() if t.value == name)
    is_used = np.zeros(int(np.prod(shape)) + 1, bool)

    def read(tensor: Node) -> np.ndarray:
      if tensor.value != name:
        return np.broadcast_to(np.int64(0), tensor.shape)
      return np.arange(1, len(is_used)).reshape(shape)

    for node in nodes:
      for minuend in (0, 1):
        is_used[node.make(read, minuend).astype(np.int64)] = True
    return bool(is_used[1:].all())


class MappedTensors:
  """The parameters that a checked table makes of a checkpoint, read one at a time.

  Args:
    table: the table.
    tensors: of the checkpoint.
    shapes: of the parameters.
  """

  def __init__(self, table: TensorMap, tensors: Mapping[str, np.ndarray], shapes: Shapes):
    self._table, self._tensors = table, tensors
    self.shapes = {name: tuple(shape) for name, shape in shapes.items()}

  def read(self, name: str) -> np.ndarray:
    """Returns a parameter, in the type that its tensors have.

    Raises:
      ValueError: a tensor holds what no weights are.
    """
    node = self._table.entries[name]
    if not _is_stacked(node):
      return np.asarray(node.make(lambda tensor: check_floats(tensor.value, self._tensors)))
    whole = None
    for layer in range(self.shapes[name][0]):

      def read(tensor: Node, layer=layer) -> np.ndarray:
        return check_floats(_in_layer(tensor.value, layer), self._tensors)

      part = node.make(read)
      whole = np.empty(self.shapes[name], part.dtype) if whole is None else whole
      whole[layer] = part
    return whole

  def source_dtype(self, name: str) -> np.dtype:
    """Returns the type of a parameter's first tensor; float32 if it is a constant."""
    first = next(iter(self._table.entries[name].tensors()), None)
    if first is None:
      return np.dtype(np.float32)
    return np.asarray(self._tensors[_in_layer(first.value, 0)]).dtype

  def read_all(self) -> dict[str, np.ndarray]:
    """Returns all parameters, by their names in files."""
    return {name: self.read(name) for name in self.shapes}


def template_entry(name: str, shape: tuple[int, ...], *, is_stacked: bool) -> dict[str, Any]:
  """Returns an entry to edit, with the name and the layout that PyTorch would have.

  Args:
    name: of the parameter.
    shape: of the parameter.
    is_stacked: whether its leading axis is that of layers.
  """
  modules, _, leaf = name.rpartition(".")
  public = {"kernel": "weight", "scale": "weight", "table": "weight"}.get(leaf, leaf)
  source = f"{modules}.{public}" if modules else public
  if is_stacked:
    first, _, rest = source.partition(".")
    source, shape = f"{first}.{LAYER}.{rest}", shape[1:]
  steps = []
  if leaf == "kernel":
    # PyTorch has outputs, then inputs, then the axes of a convolution.
    num = len(shape)
    shape = (*shape[:-3:-1], *shape[:-2])
    steps = [{"transpose": [*range(2, num), 1, 0]}]
  entry = {"to": name, "from": source, "shape": list(shape)}
  return entry | ({"steps": steps} if steps else {})


def listing(shapes: Shapes) -> list[str]:
  """Returns lines that list a checkpoint's tensors, those that differ in numbers together."""
  groups: dict[tuple[str, tuple[int, ...]], int] = {}
  for name, shape in shapes.items():
    key = re.sub(r"(?<![^.])\d+(?![^.])", "*", name), tuple(shape)
    groups[key] = groups.get(key, 0) + 1
  return [
    f"{name} {list(shape)}" + (f", {num} of them" if num > 1 else "")
    for (name, shape), num in groups.items()
  ]


def _merged(names: Iterable[str]) -> list[str]:
  """Returns names, sorted; those that differ in numbers become one, with their count."""
  found: dict[str, list[str]] = {}
  for name in names:
    found.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(name)
  return [
    each[0] if len(each) == 1 else f"{pattern} ({len(each)} of them)"
    for pattern, each in sorted(found.items())
  ]


def _in_layer(name: str, layer: int) -> str:
  return name.replace(LAYER, str(layer))


def _is_stacked(node: Node) -> bool:
  return any(LAYER in tensor.value for tensor in node.tensors())


def _shape_of(node: Node) -> tuple[int, ...] | str:
  """Returns the shape that a node makes; a text, if its steps do not fit."""
  try:
    return node.make(lambda tensor: np.broadcast_to(np.uint8(0), tensor.shape)).shape
  except (ValueError, IndexError) as error:
    return f"nothing ({error})"


def _node(values: Any, where: str) -> Node:
  """Reads what makes an array; raises ValueError, and says where, if it is wrong."""
  kinds = [kind for kind in _KINDS if isinstance(values, dict) and kind in values]
  if len(kinds) != 1:
    raise ValueError(f"{where} needs one of {', '.join(_KINDS)}")
  (kind,) = kinds
  _check_fields(values, {kind} | _KINDS[kind], {"steps"}, where)
  value = values[kind]
  if kind == "from" and not isinstance(value, str):
    raise ValueError(f"{where}.from={value!r} must be the name of a tensor; `join` takes several")
  if kind == "fill" and (isinstance(value, bool) or not isinstance(value, int | float)):
    raise ValueError(f"{where}.fill={value!r} must be a number")
  if kind == "join":
    parts = _list(value, f"{where}.join")
    value = tuple(_node(part, f"{where}.join[{i}]") for i, part in enumerate(parts))
    if not value:
      raise ValueError(f"{where}.join is empty; name what to join")
  shape = _integers(values["shape"], f"{where}.shape") if "shape" in values else ()
  axis = _integers([values.get("axis", 0)], f"{where}.axis")[0]
  steps = _list(values.get("steps", []), f"{where}.steps")
  steps = tuple(_read_step(step, f"{where}.steps[{i}]") for i, step in enumerate(steps))
  return Node(kind, value, shape, axis, steps)


def _read_step(values: Any, where: str) -> tuple[str, Any]:
  if not isinstance(values, dict) or len(values) != 1:
    raise ValueError(f"{where} must have one name: transpose, reshape, take or subtract")
  ((name, argument),) = values.items()
  where = f"{where}.{name}"
  if name in ("transpose", "reshape"):
    return name, _integers(argument, where)
  if name == "subtract":
    return name, _integers([argument], where)[0]
  if name == "take":
    fields = ("axis", "start", "stop")
    _check_fields(argument, set(fields), set(), where)
    return name, _integers([argument[field] for field in fields], where)
  raise ValueError(f"{where} is unknown; steps are transpose, reshape, take and subtract")


def _check_fields(values: Any, needed: set[str], others: set[str], where: str) -> None:
  if not isinstance(values, dict):
    raise ValueError(f"{where} must be a JSON object with {', '.join(sorted(needed))}")
  for name in sorted(needed - values.keys()):
    raise ValueError(f"{where}.{name} is missing")
  for name in values:
    if name not in needed | others:
      raise ValueError(f"{where}.{name} is unknown; known are {', '.join(sorted(needed | others))}")


def _list(values: Any, where: str) -> Sequence[Any]:
  if not isinstance(values, list):
    raise ValueError(f"{where} must be a list")
  return values


def _integers(values: Any, where: str) -> tuple[int, ...]:
  if not all(type(x) is int for x in _list(values, where)):
    raise ValueError(f"{where}={values!r} must be whole numbers")
  return tuple(values)
