#!/usr/bin/env bash
# All tests, on a machine with Python 3.11 or newer and nothing else. Makes its own virtual environment, .venv-test.
#
#   bash tests/run.sh                 everything (slow ones too)
#   bash tests/run.sh -m "not slow"   what a developer runs between two edits
#   bash tests/run.sh -k resume       whatever pytest understands
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-test
if [ ! -x "$venv/bin/pytest" ] || [ pyproject.toml -nt "$venv/installed" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check --progress-bar off torch==2.13.0
  "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check --progress-bar off --editable '.[test]'
  touch "$venv/installed"
fi
"$venv/bin/ruff" check .
exec "$venv/bin/pytest" --numprocesses 2 --dist loadfile --durations 10 "$@"
