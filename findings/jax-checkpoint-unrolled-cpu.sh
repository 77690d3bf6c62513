#!/usr/bin/env bash
# jax.checkpoint saves no memory on CPU if the layers are unrolled; in a scan it does.
#
# The recomputed forward pass of a layer is fenced off by an optimization barrier. For CPU, XLA takes
# the barriers out before it merges equal expressions, so what the backward pass was to compute again
# is found in the forward pass, and kept. Nothing is reported: the gradient is right, and as fast as
# without jax.checkpoint. In `jax.lax.scan`, where both passes are loops of their own, memory falls as
# it should. A run on CPU says nothing of the memory that jax.checkpoint saves elsewhere.
#
# Seen on 2026-11-30 with these versions: jax 0.10.2, jaxlib 0.10.2, Python 3.11, x86-64, CPU;
# temporary memory of the gradient of 12 layers, in units of one activation:
#   unrolled 48, unrolled with checkpoint 48, scanned 87, scanned with checkpoint 17
#
# Usage: bash findings/jax-checkpoint-unrolled-cpu.sh    (exits with 0 if it is still so)

set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet jax==0.10.2 jaxlib==0.10.2

cat >"$folder/memory.py" <<'PYTHON'
import sys
import jax
import jax.numpy as jnp

LAYERS, ROWS, WIDTH = 12, 2048, 128


def layer(x, weights):
  return x + jnp.tanh(jnp.sin(x @ weights) * jnp.cos(x))


def temporaries(is_scanned, has_checkpoint):
  """Returns the temporary memory of the gradient, in activations."""
  body = jax.checkpoint(layer) if has_checkpoint else layer

  def loss(x, weights):
    if is_scanned:
      x, _ = jax.lax.scan(lambda x, w: (body(x, w), None), x, weights)
    else:
      for i in range(LAYERS):
        x = body(x, weights[i])
    return jnp.sum(x**2)

  shapes = (
    jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
    jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32),
  )
  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
  return compiled.memory_analysis().temp_size_in_bytes / (ROWS * WIDTH * 4)


unrolled, unrolled_again = temporaries(False, False), temporaries(False, True)
scanned, scanned_again = temporaries(True, False), temporaries(True, True)
print(
  f"unrolled {unrolled:.0f}, unrolled with checkpoint {unrolled_again:.0f}, "
  f"scanned {scanned:.0f}, scanned with checkpoint {scanned_again:.0f}"
)
is_so = unrolled_again > 0.9 * unrolled and scanned_again < 0.6 * scanned
sys.exit(0 if is_so else 1)
PYTHON

if JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/memory.py"; then
  echo "as described"
else
  echo "this has changed"
  exit 1
fi
