"""Attention with the splash kernel, which computes masks from indices and skips empty blocks.

The kernel's mask function gets one integer per query, and the key's index. So tokens are reordered
such that a query sees at most three ranges: the prefix, the visible tokens of earlier groups, and a
part of its own group. What differs between samples is passed in other ways: padding as segment ids,
and `keep` as extra channels of queries and keys, whose product adds -1e30 or 0 to the score. That
is exact, and costs the arithmetic of one extra channel per group.

Source: jax.experimental.pallas.ops.tpu.splash_attention.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from videoar_jax.nn.mask import PREFIX, AttentionMask, BlockCausalMask
from videoar_jax.parallel import compat
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES, is_for_tpu, num_shards

_LANES = 128  # Block sizes are multiples of this many tokens.
_LARGE_BLOCK = 512
_ROWS = 16  # Rows of a bfloat16 tile.
_OWN_BITS = 21  # Low bits of a query's integer; the group is in the bits above.


def splash_attention(
  query: Float[Array, "b l n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
  attention_mask: AttentionMask,
) -> Float[Array, "b l n k"]:
  """Computes attention with the TPU kernel; on other devices it is interpreted, which is slow.

  Args:
    query: queries; tokens beyond the mask's length are filler, as in `attention.attend`.
    key: keys.
    value: values.
    attention_mask: the mask.
  Raises:
    ValueError: the mesh does not divide the key heads, or the sequence is too long.
    ImportError: the installed JAX has moved or removed the kernel.
  """
  rule, length = attention_mask.rule, query.shape[1]
  order, back = _order(rule, length)
  query = query / math.sqrt(query.shape[-1])
  if attention_mask.keep is not None:
    query, key = _with_keep(query, key, attention_mask)
  # Filler tokens have a segment of their own: no other token sees them.
  filling = ((0, 0), (0, length - rule.length))
  padding = jnp.pad(attention_mask.padding(), filling, constant_values=2)
  padding = jnp.broadcast_to(padding, (len(query), length))
  if rule.summary:
    query, key, value, padding = (x[:, order] for x in (query, key, value, padding))
  rest = _padded_length(length) - length
  query, key, value = (
    jnp.pad(x, ((0, 0), (0, rest), (0, 0), (0, 0))).swapaxes(1, 2) for x in (query, key, value)
  )
  padding = jnp.pad(padding, ((0, 0), (0, rest)), constant_values=2)
  out = _sharded(query, key, value, padding, rule).swapaxes(1, 2)[:, :length]
  return out[:, back] if rule.summary else out


def filled_length(length: int, num_sequence_shards: int = 1) -> int:
  """Returns the sequence length to run a model at: padded to whole tiles.

  Otherwise every layer would copy the sequence to pad it. Short sequences are padded less than the
  kernel itself pads them.

  Args:
    length: number of tokens.
    num_sequence_shards: number of shards of the sequence.
  """
  block = _LANES if length <= 16 * _LARGE_BLOCK else _LARGE_BLOCK
  block = math.lcm(block, _ROWS * num_sequence_shards)
  return -(-length // block) * block


def _padded_length(length: int) -> int:
  block = _LANES if length <= 4 * _LARGE_BLOCK else _LARGE_BLOCK
  return -(-length // block) * block


def _with_keep(query, key, attention_mask: AttentionMask):
  """Appends channels whose product is -1e30 where a query's group may not see the key's group."""
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
  """Runs the kernel on each device's samples and heads; the sequence is not sharded here."""
  mesh = jax.sharding.get_abstract_mesh()
  num_head_shards = num_shards("attended_heads")
  if key.shape[1] % num_head_shards:
    raise ValueError(
      f"mesh.tensor x mesh.sequence={num_head_shards} does not divide {key.shape[1]} key heads"
    )
  kernel = _make_kernel(rule, query.shape[2], query.shape[1] // num_head_shards)
  make_segments = compat.splash_attention().kernels.SegmentIds

  def run(kernel, query, key, value, padding):
    segments = make_segments(q=padding, kv=padding)
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
  splash = compat.splash_attention()
  sizes = splash.kernels.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  mask = splash.masks.MultiHeadMask([make_mask(rule, length)] * num_heads)
  return splash.kernels.make_splash_mha(
    mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=not is_for_tpu()
  )


def _order(rule: BlockCausalMask, length: int):
  """Returns the kernel's order of tokens, as a permutation and its inverse.

  First the tokens that later groups see, in order, then the rest, then filler up to `length`.
  """
  order = np.argsort(~rule.is_shown, kind="stable")
  order = np.concatenate([order, np.arange(rule.length, length)])
  return order, np.argsort(order)


def make_mask(rule: BlockCausalMask, length: int):
  """Returns an attention rule as a mask object of the kernel.

  Args:
    rule: the attention rule.
    length: length of the padded sequence.
  Raises:
    ValueError: the sequence is too long.
    ImportError: the installed JAX has moved or removed such masks.
  """
  return _mask_class()(rule, length)


@functools.cache
def _mask_class() -> type:
  """Returns `_RuleMask` as a subclass of the kernel's mask class, which is private to JAX."""
  return type("RuleMask", (_RuleMask, compat.splash_attention().ComputableMask), {})


class _RuleMask:
  """The part of the mask class that is ours.

  A query's integer is `-end` if it sees the tokens before `end`. Else its low bits are the number
  of tokens that it sees in its own group, and its high bits are the group.
  """

  def __init__(self, rule: BlockCausalMask, length: int):
    if rule.length >= 2**_OWN_BITS or rule.num_groups >= 2 ** (31 - _OWN_BITS):
      raise ValueError(
        f"attention='splash' supports fewer than {2 ** (31 - _OWN_BITS)} groups and "
        f"{2**_OWN_BITS} tokens; the sequence has {rule.num_groups} groups and {rule.length} tokens"
      )
    super().__init__((length, length), functools.partial(_sees, rule))
    self.rule = rule
    # Filler tokens see all other filler, so that their softmax is defined.
    codes = np.concatenate([_codes(rule), np.full(length - rule.length, -length)])
    self.q_sequence = codes.astype(np.int32)

  def __getitem__(self, index):
    """Returns a part of the mask; for long sequences most parts are constant, and shared."""
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
  """Returns whether a query, by its integer, sees a key, by its index; for NumPy and the kernel."""
  is_in_prefix = (code < 0) & (key < -code)
  if _is_prefix_rule(rule):
    return is_in_prefix
  group, num_own = code >> _OWN_BITS, code & (2**_OWN_BITS - 1)
  # A summary has no tokens of its own group: it sees the visible tokens up to and with itself.
  shown_end = rule.prefix + (group + (num_own == 0)) * rule.shown_size
  is_shown = key < shown_end
  if rule.window is not None:
    first = (group > rule.window) * (group - rule.window)
    is_near = key >= rule.prefix + first * rule.shown_size
    is_shown = is_shown & (is_near | (key < rule.prefix))
  own = rule.prefix + (rule.num_groups - 1) * rule.summary + group * rule.group_size
  is_own = (key >= own) & (key < own + num_own)
  return is_in_prefix | ((code >= 0) & (is_shown | is_own))
