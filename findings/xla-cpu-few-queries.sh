#!/usr/bin/env bash
# Attention of 31 queries takes longer than attention of 32 in JAX on CPU, with more than one core.
#
# From 32 queries on, XLA compiles plain softmax attention, written as two products with a softmax
# in between, into one fusion for YNNPACK, which shares batch and heads among cores. With fewer it
# makes five: both products, the softmax in two parts, and what is left. The products of a batch then
# run one after the other on one core. A decoder that appends a few tokens at a time to a long cache
# is on the slow side of it.
#
# Seen with jax and jaxlib 0.10.2 on CPython 3.11, on 2026-12-01, two cores (Zen 4): batch 32, 4
# heads of 64, 384 keys, float32, medians of 15, two runs: 6.5 and 5.3 ms for 31 queries, 3.5 and 3.9
# ms for 32. On one core 6.6 and 6.2 ms.
#
# Exits non-zero if the number of fusions changes. Times are printed only.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re
import statistics
import time

import jax
import jax.numpy as jnp


@jax.jit
def attention(query, key, value):
  scores = jnp.einsum("bgqk,bglk->bgql", query, key)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  return jnp.einsum("bgql,bglk->bgqk", weights, value) / weights.sum(-1, keepdims=True)


key = jax.random.normal(jax.random.key(1), (32, 4, 384, 64))
fusions = {}
for count in (16, 31, 32, 48):
  query = jax.random.normal(jax.random.key(0), (32, 4, count, 64)) / 8
  program = attention.lower(query, key, key).compile()
  entry = program.as_text().split("ENTRY")[1]
  fusions[count] = len(re.findall(r" = \S+ (?:dot|fusion)\(", entry))
  seconds = []
  for _ in range(15):
    begin = time.perf_counter()
    program(query, key, key).block_until_ready()
    seconds.append(time.perf_counter() - begin)
  print(f"{count} queries: {fusions[count]} fusions, {1000 * statistics.median(seconds):.1f} ms")
assert fusions == {16: 5, 31: 5, 32: 1, 48: 1}, fusions
PYTHON
echo "as described"
