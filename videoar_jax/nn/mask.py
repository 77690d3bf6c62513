"""Attention masks: a block-causal rule of a few integers, and what differs between samples.

A sequence is a prefix, then groups of equal size, each divided into blocks. A token of a group sees
(may attend to) the prefix, the visible tokens of earlier groups, and its own group's blocks up to
and including its own. A group's visible tokens are all of them or, with summaries, only the summary
block that follows the group.

`[prefix | group 0: block 0, block 1, ... (summary) | group 1: ... | last group, no summary]`
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

PREFIX = -1  # Group of a token of the prefix.


@dataclasses.dataclass(frozen=True)
class BlockCausalMask:
  """The attention rule that all samples share.

  Attributes:
    prefix: number of prefix tokens, which every group sees.
    is_prefix_causal: a prefix token sees the prefix up to itself, not all of it.
    num_groups: groups after the prefix.
    blocks: number of tokens in each block of a group.
    summary: tokens of the summary block between two groups, which sees the prefix, the summaries
      before it, and itself; 0 for none.
    window: number of earlier groups that a group sees; None for all.
  """

  prefix: int
  is_prefix_causal: bool
  num_groups: int
  blocks: tuple[int, ...]
  summary: int = 0
  window: int | None = None

  @property
  def group_size(self) -> int:
    """Number of tokens in a group, without its summary."""
    return sum(self.blocks)

  @property
  def stride(self) -> int:
    """Number of tokens from a group's first token to the next group's."""
    return self.group_size + self.summary

  @property
  def shown_size(self) -> int:
    """Number of a group's tokens that later groups see."""
    return self.summary or self.group_size

  @property
  def length(self) -> int:
    """`l`, number of tokens in the sequence."""
    return self.prefix + self.num_groups * self.stride - self.summary

  @functools.cached_property
  def groups(self) -> Int[np.ndarray, "l"]:
    """Group index of each token; `PREFIX` for the prefix."""
    groups = np.repeat(np.arange(self.num_groups), self.stride)
    return np.concatenate([np.full(self.prefix, PREFIX), groups])[: self.length]

  @functools.cached_property
  def is_shown(self) -> Bool[np.ndarray, "l"]:
    """Whether later groups see each token."""
    shown = np.arange(self.stride) >= self.stride - self.shown_size
    return np.concatenate([np.ones(self.prefix, bool), np.tile(shown, self.num_groups)])[
      : self.length
    ]

  @functools.cached_property
  def own(self) -> tuple[Int[np.ndarray, "l"], Int[np.ndarray, "l"]]:
    """Start and end (exclusive) of the positions that each token sees in its own group."""
    ends = np.repeat(np.cumsum(self.blocks), self.blocks)
    group = (
      np.concatenate([np.zeros(self.group_size, int), np.full(self.summary, self.group_size)]),
      np.concatenate([ends, np.full(self.summary, self.stride)]),
    )
    starts = self.prefix + self.stride * np.arange(self.num_groups)[:, None]
    first, end = ((starts + offsets).reshape(-1) for offsets in group)
    prefix_end = np.full(self.prefix, self.prefix)
    if self.is_prefix_causal:
      prefix_end = np.arange(self.prefix) + 1
    first = np.concatenate([np.zeros(self.prefix, int), first])[: self.length]
    return first, np.concatenate([prefix_end, end])[: self.length]

  def first_seen(self, group: int) -> int:
    """Returns the earliest group that a group sees."""
    return 0 if self.window is None else max(0, group - self.window)

  def slice_of(self, group: int) -> slice:
    """Returns the slice of a group and its summary."""
    start = self.prefix + group * self.stride
    return slice(start, min(start + self.stride, self.length))

  def shown_slices(self, group: int) -> tuple[slice, ...]:
    """Returns the slices of the earlier groups' tokens that a group sees; as few as possible."""
    groups = range(self.first_seen(group), group)
    if self.summary or not groups:
      ends = [self.slice_of(earlier).stop for earlier in groups]
      return tuple(slice(end - self.summary, end) for end in ends)
    return (slice(self.slice_of(groups[0]).start, self.slice_of(groups[-1]).stop),)

  def visible(self, queries: slice = slice(None)) -> Bool[np.ndarray, "q l"]:
    """Returns the rule as a dense mask: which tokens each query sees."""
    position, (first, end) = np.arange(self.length), self.own
    query, group = self.groups[queries, None], self.groups[None]
    is_own = (first[queries, None] <= position) & (position < end[queries, None])
    is_near = (group == PREFIX) | (self.window is None or group >= query - (self.window or 0))
    return is_own | (self.is_shown & (group < query) & is_near)

  def seen_by(self, queries: slice) -> Bool[np.ndarray, "l"]:
    """Returns which tokens any of the queries sees."""
    return self.visible(queries).any(axis=0)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("prefix_mask", "keep"),
  meta_fields=("rule", "backend"),
)
@dataclasses.dataclass(frozen=True)
class AttentionMask:
  """The attention mask of a batch, and the backend that applies it.

  Attributes:
    rule: the rule that all samples share.
    prefix_mask: false on padding, which only padding sees.
    keep: whether group i (axis 1) may see the earlier group j (axis 2); None for all.
    backend: see `attention.attend`.
  """

  # JAX also puts other objects into the fields: shardings, placeholders.
  __no_type_check__ = True

  rule: BlockCausalMask
  prefix_mask: Bool[Array, "b p"]
  keep: Bool[Array, "b t t"] | None = None
  backend: str = "dense"

  def keys_of(self, group: int) -> Bool[Array, "b k"]:
    """Returns which keys a group may see: of the prefix, of earlier groups, and its own."""
    rule = self.rule
    first, own = rule.first_seen(group), rule.slice_of(group)
    earlier = jnp.ones((len(self.prefix_mask), (group - first) * rule.shown_size), bool)
    if self.keep is not None:
      earlier = jnp.repeat(self.keep[:, group, first:group], rule.shown_size, axis=1)
    present = jnp.ones((len(self.prefix_mask), own.stop - own.start), bool)
    return jnp.concatenate([self.prefix_mask, earlier, present], axis=1)

  def padding(self) -> Int[Array, "b l"]:
    """Returns 1 for each token, 0 for padding."""
    rest = ((0, 0), (0, self.rule.length - self.rule.prefix))
    return jnp.pad(self.prefix_mask.astype(jnp.int32), rest, constant_values=1)

  def mask(self) -> Bool[Array, "b l l"]:
    """Returns the dense mask."""
    rule, padding = self.rule, self.padding()
    mask = rule.visible() & (padding[:, :, None] == padding[:, None, :])
    if self.keep is not None:
      groups = np.maximum(rule.groups, 0)
      is_earlier = (rule.groups[:, None] > rule.groups) & (rule.groups != PREFIX)
      mask = mask & (self.keep[:, groups[:, None], groups] | ~is_earlier)
    return mask

  def part(
    self, query: int | Int[Array, ""], key: int | Int[Array, ""], size: int
  ) -> Bool[Array, "b q k"]:
    """Returns a tile of the dense mask that starts at (query, key); false beyond the sequence."""
    rule = self.rule
    length = -(-rule.length // size) * size
    rest = (0, length - rule.length)

    def rows(x, start):
      return jax.lax.dynamic_slice_in_dim(x, start, size, axis=-1)

    first, end = (rows(jnp.asarray(np.pad(x, rest)), query)[:, None] for x in rule.own)
    groups, is_shown = (jnp.asarray(np.pad(x, rest)) for x in (rule.groups, rule.is_shown))
    own_group, group = rows(groups, query)[:, None], rows(groups, key)
    position = key + jnp.arange(size)
    is_earlier = (group < own_group) & rows(is_shown, key)
    is_near = group >= own_group - (rule.num_groups if rule.window is None else rule.window)
    seen = is_earlier & (is_near | (group == PREFIX))
    padding = jnp.pad(self.padding(), ((0, 0), rest))
    mask = (first <= position) & (position < end) | seen
    mask = mask & (rows(padding, query)[:, :, None] == rows(padding, key)[:, None, :])
    if self.keep is not None:
      kept = jnp.take(self.keep, jnp.maximum(own_group[:, 0], 0), axis=1)
      kept = jnp.take(kept, jnp.maximum(group, 0), axis=2)
      mask = mask & (kept | (group == PREFIX) | (group >= own_group))
    return mask
