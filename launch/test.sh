#!/usr/bin/env bash
# Sets up this machine, checks the style and runs the tests.
#
#   bash launch/test.sh                      everything but the slow tests
#   bash launch/test.sh tests/data -x        arguments go to pytest; -n 0 is for one at a time
#
# Needs bash and Python 3.11 or newer. Paths in the arguments are those of the repository.
set -euo pipefail

# shellcheck source=launch/setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up test

"$venv_python" -m ruff check .
# Several tests at once: most of their time is compiling, which is one thread's work.
exec "$venv_python" -m pytest -n auto --maxprocesses=4 --dist=loadfile "$@"
