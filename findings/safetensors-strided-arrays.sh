#!/usr/bin/env bash
# safetensors 0.8.0: `safetensors.numpy.save` and `save_file` take an array's memory as it lies, so
# that a transposed or otherwise strided array is saved with other values, without an error or a
# warning. 0.7.0 saved the same arrays rightly: it copied them with `tobytes()`.
#
# Seen on 2026-11-29 with safetensors 0.8.0 and 0.7.0, numpy 2.4.6, Python 3.11: of a transposed
# array [[0 3] [1 4] [2 5]], 0.8.0 gives back [[0 1] [2 3] [4 5]], and 0.7.0 the array itself.
# `np.asarray(array, order="C")` before saving avoids it.
#
# Exits with 0 as long as that is so. Needs Python 3.11 to 3.13 as `python3`, and pip.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"

try() { # A version of safetensors, and what its round trip is expected to be.
  "$python" -m pip install --quiet --disable-pip-version-check "safetensors==$1" "numpy==2.4.6"
  "$python" - "$1" "$2" <<'PYTHON'
import sys

import numpy as np
from safetensors.numpy import load, save

version, expected = sys.argv[1:]
array = np.arange(6, dtype=np.float32).reshape(2, 3).T
found = load(save({"a": array}))["a"]
same = "same" if np.array_equal(found, array) else "other values"
print(f"safetensors {version}: saved {array.tolist()}, loaded {found.tolist()}: {same}")
sys.exit(same != expected)
PYTHON
}

try 0.7.0 "same"
try 0.8.0 "other values"
