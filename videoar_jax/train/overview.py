"""What a network's parameters are: a table of all, and how many each of its parts has."""

from clu import parameter_overview

from videoar_jax.nn.layers import count_parameters


def parameter_table(params: dict) -> str:
  """Returns name, shape, type, size and sharding of each parameter as a table, and their sum.

  Args:
    params: a nested dict of arrays, which may be abstract.
  """
  return parameter_overview.get_parameter_overview(params, include_stats="sharding")


def count_by_module(params: dict) -> dict[str, int]:
  """Returns the number of parameters of each top-level module."""
  return {name: count_parameters(part) for name, part in params.items()}
