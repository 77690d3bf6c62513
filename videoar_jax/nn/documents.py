"""Attention between documents: parts of a sequence, each of which sees some others, whole.

Unlike groups of `nn.mask`, documents differ in size, and may skip those in between.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class DocumentRule:
  """The attention rule that all samples share.

  Attributes:
    sizes: tokens of each document, in the order of the sequence.
    seen: for each document, the documents that its tokens see; it sees itself only if named.
  """

  sizes: tuple[int, ...]
  seen: tuple[tuple[int, ...], ...]

  @property
  def length(self) -> int:
    """`l`, number of tokens in the sequence."""
    return sum(self.sizes)

  @functools.cached_property
  def documents(self) -> Int[np.ndarray, "l"]:
    """Document of each token."""
    return np.repeat(np.arange(len(self.sizes)), self.sizes)

  @functools.cached_property
  def table(self) -> Bool[np.ndarray, "d d"]:
    """Whether the row's document sees the column's."""
    table = np.zeros((len(self.sizes),) * 2, bool)
    for row, seen in enumerate(self.seen):
      table[row, list(seen)] = True
    return table

  def visible(self, queries: slice = slice(None)) -> Bool[np.ndarray, "q l"]:
    """Returns the rule as a dense mask: which tokens each query sees."""
    return self.table[self.documents[queries]][:, self.documents]

  def seen_by(self, queries: slice) -> Bool[np.ndarray, "l"]:
    """Returns which tokens any of the queries sees."""
    return self.table[np.unique(self.documents[queries])].any(axis=0)[self.documents]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("is_present",),
  meta_fields=("rule", "backend"),
)
@dataclasses.dataclass(frozen=True)
class DocumentMask:
  """The attention mask of a batch, and the backend that applies it.

  Attributes:
    rule: the rule that all samples share.
    is_present: false on padding, which no token sees, and which sees nothing.
    backend: "dense" or "blocked", see `attention.attend`.
  """

  # JAX also puts other objects into the fields: shardings, placeholders.
  __no_type_check__ = True

  rule: DocumentRule
  is_present: Bool[Array, "b l"]
  backend: str = "dense"

  def mask(self) -> Bool[Array, "b l l"]:
    """Returns the dense mask."""
    return self.rule.visible() & self.is_present[:, None, :]

  def attends(self) -> Bool[Array, "b l"]:
    """Returns whether each token sees any; attention returns 0 for the others."""
    return self.is_present & self.rule.table.any(axis=1)[self.rule.documents]

  def part(
    self, query: int | Int[Array, ""], key: int | Int[Array, ""], size: int
  ) -> Bool[Array, "b q k"]:
    """Returns a tile of the dense mask that starts at (query, key); false beyond the sequence."""
    rest = (0, -self.rule.length % size)
    # A document more, of filler, that neither sees nor is seen.
    table = jnp.asarray(np.pad(self.rule.table, (0, 1)))
    documents = jnp.asarray(np.pad(self.rule.documents, rest, constant_values=len(table) - 1))
    is_present = jnp.pad(self.is_present, ((0, 0), rest))
    rows, columns = (jax.lax.dynamic_slice_in_dim(documents, start, size) for start in (query, key))
    seen = jnp.take(jnp.take(table, rows, axis=0), columns, axis=1)
    return seen & jax.lax.dynamic_slice_in_dim(is_present, key, size, axis=1)[:, None, :]
