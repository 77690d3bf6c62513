"""Attention by the splash kernel, which makes masks from indices and skips what they leave empty.

The kernel knows one integer a query and the key's index. So tokens are put in an order in which
what a query sees is at most three ranges: the prefix, what earlier groups show, and a piece of its
own group. What differs from sample to sample comes in otherwise: padding as segments, and groups
that are not kept as further channels of queries and keys, whose product is the addend -1e30 or 0.
That is exact, and costs the arithmetic of as many more channels as there are groups.

Source: jax.experimental.pallas.ops.tpu.splash_attention.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from videoar_jax.nn.mask import PREFIX, AttentionMask, BlockCausalMask
from videoar_jax.parallel.mesh import LOGICAL_AXIS_RULES, is_for_tpu, num_shards

_LANES = 128  # Tokens go through in blocks of a multiple of this.
_LARGE_BLOCK = 512
_ROWS = 16  # Of a tile of bfloat16.
_OWN_BITS = 21  # Of a query's integer; the group is above them.


def splash_attention(
  query: Float[Array, "b l n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
  attention_mask: AttentionMask,
) -> Float[Array, "b l n k"]:
  """Attends with the TPU kernel; elsewhere, it is interpreted, which is slow.

  Args:
    query: queries; those behind the rule's tokens are filling, as in `attention.attend`.
    key: keys.
    value: values.
    attention_mask: who sees whom.
  Raises:
    ValueError: the mesh splits heads in another way than keys' heads, or the sequence is too long.
  """
  rule, length = attention_mask.rule, query.shape[1]
  order, back = _order(rule, length)
  query = query / math.sqrt(query.shape[-1])
  if attention_mask.keep is not None:
    query, key = _with_keep(query, key, attention_mask)
  # What fills the sequence up is a segment of its own: nothing else sees it.
  filling = ((0, 0), (0, length - rule.length))
  padding = jnp.pad(attention_mask.padding(), filling, constant_values=2)
  if rule.summary:
    query, key, value, padding = (x[:, order] for x in (query, key, value, padding))
  rest = _padded_length(length) - length
  query, key, value = (
    jnp.pad(x, ((0, 0), (0, rest), (0, 0), (0, 0))).swapaxes(1, 2) for x in (query, key, value)
  )
  padding = jnp.pad(padding, ((0, 0), (0, rest)), constant_values=2)
  out = _sharded(query, key, value, padding, rule).swapaxes(1, 2)[:, :length]
  return out[:, back] if rule.summary else out


def filled_length(length: int, ways: int = 1) -> int:
  """Returns as how many tokens a sequence is to go through a model: as whole tiles.

  Rows that are no multiple of a tile would be copied out of place in every layer. Short sequences
  are not filled up as far as the kernel itself does it.

  Args:
    length: of the sequence.
    ways: parts that it is split into.
  """
  block = _LANES if length <= 16 * _LARGE_BLOCK else _LARGE_BLOCK
  block = math.lcm(block, _ROWS * ways)
  return -(-length // block) * block


def _padded_length(length: int) -> int:
  block = _LANES if length <= 4 * _LARGE_BLOCK else _LARGE_BLOCK
  return -(-length // block) * block


def _with_keep(query, key, attention_mask: AttentionMask):
  """Appends channels whose product is -1e30 where a query's group may not see the key's."""
  rule, groups = attention_mask.rule, np.maximum(attention_mask.rule.groups, 0)
  is_video = rule.groups[:, None] >= 0
  is_later = rule.groups[:, None] > np.arange(rule.num_groups)
  hidden = jnp.where(is_later & ~attention_mask.keep[:, groups], -1e30, 0.0).astype(query.dtype)
  which = (is_video & (groups[:, None] == np.arange(rule.num_groups))).astype(key.dtype)

  def append(x, channels):
    channels = jnp.pad(channels, ((0, 0), (0, x.shape[1] - rule.length), (0, 0), (0, 0)))
    return jnp.concatenate([x, jnp.broadcast_to(channels, (*x.shape[:3], rule.num_groups))], -1)

  return append(query, hidden[:, :, None]), append(key, which[None, :, None])


def _sharded(query, key, value, padding, rule: BlockCausalMask):
  """Runs the kernel, each device its samples and heads; the sequence is whole on each of them."""
  mesh = jax.sharding.get_abstract_mesh()
  ways = num_shards("attended_heads")
  if key.shape[1] % ways:
    raise ValueError(
      f"mesh.tensor x mesh.sequence={ways} does not divide {key.shape[1]} heads of keys"
    )
  kernel = _make_kernel(rule, query.shape[2], query.shape[1] // ways)

  def run(kernel, query, key, value, padding):
    segments = kernels.SegmentIds(q=padding, kv=padding)
    return jax.vmap(kernel)(query, key, value, segments)

  if mesh.empty:
    return run(kernel, query, key, value, padding)
  split = PartitionSpec(LOGICAL_AXIS_RULES["batch"], LOGICAL_AXIS_RULES["attended_heads"])
  batch = PartitionSpec(LOGICAL_AXIS_RULES["batch"])
  specs = (PartitionSpec(), split, split, split, batch)
  run = jax.shard_map(run, in_specs=specs, out_specs=split, check_vma=False)
  return run(kernel, query, key, value, padding)


def _make_kernel(rule: BlockCausalMask, length: int, num_heads: int):
  block = _LARGE_BLOCK if length % _LARGE_BLOCK == 0 else _LANES
  sizes = kernels.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  mask = masks.MultiHeadMask([_RuleMask(rule, length)] * num_heads)
  return kernels.make_splash_mha(
    mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=not is_for_tpu()
  )


def _order(rule: BlockCausalMask, length: int):
  """Returns which token stands at each place, and the place of each token, of a filled sequence.

  First what later groups see, in order, then the rest.
  """
  order = np.argsort(~rule.is_shown, kind="stable")
  order = np.concatenate([order, np.arange(rule.length, length)])
  return order, np.argsort(order)


class _RuleMask(masks._ComputableMask):
  """A rule of visibility, as the kernel wants it: a private class of JAX, used here alone.

  A query's integer is `-end` if it sees a prefix of all tokens, else its group above the number of
  tokens that it sees of its own group.
  """

  def __init__(self, rule: BlockCausalMask, length: int):
    if rule.length >= 2**_OWN_BITS or rule.num_groups >= 2 ** (31 - _OWN_BITS):
      raise ValueError(f"attention='splash': {rule.num_groups} groups of {rule.length} tokens")
    super().__init__((length, length), functools.partial(_sees, rule))
    self.rule = rule
    # What fills the last block sees all of its own kind, so that its softmax is defined.
    codes = np.concatenate([_codes(rule), np.full(length - rule.length, -length)])
    self.q_sequence = codes.astype(np.int32)

  def __getitem__(self, index):
    """Returns a part of the mask; most of a long sequence's are all true or all false."""
    queries, keys = index
    if _is_prefix_rule(self.rule):
      ends = -self.q_sequence[queries]
      is_full = ends.min() >= keys.stop
      if is_full or ends.max() <= keys.start:
        return _constant(bool(is_full), (len(ends), keys.stop - keys.start))
    return super().__getitem__(index)

  def __eq__(self, other):
    return isinstance(other, _RuleMask) and (self.rule, self.shape) == (other.rule, other.shape)

  def __hash__(self):
    return hash((self.rule, self.shape))


@functools.cache
def _constant(value: bool, shape: tuple[int, int]) -> np.ndarray:
  block = np.full(shape, value)
  block.flags.writeable = False
  return block


def _codes(rule: BlockCausalMask):
  """Returns each query's integer, in the kernel's order of tokens."""
  order, _ = _order(rule, rule.length)
  first, end = (ends[order] for ends in rule.own)
  groups = rule.groups[order]
  is_summary = rule.is_shown[order] & (rule.summary > 0)
  general = (np.maximum(groups, 0) << _OWN_BITS) | np.where(is_summary, 0, end - first)
  sees_prefix = groups == PREFIX
  if _is_prefix_rule(rule):
    sees_prefix = np.ones_like(sees_prefix)
  return np.where(sees_prefix, -end, general)


def _is_prefix_rule(rule: BlockCausalMask) -> bool:
  return rule.summary == 0 and rule.window is None


def _sees(rule: BlockCausalMask, code, key):
  """Says whether the query of that integer sees the key at that place; for NumPy and the kernel."""
  is_in_prefix = (code < 0) & (key < -code)
  if _is_prefix_rule(rule):
    return is_in_prefix
  group, num_own = code >> _OWN_BITS, code & (2**_OWN_BITS - 1)
  # A summary, of no own tokens, sees itself where the earlier ones end.
  shown_end = rule.prefix + (group + (num_own == 0)) * rule.shown_size
  is_shown = key < shown_end
  if rule.window is not None:
    first = (group > rule.window) * (group - rule.window)
    is_near = key >= rule.prefix + first * rule.shown_size
    is_shown = is_shown & (is_near | (key < rule.prefix))
  own = rule.prefix + (rule.num_groups - 1) * rule.summary + group * rule.group_size
  is_own = (key >= own) & (key < own + num_own)
  return is_in_prefix | ((code >= 0) & (is_shown | is_own))
