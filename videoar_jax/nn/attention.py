"""Attention over arrays, with grouped key and value heads, by one of several backends."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from videoar_jax.nn.splash import splash_attention
from videoar_jax.nn.visibility import Sight

BACKENDS = ("dense", "blocked", "splash")
# Scores of a head and sample that are held at once; more go through in parts.
_MAX_SCORES = 2**20
_MIN_ROWS = 128


def attend(
  query: Float[Array, "b l n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
  sight: Sight,
) -> Float[Array, "b l n k"]:
  """Softmax attention of a sequence to itself, as far as each token sees.

  Args:
    query: queries.
    key: keys.
    value: values.
    sight: who sees whom. Its backend is "dense", all scores at once; "blocked", each group over
      what it may see, a part of its scores at a time; "splash", a kernel for TPU.
  Raises:
    ValueError: the sequence is not as long as the rule says, or the backend is unknown.
  """
  if query.shape[1] != sight.rule.length:
    raise ValueError(f"{query.shape[1]} tokens, but the rule is for {sight.rule.length}")
  if sight.backend == "dense":
    return attention(query, key, value, sight.mask())
  if sight.backend == "blocked":
    return _blocked(query, key, value, sight)
  if sight.backend == "splash":
    return splash_attention(query, key, value, sight)
  raise ValueError(f"attention={sight.backend!r} is unknown; backends are {', '.join(BACKENDS)}")


def attention(
  query: Float[Array, "b q n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
  mask: Bool[Array, "#b q l"],
) -> Float[Array, "b q n k"]:
  """Softmax attention; heads `n` share the `g` key and value heads in equal groups.

  Args:
    query: queries.
    key: keys.
    value: values.
    mask: true where a query may attend; every query needs one such key.
  """
  b, q, n, k = query.shape
  groups = key.shape[2]
  # Batch and head first: XLA on CPU multiplies these matrices half as fast otherwise.
  grouped = query.reshape(b, q, groups, n // groups, k).transpose(0, 2, 3, 1, 4)
  keys, values = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
  scores = jnp.einsum("bgrqk,bglk->bgrql", grouped / math.sqrt(k), keys).astype(jnp.float32)
  # An addend, since XLA on CPU takes half as long again for a choice and its gradient.
  hidden = jnp.where(mask, 0.0, -1e30)
  weights = jax.nn.softmax(scores + hidden[:, None, None], axis=-1).astype(value.dtype)
  out = jnp.einsum("bgrql,bglk->bgrqk", weights, values)
  return out.transpose(0, 3, 1, 2, 4).reshape(b, q, n, k)


def _blocked(query, key, value, sight: Sight):
  rule = sight.rule
  prefix = slice(0, rule.prefix)
  mask = rule.visible(prefix)[:, prefix]
  mask = mask & (sight.prefix_mask[:, :, None] == sight.prefix_mask[:, None, :])
  # Split, not sliced: the gradient of each slice would be as long as the sequence.
  starts = [rule.slice_of(group).start for group in range(rule.num_groups)]
  first, *queries = jnp.split(query, starts, axis=1)
  parts = [attention(first, key[:, prefix], value[:, prefix], mask)]
  for group, rows in enumerate(queries):
    part, key, value = _attend_from(group, rows, key, value, sight)
    parts.append(part)
  return jnp.concatenate(parts, axis=1)


def _attend_from(group: int, query, key, value, sight: Sight):
  """Attends from one group, in parts of its rows where all scores would be too many.

  Keys and values are returned as well, for the next group: so gradients add up from one group to
  the one before it, and those of all keys are there once.
  """
  rule, own = sight.rule, sight.rule.slice_of(group)
  slices = (slice(0, rule.prefix), *rule.shown_slices(group), own)
  width = sum(part.stop - part.start for part in slices)
  num = own.stop - own.start
  # What lies before its own group, a query sees all of, where it is there.
  before, position = width - num, np.arange(width)
  is_there = sight.keys_of(group)[:, None]
  first, end = (places[own] - own.start + before for places in rule.own)

  def attend_rows(query, key, value, first, end, is_there):
    keys, values = (jnp.concatenate([x[:, part] for part in slices], axis=1) for x in (key, value))
    is_own = (first[:, None] <= position) & (position < end[:, None])
    return attention(query, keys, values, is_there & ((position < before) | is_own))

  if num * width <= _MAX_SCORES:
    return attend_rows(query, key, value, first, end, is_there), key, value
  rows = max(_MIN_ROWS, _MAX_SCORES // width)
  rest = -num % rows
  query = jnp.pad(query, ((0, 0), (0, rest), (0, 0), (0, 0)))
  query = jnp.moveaxis(query.reshape(len(query), -1, rows, *query.shape[2:]), 1, 0)
  first, end = (jnp.pad(x, (0, rest), mode="edge").reshape(-1, rows) for x in (first, end))
  out, key, value = _in_parts(attend_rows, query, key, value, first, end, is_there)
  out = jnp.moveaxis(out, 0, 1)
  return out.reshape(len(out), -1, *out.shape[3:])[:, :num], key, value


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_parts(attend_rows, query, key, value, first, end, is_there):
  """Attends from one part of the rows after the other; no scores are kept for the gradient."""
  parts = (query, first, end)
  out = jax.lax.map(lambda part: attend_rows(part[0], key, value, *part[1:], is_there), parts)
  return out, key, value


def _in_parts_forward(attend_rows, *arguments):
  return _in_parts(attend_rows, *arguments), arguments


def _in_parts_backward(attend_rows, arguments, gradients):
  query, key, value, first, end, is_there = arguments
  out_gradient, *sums = gradients

  def add(sums, part):
    query, first, end, gradient = part
    rows = functools.partial(attend_rows, first=first, end=end, is_there=is_there)
    _, pull = jax.vjp(rows, query, key, value)
    query_gradient, *gradients = pull(gradient)
    return [a + b for a, b in zip(sums, gradients, strict=True)], query_gradient

  sums, query_gradient = jax.lax.scan(add, sums, (query, first, end, out_gradient))
  return query_gradient, *sums, None, None, None


_in_parts.defvjp(_in_parts_forward, _in_parts_backward)
