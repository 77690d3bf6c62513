"""Grouped-query attention over arrays, with several backends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from videoar_jax.nn.documents import DocumentMask, DocumentRule
from videoar_jax.nn.layers import product
from videoar_jax.nn.mask import AttentionMask, BlockCausalMask
from videoar_jax.nn.splash import splash_attention

BACKENDS = ("dense", "blocked", "splash")
# Attention scores per head and sample to hold at once; beyond, they are computed in tiles with
# sides of _CHUNK tokens.
_MAX_SCORES = 2**20
_CHUNK = 256
Mask = AttentionMask | DocumentMask


def attend(
  query: Float[Array, "b l n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
  attention_mask: Mask,
) -> Float[Array, "b l n k"]:
  """Masked softmax self-attention.

  Args:
    query: queries. Tokens beyond the mask's length are filler: no other token attends to them, and
      their outputs are meaningless.
    key: keys.
    value: values.
    attention_mask: the mask and its backend: "dense" computes all scores at once; "blocked" attends
      from each group to the keys it can see, or in tiles of scores if there are many; "splash" is
      the TPU kernel, which has no masks of documents.
  Raises:
    ValueError: the sequence is shorter than the mask, or the backend is unknown or lacks the mask.
  """
  length, added = attention_mask.rule.length, query.shape[1] - attention_mask.rule.length
  if added < 0:
    raise ValueError(f"{query.shape[1]} tokens, but the attention mask is for {length}")
  if attention_mask.backend not in BACKENDS:
    raise ValueError(
      f"attention={attention_mask.backend!r} is unknown; backends are {', '.join(BACKENDS)}"
    )
  if attention_mask.backend == "splash" and isinstance(attention_mask, DocumentMask):
    raise ValueError("attention='splash' has no masks of documents; set 'blocked'")
  if attention_mask.backend == "splash":
    return splash_attention(query, key, value, attention_mask)
  query, key, value = (x[:, :length] for x in (query, key, value))
  if isinstance(attention_mask, DocumentMask):
    if attention_mask.backend == "blocked" and length**2 > _MAX_SCORES:
      out = _chunked(query, key, value, attention_mask)
    else:
      out = attention(query, key, value, attention_mask.mask())
    # The softmax of a token that sees nothing would be a mean over all keys.
    out = jnp.where(attention_mask.attends()[:, :, None, None], out, 0)
  elif attention_mask.backend == "dense":
    out = attention(query, key, value, attention_mask.mask())
  else:
    out = _blocked(query, key, value, attention_mask)
  return jnp.pad(out, ((0, 0), (0, added), (0, 0), (0, 0)))


def attention(
  query: Float[Array, "b q n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
  mask: Bool[Array, "#b #q l"],
) -> Float[Array, "b q n k"]:
  """Softmax attention; heads `n` share the `g` key and value heads in equal groups.

  Args:
    query: queries.
    key: keys.
    value: values.
    mask: true where a query may attend; every query needs at least one such key.
  """
  query, key, value = _heads_first(query, key, value)
  return _tokens_first(_softmax(query, key, value, mask))


def _heads_first(query, key, value):
  """Returns `[b, g, r, q, k]` and `[b, g, l, k]`: on CPU, others are multiplied half as fast."""
  query = rearrange(query / math.sqrt(query.shape[-1]), "b q (g r) k -> b g r q k", g=key.shape[2])
  return query, *(rearrange(x, "b l g k -> b g l k") for x in (key, value))


def _tokens_first(out: Float[Array, "b g r q k"]) -> Float[Array, "b q n k"]:
  return rearrange(out, "b g r q k -> b q (g r) k")


@jax.custom_vjp
def _softmax(query, key, value, mask: Bool[Array, "#b #q l"]):
  """Computes attention with heads first and scaled queries.

  The gradient is hand-written: autodiff passes over the weights more often, and on CPU XLA also
  transposes them for the products with keys and values, which takes 50% more time in all.
  """
  return _softmax_forward(query, key, value, mask)[0]


def _softmax_forward(query, key, value, mask):
  b, g, r, q, _ = query.shape
  # Added to the scores: on CPU, XLA is 50% slower with `where` on them.
  hidden = jnp.where(mask, 0.0, -1e30)[:, None, None]
  scores = product("bgqk,bglk->bgql", query.reshape(b, g, r * q, -1), key)
  scores = (scores.reshape(b, g, r, q, -1) + hidden).reshape(scores.shape)
  weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights.astype(value.dtype)
  out = product("bgql,bglk->bgqk", weights, value) / total
  return out.astype(value.dtype).reshape(query.shape), (query, key, value, weights, total, out)


def _softmax_backward(kept, gradient):
  query, key, value, weights, total, out = kept
  by_out = gradient.reshape(out.shape) / total
  means = jnp.sum(by_out * out, axis=-1, keepdims=True)
  by_out, rows = by_out.astype(query.dtype), query.reshape(out.shape)
  by_weights = product("bgqk,bglk->bgql", by_out, value)
  by_scores = (weights * (by_weights - means)).astype(query.dtype)
  by_query = product("bgql,bglk->bgqk", by_scores, key).reshape(query.shape)
  # In this order, the small operand is transposed, not the weights.
  by_key = product("bgqk,bgql->bgkl", rows, by_scores).swapaxes(2, 3)
  by_value = product("bgqk,bgql->bgkl", by_out, weights).swapaxes(2, 3)
  return *(x.astype(query.dtype) for x in (by_query, by_key, by_value)), None


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _blocked(query, key, value, attention_mask: AttentionMask):
  rule = attention_mask.rule
  last = rule.num_groups - 1
  if rule.stride * sum(x.stop - x.start for x in _seen_slices(rule, last)) > _MAX_SCORES:
    return _chunked(query, key, value, attention_mask)
  query, key, value = _heads_first(query, key, value)
  prefix = slice(0, rule.prefix)
  mask = rule.visible(prefix)[:, prefix]
  mask = mask & (attention_mask.prefix_mask[:, :, None] == attention_mask.prefix_mask[:, None, :])
  # Split, not slice: the gradient of each slice would be as long as the sequence.
  starts = [rule.slice_of(group).start for group in range(rule.num_groups)]
  first, *queries = jnp.split(query, starts, axis=3)
  cut_key, cut_value = (_Segments(x, rule) for x in (key, value))
  parts = [_softmax(first, cut_key.join(prefix), cut_value.join(prefix), mask)]
  for group, rows in enumerate(queries):
    slices, own = _seen_slices(rule, group), rule.slice_of(group)
    keys, values = (x.join(*slices) for x in (cut_key, cut_value))
    position, before = np.arange(keys.shape[2]), keys.shape[2] - rows.shape[3]
    first, end = (places[own, None] - own.start + before for places in rule.own)
    is_own = (first <= position) & (position < end)
    # A query sees every present key before its own group.
    mask = attention_mask.keys_of(group)[:, None] & ((position < before) | is_own)
    parts.append(_softmax(rows, keys, values, mask))
  return _tokens_first(jnp.concatenate(parts, axis=3))


class _Segments:
  """Keys or values `[b, g, l, k]`, cut where a slice begins or ends that some group sees."""

  def __init__(self, x: Float[Array, "b g l k"], rule: BlockCausalMask):
    groups = (_seen_slices(rule, group) for group in range(rule.num_groups))
    edges = {edge for parts in groups for part in parts for edge in (part.start, part.stop)}
    self.edges = sorted(edges | {0, x.shape[2]})
    self.parts = jnp.split(x, self.edges[1:-1], axis=2)

  def join(self, *slices: slice) -> Float[Array, "b g s k"]:
    """Returns slices, one after the other."""
    found = [
      self.parts[i]
      for part in slices
      for i in range(self.edges.index(part.start), self.edges.index(part.stop))
    ]
    return jnp.concatenate(found, axis=2)


def _seen_slices(rule: BlockCausalMask, group: int) -> tuple[slice, ...]:
  """Returns the slices of the tokens that a group may see, the group itself last."""
  return (slice(0, rule.prefix), *rule.shown_slices(group), rule.slice_of(group))


@jax.custom_vjp
def _chunked(query, key, value, attention_mask: Mask):
  """Computes attention one tile of scores at a time, skipping tiles that are fully masked.

  For the gradient it keeps only the arguments, the result, and each row's log-sum-exp.
  """
  return _chunked_forward(query, key, value, attention_mask)[0]


def _chunked_forward(query, key, value, attention_mask):
  queries, keys, values = _cut(query, key.shape[2]), _cut(key), _cut(value)

  def step(carry, pair):
    i, j = pair
    highest, total, out = (x[i] for x in carry)
    scores = _scores(queries[i], keys[j], attention_mask, i, j)
    new = jnp.maximum(highest, jnp.max(scores, axis=-1))
    weights, scale = jnp.exp(scores - new[..., None]), jnp.exp(highest - new)
    total = total * scale + jnp.sum(weights, axis=-1)
    more = product("bgrql,bglk->bgrqk", weights.astype(value.dtype), values[j])
    out = out * scale[..., None] + more
    return tuple(x.at[i].set(y) for x, y in zip(carry, (new, total, out), strict=True)), None

  rows = jnp.zeros(queries.shape[:-1])
  carry = rows - 1e30, rows, jnp.zeros(queries.shape)
  (highest, total, out), _ = jax.lax.scan(step, carry, _pairs(attention_mask.rule))
  total = jnp.maximum(total, 1e-30)  # Filler rows of the last chunk see nothing.
  out = out / total[..., None]
  log_total = highest + jnp.log(total)
  whole = _join(out, query.shape).astype(query.dtype)
  return whole, (query, key, value, attention_mask, out, log_total)


def _chunked_backward(kept, gradient):
  query, key, value, attention_mask, out, log_total = kept
  queries, keys, values = _cut(query, key.shape[2]), _cut(key), _cut(value)
  gradients = _cut(gradient, key.shape[2])
  means = jnp.sum(gradients * out, axis=-1)

  def step(carry, pair):
    i, j = pair
    by_query, by_key, by_value = carry
    scores = _scores(queries[i], keys[j], attention_mask, i, j)
    weights = jnp.exp(scores - log_total[i][..., None])
    by_weights = product("bgrqk,bglk->bgrql", gradients[i], values[j])
    by_scores = weights * (by_weights - means[i][..., None]) / math.sqrt(query.shape[-1])
    by_scores, weights = (x.astype(query.dtype) for x in (by_scores, weights))
    by_query = by_query.at[i].add(product("bgrql,bglk->bgrqk", by_scores, keys[j]))
    by_key = by_key.at[j].add(product("bgrql,bgrqk->bglk", by_scores, queries[i]))
    by_value = by_value.at[j].add(product("bgrql,bgrqk->bglk", weights, gradients[i]))
    return (by_query, by_key, by_value), None

  zeros = tuple(jnp.zeros(x.shape) for x in (queries, keys, values))
  sums, _ = jax.lax.scan(step, zeros, _pairs(attention_mask.rule))
  joined = (_join(x, y.shape).astype(y.dtype) for x, y in zip(sums, kept, strict=False))
  return *joined, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _cut(x: Float[Array, "b l n k"], num_kv_heads: int | None = None):
  """Returns chunks of the sequence, `[c, b, g, r, rows, k]`; without `r` for keys and values."""
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _CHUNK), (0, 0), (0, 0)))
  if num_kv_heads is None:
    return rearrange(x, "b (c l) g k -> c b g l k", l=_CHUNK)
  return rearrange(x, "b (c l) (g r) k -> c b g r l k", l=_CHUNK, g=num_kv_heads)


def _join(chunks, shape):
  """Undoes `_cut`."""
  if chunks.ndim == 5:
    return rearrange(chunks, "c b g l k -> b (c l) g k")[:, : shape[1]]
  return rearrange(chunks, "c b g r l k -> b (c l) (g r) k")[:, : shape[1]]


def _scores(query, key, attention_mask: Mask, i, j):
  """Returns the masked scores of a chunk of queries with a chunk of keys."""
  mask = attention_mask.part(i * _CHUNK, j * _CHUNK, _CHUNK)
  scores = product("bgrqk,bglk->bgrql", query, key) / math.sqrt(query.shape[-1])
  return scores + jnp.where(mask, 0.0, -1e30)[:, None, None]


def _pairs(rule: BlockCausalMask | DocumentRule) -> tuple[np.ndarray, np.ndarray]:
  """Returns the indices (of queries, of keys) of all pairs of chunks that are not fully masked."""
  num = -(-rule.length // _CHUNK)
  pairs = []
  for i in range(num):
    seen = rule.seen_by(slice(i * _CHUNK, (i + 1) * _CHUNK))
    seen = np.pad(seen, (0, num * _CHUNK - rule.length)).reshape(num, _CHUNK).any(axis=1)
    pairs += [(i, j) for j in np.flatnonzero(seen)]
  queries, keys = np.array(pairs, np.int32).T
  return queries, keys
