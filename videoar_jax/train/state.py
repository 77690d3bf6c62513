"""The train state: one definition gives shapes, shardings, init and restore target."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PyTree

from videoar_jax.nn.layers import without_values
from videoar_jax.parallel.rules import AnyMesh, replicated, sharding_of

# {"params", "opt_state", "ema", "step", "discriminator", "anomaly"}, plain arrays; see
# `adversary.py` and `anomaly.py` for the last two.
State = dict


@dataclasses.dataclass(frozen=True)
class Template:
  """A module's structure, without its arrays.

  Attributes:
    graphdef: static part of the module.
    shapes: abstract parameters, a nested dict.
    axes: logical axis names of each parameter.
  """

  graphdef: nnx.GraphDef
  shapes: dict
  axes: dict

  @classmethod
  def of(cls, make_module: Callable[[jax.Array], nnx.Module]) -> "Template":
    """Makes the template of a module abstractly, without computing its parameters."""
    # The key is abstract, too: a real one would be computed, and its program compiled.
    key = jax.eval_shape(lambda: jax.random.key(0))
    with without_values():
      graphdef, variables = nnx.split(jax.eval_shape(lambda key: make_module(key), key))
    leaves = jax.tree_util.tree_flatten_with_path(
      variables, is_leaf=lambda x: isinstance(x, nnx.Param)
    )[0]
    axes = nnx.to_pure_dict(variables)
    for path, variable in leaves:
      *parents, last = [part.key for part in path]
      node = axes
      for name in parents:
        node = node[name]
      node[last] = variable.get_metadata()["axes"]
    return cls(graphdef, nnx.to_pure_dict(variables), axes)

  def module(self, params: dict) -> nnx.Module:
    """Returns the module with these parameters."""
    return nnx.merge(self.graphdef, params)

  def shardings(self, mesh: AnyMesh) -> dict:
    """Returns the sharding of each parameter."""
    return jax.tree.map(lambda x, names: sharding_of(names, x.shape, mesh), self.shapes, self.axes)


def init_params(make_module: Callable[[jax.Array], nnx.Module], key: jax.Array) -> dict:
  """Returns freshly initialised parameters."""
  return nnx.to_pure_dict(nnx.split(make_module(key))[1])


def make_state(params: dict, optimizer: optax.GradientTransformation, has_ema: bool) -> State:
  """Returns the state before the first step."""
  return {
    "params": params,
    "opt_state": optimizer.init(params),
    "ema": jax.tree.map(jnp.copy, params) if has_ema else {},
    "step": jnp.zeros((), jnp.int32),
    "discriminator": {},
    "anomaly": {},
  }


def state_shardings(abstract: State, templates: dict[str, Template], mesh: AnyMesh) -> State:
  """Returns the sharding of every leaf; leaves that mirror a parameter are sharded like it.

  Args:
    abstract: shapes of the state.
    templates: template of the module that each part of the state trains; "" for the other parts.
    mesh: the mesh.
  """
  by_part = {
    part: {
      tuple(path): sharding
      for path, sharding in jax.tree_util.tree_flatten_with_path(template.shardings(mesh))[0]
    }
    for part, template in templates.items()
  }

  def find(path, leaf):
    part = path[0].key if path[0].key in by_part else ""
    by_path = by_part[part]
    for start in range(len(path)):
      sharding = by_path.get(tuple(path[start:]))
      if sharding is not None:
        return sharding
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(find, abstract)


def with_shardings(abstract: PyTree, shardings: PyTree) -> PyTree:
  """Returns abstract arrays that carry their sharding: the target of a restore."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    abstract,
    shardings,
  )


def evaluation_params(state: State) -> dict:
  """Returns the EMA parameters if there are any, else the parameters."""
  return state["ema"] or state["params"]


def flatten(params: dict) -> dict:
  """Returns a nested dict's leaves by dotted name."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {".".join(part.key for part in path): leaf for path, leaf in leaves}


def by_name(select: Callable[[str], bool], params: dict) -> dict:
  """Returns a tree like the parameters, of what a function says of their dotted names."""
  return unflatten({name: select(name) for name in flatten(params)})


def unflatten(leaves: dict) -> dict:
  """Undoes `flatten`."""
  params: dict = {}
  for name, leaf in leaves.items():
    *parents, last = name.split(".")
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return params
