#!/usr/bin/env bash
# The whole story on a laptop: a small world, a base model, plain DPO, reward-augmented DPO, and what each answers when
# it is asked for scores 1 to 10. Needs Python 3.11 or newer, two CPU cores and the package index; takes 2 to 6 minutes
# after the installation. Everything goes to build/quickstart (or to the directory given as first argument).
#
#   bash launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/quickstart}

# 1. An environment of its own.
venv=.venv
if [ ! -x "$venv/bin/rapo" ] || [ pyproject.toml -nt "$venv/installed" ]; then
  echo "installing into $venv ..."
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check --progress-bar off --editable .
  touch "$venv/installed"
fi
PATH="$PWD/$venv/bin:$PATH"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" TRANSFORMERS_VERBOSITY=error
if [ -e "$out" ]; then
  echo "$out exists; remove it or give another directory: bash launch/quickstart.sh DIR" >&2
  exit 2
fi
start=$SECONDS
step() { printf '\n== %s  (%d s)\n' "$1" "$((SECONDS - start))"; }

step "A world: dishes to describe, answers of graded quality, a judge that counts"
python -m rapo_jax.quickstart world "$out/world"

step "What the method does to one pair"
rapo relabel configs/quickstart-ra-dpo.yaml model.path="$out/world" data.path="$out/world/pairs.jsonl" --out "$out/relabelled.jsonl"
head -n 2 "$out/relabelled.jsonl"

step "A base model, taught by supervised fine-tuning on answers of any quality"
rapo train configs/quickstart-sft.yaml model.path="$out/world" data.path="$out/world/sft.jsonl" run_dir="$out/sft"
rapo export "$out/sft" "$out/base"

models=("base=$out/base")
for method in dpo ra-dpo; do
  step "From that base: $method"
  rapo train "configs/quickstart-$method.yaml" run_dir="$out/$method" \
    model.path="$out/base" data.path="$out/world/pairs.jsonl" data.eval_path="$out/world/eval_pairs.jsonl"
  rapo export "$out/$method" "$out/models/$method"
  models+=("$method=$out/models/$method")
done

step "Asked for scores 1 to 10"
python -m rapo_jax.quickstart report "$out/world" "$out" "${models[@]}"

step "All of it on one page: curves, data, and a slider from the lowest goal to the highest"
rapo report "$out/dpo" "$out/ra-dpo" "$out/sweep.json" "$out/answers.jsonl" --title "Quickstart" -o "$out/report.html"
printf '\nTotal: %d s.\n' "$((SECONDS - start))"
