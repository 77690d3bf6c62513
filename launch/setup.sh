# shellcheck shell=bash
# Sourced by local.sh and test.sh: enters the repository, makes .venv, installs what is missing.
#
#   set_up run     for training and sampling
#   set_up test    for tests, too
#
# Afterwards "$venv_python" is the environment's Python. PYTHON=/path/to/python names another Python
# to make the environment from.

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 1
venv_python=".venv/bin/python"

# Large pages for malloc, which glibc reads before Python starts. Without them temporary arrays are
# faulted in again at each step, and the quickstart's backward pass takes 1.6 times as long on CPU.
if [[ "${VIDEOAR_JAX_HUGE_PAGES:-1}" != 0 ]]; then
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
fi

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

is_new_enough() {
  # A command may exist and not run: version managers leave such stubs.
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  if [[ -n "${PYTHON:-}" ]]; then
    is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON does not run, or is older than Python 3.11"
    printf '%s\n' "$PYTHON"
    return
  fi
  local name
  for name in python3.13 python3.12 python3.11 python3 python; do
    if is_new_enough "$name"; then
      printf '%s\n' "$name"
      return
    fi
  done
  fail "Python 3.11 or newer is needed, and none was found. Install it (Ubuntu 24.04:" \
    "sudo apt install python3-venv; macOS: brew install python@3.13; any: https://docs.astral.sh/uv)," \
    "or name yours: PYTHON=/path/to/python3.11 bash ${0##*/}"
}

make_environment() {
  if is_new_enough "$venv_python" && "$venv_python" -m pip --version >/dev/null 2>&1; then
    return
  fi
  local python
  python="$(find_python)" || exit 1
  echo "Making .venv with $("$python" --version)"
  "$python" -m venv --clear .venv ||
    fail "$python cannot make environments; on Debian and Ubuntu: sudo apt install python3-venv"
}

hash_of_requirements() {
  "$venv_python" -c 'import hashlib, sys
print(hashlib.sha256(b"".join(open(name, "rb").read() for name in sys.argv[1:])).hexdigest())' \
    requirements.txt pyproject.toml
}

# A hash records what was installed, so that a second start has nothing to do.
is_installed() {
  local stamp=".venv/installed-$1"
  is_new_enough "$venv_python" && [[ -f "$stamp" && "$(<"$stamp")" == "$(hash_of_requirements)" ]]
}

set_up() {
  if is_installed "$1"; then
    return
  fi
  make_environment
  local target="."
  if [[ "$1" == test ]]; then
    target=".[test]"
  fi
  echo "Installing packages into .venv (a few minutes, once)"
  "$venv_python" -m pip install --disable-pip-version-check --quiet --editable "$target" ||
    fail "the installation failed; fix the error above, and run this again"
  hash_of_requirements >.venv/installed-run
  if [[ "$1" == test ]]; then
    hash_of_requirements >.venv/installed-test
  fi
}
