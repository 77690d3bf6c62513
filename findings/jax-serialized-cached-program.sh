#!/usr/bin/env bash
# A program that JAX's compilation cache loaded can be serialized again, but what is then loaded
# fails when it is called, on CPU: "Function ..._fusion not found".
#
# `jax.experimental.serialize_executable.serialize` takes any compiled program. If the program was
# compiled in this process, what it returns can be loaded and called in another one. If it came out
# of the persistent compilation cache, `serialize` and `deserialize_and_load` report nothing either,
# and only the call raises an error. So whoever stores programs has to leave the cache out.
#
# Seen on 2026-11-29 with these versions: jax 0.10.2, jaxlib 0.10.2, Python 3.11, x86-64, CPU:
#   compiled here: called
#   from the cache: JaxRuntimeError: ... Function broadcast_add_fusion not found (type id: 1)
#
# Usage: bash findings/jax-serialized-cached-program.sh    (exits with 0 if it is still so)

set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet jax==0.10.2 jaxlib==0.10.2

cat >"$folder/store.py" <<'PYTHON'
import pathlib, sys
import jax
import numpy as np
from jax.experimental import serialize_executable

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
x = np.ones((2, 3), np.float32)
compiled = jax.jit(lambda x, y: x * 2 + y).lower(x, np.float32(1)).compile()
payload, _, _ = serialize_executable.serialize(compiled)
pathlib.Path(sys.argv[2]).write_bytes(payload)
print("from the cache" if any(hits) else "compiled here", end=": ")
PYTHON
cat >"$folder/call.py" <<'PYTHON'
import pathlib, sys
import jax
import numpy as np
from jax.experimental import serialize_executable

x = np.ones((2, 3), np.float32)
trees = jax.tree.structure(((x, x), {})), jax.tree.structure(0)
program = serialize_executable.deserialize_and_load(pathlib.Path(sys.argv[1]).read_bytes(), *trees)
try:
  np.testing.assert_array_equal(program(x, np.float32(1)), 3 * x)
  print("called")
except jax.errors.JaxRuntimeError as error:
  print(f"JaxRuntimeError: {error}")
PYTHON

run() {
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/store.py" "$folder/cache" "$folder/program"
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/call.py" "$folder/program"
}

first="$(run)"
second="$(run)"
printf '%s\n' "$first" "$second"
[[ "$first" == "compiled here: called" && "$second" == "from the cache: JaxRuntimeError:"*"not found"* ]]
