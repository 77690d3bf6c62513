"""Filters an index by an expression, such as `duration >= 2 and score["aesthetic"] > 5`.

Names are the entry's fields. An expression may have numbers, strings, True, False, None, lists of
these, comparisons, `in`, `and`, `or`, `not`, arithmetic and `field["part"]`, but no calls or
attributes. As in tables, None is a number that is missing: no number is less or more than it.
"""

import ast
import math
import operator
from collections.abc import Callable

_ORDERS = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
_COMPARISONS = {
  **_ORDERS,
  ast.Eq: operator.eq,
  ast.NotEq: operator.ne,
  ast.In: lambda item, items: item in items,
  ast.NotIn: lambda item, items: item not in items,
}
_ARITHMETIC = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
}
_NODES = (
  *(ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp),
  *(ast.Compare, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple, ast.Subscript),
  *_COMPARISONS,
  *_ARITHMETIC,
)


def parse_filter(text: str, name: str = "data.filter") -> Callable[[dict], bool]:
  """Returns a function that returns whether to keep an entry.

  The function raises ValueError if a field is missing, or its type does not fit the expression.

  Args:
    text: the filter.
    name: of the field or flag, for messages.
  Raises:
    ValueError: the text is not a valid filter; the message says what is wrong with it.
  """
  try:
    tree = ast.parse(text.strip(), mode="eval")
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise ValueError(f"{name}={text!r} is not a valid expression ({error})") from None
  for node in ast.walk(tree):
    if not isinstance(node, _NODES):
      piece = ast.get_source_segment(text.strip(), node) or type(node).__name__
      raise ValueError(
        f"{name}={text!r}: {piece!r} is not allowed; use fields, numbers, strings, "
        "comparisons, in, and, or, not, + - * /"
      )

  def keep(entry: dict) -> bool:
    try:
      return bool(_evaluate(tree.body, entry))
    except (TypeError, ZeroDivisionError, LookupError) as error:
      raise ValueError(f"{name}={text!r}: {error}") from None

  return keep


def _evaluate(node: ast.expr, entry: dict):
  match node:
    case ast.Constant():
      return node.value
    case ast.Name():
      if node.id not in entry:
        known = ", ".join(sorted(entry))
        raise LookupError(f"there is no field {node.id!r}; there are {known}")
      return entry[node.id]
    case ast.List() | ast.Tuple():
      return [_evaluate(item, entry) for item in node.elts]
    case ast.Subscript():
      whole, part = _evaluate(node.value, entry), _evaluate(node.slice, entry)
      if whole is None:
        return None
      if not isinstance(whole, dict) or part not in whole:
        raise LookupError(f"there is no {part!r} in {ast.unparse(node.value)}")
      return whole[part]
    case ast.UnaryOp():
      value = _evaluate(node.operand, entry)
      return not value if isinstance(node.op, ast.Not) else -_number(value)
    case ast.BinOp():
      left, right = _evaluate(node.left, entry), _evaluate(node.right, entry)
      return _ARITHMETIC[type(node.op)](_number(left), _number(right))
    case ast.BoolOp():
      # Short-circuits as in Python, so that a filter can test whether a field is present.
      is_and = isinstance(node.op, ast.And)
      values = (bool(_evaluate(value, entry)) for value in node.values)
      return all(values) if is_and else any(values)
    case ast.Compare():
      left = _evaluate(node.left, entry)
      for comparison, other in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(other, entry)
        is_missing = type(comparison) in _ORDERS and (left is None or right is None)
        if is_missing or not _COMPARISONS[type(comparison)](left, right):
          return False
        left = right
      return True
  raise TypeError(f"{ast.unparse(node)} cannot be evaluated")


def _number(value) -> float:
  if value is None:
    return math.nan
  if not isinstance(value, int | float):
    raise TypeError(f"{value!r} is not a number")  # Repeating a string could fill the memory.
  return value
