#!/usr/bin/env bash
# Every check, on a machine with Python 3.11 or newer and nothing else. Makes its own virtual environment, .venv-test.
#
#   bash tests/run.sh                            everything: linter, formatter, type checker, all tests
#   bash tests/run.sh -m "not slow"              between two edits: linter, formatter, the fast tests
#   bash tests/run.sh -k resume                  or whatever else pytest understands
#   bash tests/run.sh --every-family tests/parity/test_every_family.py   steps and answers of all families, not of two
#   bash tests/run.sh --lowest -m "not slow"     the lowest versions that pyproject.toml allows, in .venv-lowest
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-test constraints=()
if [ "${1:-}" = --lowest ]; then
  shift
  venv=.venv-lowest constraints=(--constraint tests/lowest-versions.txt)
fi
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$PWD/$venv/compiled
if [ ! -x "$venv/bin/pytest" ] || [ pyproject.toml -nt "$venv/installed" ] || [ tests/lowest-versions.txt -nt "$venv/installed" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  install=("$venv/bin/pip" install --quiet --quiet --disable-pip-version-check --progress-bar off
    --no-compile "${constraints[@]}") # what is imported is compiled then, once for all processes
  "${install[@]}" torch==2.13.0
  "${install[@]}" --editable '.[test]'
  touch "$venv/installed"
fi
if [ "$venv" = .venv-test ]; then
  "$venv/bin/ruff" check .
  "$venv/bin/ruff" format --check --quiet .
fi
if [ "$venv" = .venv-test ] && [ $# = 0 ]; then # types beside the tests, which sometimes wait for processes
  "$venv/bin/basedpyright" --pythonpath "$venv/bin/python" > "$venv/types" 2>&1 &
  types=$! code=0
  "$venv/bin/pytest" --numprocesses 2 --dist worksteal --durations 10 || code=$?
  wait "$types" || code=1
  cat "$venv/types"
  exit "$code"
fi
exec "$venv/bin/pytest" --numprocesses 2 --dist worksteal --durations 10 "$@"
