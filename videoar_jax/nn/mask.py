"""Who sees whom in a sequence: a rule of a few integers, and what differs from sample to sample.

The sequence is a prefix, then equal groups of blocks. A token of a group sees the prefix, what
earlier groups show, and its own group's blocks up to and with its own. What a group shows is all of
it, or, where a summary follows each group, the summary alone.

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
  """The rule that holds for every sample.

  Attributes:
    prefix: tokens that every group sees.
    is_prefix_causal: a token of the prefix sees what is up to it, not all of the prefix.
    num_groups: groups after the prefix.
    blocks: tokens of each block of a group.
    summary: tokens of the block between two groups, which sees the prefix, the summaries before it,
      and itself; 0 for none.
    window: earlier groups that a group sees; None for all.
  """

  prefix: int
  is_prefix_causal: bool
  num_groups: int
  blocks: tuple[int, ...]
  summary: int = 0
  window: int | None = None

  @property
  def group_size(self) -> int:
    """Tokens of a group without its summary."""
    return sum(self.blocks)

  @property
  def stride(self) -> int:
    """Tokens from a group's first one to the next group's."""
    return self.group_size + self.summary

  @property
  def shown_size(self) -> int:
    """Tokens of a group that later ones see."""
    return self.summary or self.group_size

  @property
  def length(self) -> int:
    """`l`, tokens of the whole sequence."""
    return self.prefix + self.num_groups * self.stride - self.summary

  @functools.cached_property
  def groups(self) -> Int[np.ndarray, "l"]:
    """Group of each token."""
    groups = np.repeat(np.arange(self.num_groups), self.stride)
    return np.concatenate([np.full(self.prefix, PREFIX), groups])[: self.length]

  @functools.cached_property
  def is_shown(self) -> Bool[np.ndarray, "l"]:
    """Whether later groups see a token."""
    shown = np.arange(self.stride) >= self.stride - self.shown_size
    return np.concatenate([np.ones(self.prefix, bool), np.tile(shown, self.num_groups)])[
      : self.length
    ]

  @functools.cached_property
  def own(self) -> tuple[Int[np.ndarray, "l"], Int[np.ndarray, "l"]]:
    """First and one past the last position that each token sees of its own group."""
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
    """Returns where a group and its summary lie."""
    start = self.prefix + group * self.stride
    return slice(start, min(start + self.stride, self.length))

  def shown_slices(self, group: int) -> tuple[slice, ...]:
    """Returns where lies what a group sees of earlier ones, in as few slices as hold it."""
    groups = range(self.first_seen(group), group)
    if self.summary or not groups:
      ends = [self.slice_of(earlier).stop for earlier in groups]
      return tuple(slice(end - self.summary, end) for end in ends)
    return (slice(self.slice_of(groups[0]).start, self.slice_of(groups[-1]).stop),)

  def visible(self, queries: slice = slice(None)) -> Bool[np.ndarray, "q l"]:
    """Returns the rule written out: which tokens each query sees."""
    position, (first, end) = np.arange(self.length), self.own
    query, group = self.groups[queries, None], self.groups[None]
    is_own = (first[queries, None] <= position) & (position < end[queries, None])
    is_near = (group == PREFIX) | (self.window is None or group >= query - (self.window or 0))
    return is_own | (self.is_shown & (group < query) & is_near)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("prefix_mask", "keep"),
  meta_fields=("rule", "backend"),
)
@dataclasses.dataclass(frozen=True)
class AttentionMask:
  """What a batch's tokens may see, and by which code attention finds out.

  Attributes:
    rule: what holds for every sample.
    prefix_mask: false on padding, which nothing sees but padding.
    keep: whether group i (axis 1) may see the earlier group j (axis 2); None for all.
    backend: see `attention.attend`.
  """

  # JAX puts what is no array into the fields as well: shardings, placeholders.
  __no_type_check__ = True

  rule: BlockCausalMask
  prefix_mask: Bool[Array, "b p"]
  keep: Bool[Array, "b t t"] | None = None
  backend: str = "dense"

  def keys_of(self, group: int) -> Bool[Array, "b k"]:
    """Returns which keys are there for a group: the prefix, what earlier groups show, its own."""
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
    """Returns all of it written out."""
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
    """Returns a square of it, from a query and a key on; beyond the sequence nothing is seen."""
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
