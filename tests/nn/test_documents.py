"""Attention between documents, against masks by loops and between backends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.nn import attention as attention_module
from videoar_jax.nn.attention import attend
from videoar_jax.nn.documents import DocumentMask, DocumentRule

# The third sees the first, but not what is in between; the last one sees nothing.
RULE = DocumentRule((3, 9, 14, 5, 2), ((0,), (1, 0), (2, 0, 3), (3,), ()))


def make_mask(backend="dense"):
  # The first sample lacks the end of the fourth document, and all of the last one.
  is_present = np.ones((2, RULE.length), bool)
  is_present[0, 28:] = False
  return DocumentMask(RULE, jnp.asarray(is_present), backend)


def by_loops(mask):
  documents = [i for i, size in enumerate(RULE.sizes) for _ in range(size)]
  return np.array(
    [
      [
        [documents[k] in RULE.seen[documents[q]] and bool(present[k]) for k in range(RULE.length)]
        for q in range(RULE.length)
      ]
      for present in np.asarray(mask.is_present)
    ]
  )


def test_a_document_sees_those_that_its_rule_names():
  mask = make_mask()
  expected = by_loops(mask)
  np.testing.assert_array_equal(mask.mask(), expected)
  for rows in (slice(0, 4), slice(10, 13), slice(30, 33)):
    everything = RULE.visible(rows).any(axis=0)
    np.testing.assert_array_equal(RULE.seen_by(rows), everything)
  size = 8
  rest = -RULE.length % size
  padded = np.pad(expected, ((0, 0), (0, rest), (0, rest)))
  for query in range(0, RULE.length, size):
    for key in range(0, RULE.length, size):
      tile = padded[:, query : query + size, key : key + size]
      np.testing.assert_array_equal(mask.part(query, key, size), tile)


def test_tiles_give_what_all_scores_give(monkeypatch):
  monkeypatch.setattr(attention_module, "_MAX_SCORES", 0)
  monkeypatch.setattr(attention_module, "_CHUNK", 8)
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = [(2, RULE.length, n, 8) for n in (4, 2, 2)]
  arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]

  def run(backend):
    def loss(arrays):
      out = attend(*arrays, make_mask(backend))
      return jnp.sum(jnp.sin(3 * out)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return [out, *gradients]

  dense, tiled = run("dense"), run("blocked")
  for ours, expected in zip(tiled, dense, strict=True):
    np.testing.assert_allclose(ours, expected, atol=1e-5)
  for out in (dense[0], tiled[0]):
    # Padding, and a document that sees nothing.
    assert not np.asarray(out)[0, 28:].any() and not np.asarray(out)[1, 31:].any()
  hidden = ~by_loops(make_mask()).any(axis=1)
  for gradient in dense[2:]:
    assert not np.asarray(gradient)[hidden].any()
  # By hand, for one query of the third document.
  query, key, value = (np.asarray(x, np.float64) for x in arrays)
  seen = np.r_[0:3, 12:28]
  scores = key[0, seen, 1] @ query[0, 20, 3] / np.sqrt(8)
  weights = np.exp(scores - scores.max())
  np.testing.assert_allclose(
    dense[0][0, 20, 3], weights @ value[0, seen, 1] / weights.sum(), atol=1e-5
  )


def test_the_kernel_has_no_documents():
  x = jnp.zeros((2, RULE.length, 1, 8))
  with pytest.raises(ValueError, match="attention='splash' has no masks of documents"):
    attend(x, x, x, make_mask("splash"))
