#!/usr/bin/env bash
# Sets up this machine, checks the style and runs the tests.
#
#   bash launch/test.sh                      the fast tests
#   bash launch/test.sh -m slow              the slow tests
#   bash launch/test.sh tests/data -x        arguments are passed to pytest; -n 0 runs one at a time
#
# Needs bash and Python 3.11 or newer. Paths in the arguments are relative to the repository.
set -euo pipefail

# shellcheck source=launch/setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up test

"$venv_python" -m ruff check .
# Tests run in parallel: most of their time is compilation, which is single-threaded. Their order is
# that of tests/conftest.py: the longest files first.
exec "$venv_python" -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
