"""Overview of a network's parameters: a table of all, and the number in each module."""

from clu import parameter_overview

from videoar_jax.nn.layers import count_parameters


def parameter_table(params: dict) -> str:
  """Returns a table of each parameter's name, shape, dtype, size and sharding, with totals.

  Args:
    params: a nested dict of arrays, which may be abstract.
  """
  return parameter_overview.get_parameter_overview(params, include_stats="sharding")


def count_by_module(params: dict) -> dict[str, int]:
  """Returns the number of parameters of each top-level module."""
  return {name: count_parameters(part) for name, part in params.items()}
