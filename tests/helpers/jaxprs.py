"""Counts operations in programs."""

import math


def products(jaxpr) -> int:
  """Returns the FLOPs of all matrix products in a program, but for those in branches."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      depth = math.prod(shape[axis] for axis in contracted)
      total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    for value in equation.params.values():
      if hasattr(value, "jaxpr"):
        total += times * products(value.jaxpr)
      elif hasattr(value, "eqns"):
        total += times * products(value)
  return total


def branches(jaxpr) -> list:
  """Returns the branches of a program's only conditional."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "cond":
      found.append([branch.jaxpr for branch in equation.params["branches"]])
    inner = (x.jaxpr for x in equation.params.values() if hasattr(x, "jaxpr"))
    found += [each for each in map(branches, inner) if each]
  assert len(found) <= 1
  return found[0] if found else []
