#!/usr/bin/env bash
# One rented machine with GPUs, over ssh, from your own machine. Verbs, each of which can be repeated:
#
#   bash launch/gpu-box.sh install --host USER@ADDRESS [--port 22] [-- what is to run]
#   bash launch/gpu-box.sh put     --host ... FILE [FILE ...]       into ~/rapo_jax/files there
#   bash launch/gpu-box.sh run     --host ... -- train CONFIG data.path=files/pairs.jsonl run_dir=runs/mine
#   bash launch/gpu-box.sh status|logs|stop --host ...              stop saves; run goes on from there
#   bash launch/gpu-box.sh fetch   --host ... RUN_DIR LOCAL_DIR     exports the run and copies the export
#
#   --extra cuda|cpu     what is installed (default cuda)
#   --follow (logs), --dry-run (shows what would be done)
#
# A lost ssh ends nothing. CONFIG and relative paths are read in ~/rapo_jax there, where this clone is copied to.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/doing.sh
. launch/doing.sh

host='' port=22 extra=cuda
poll=${RAPO_POLL:-30} # seconds between two looks

option() {
  taken=2
  case $1 in
    --host) a_value "$@" && host=$value ;;
    --port) a_number "$@" && port=$value ;;
    --extra) a_value "$@" && extra=$value ;;
    *) return 1 ;;
  esac
}

options() {
  each_word "$@"
  [[ $host =~ ^([A-Za-z0-9_.-]+@)?[A-Za-z0-9][A-Za-z0-9.:-]*$ ]] || fail "--host=$host must be USER@ADDRESS."
  case $extra in cuda | cpu) ;; *) fail "--extra=$extra must be cuda or cpu." ;; esac
}

there() { doing ssh -o ServerAliveInterval=30 -p "$port" "$host" "$@"; }
on() { there "bash rapo_jax/launch/on-worker.sh $(quoted "$@" | paste -s -d ' ' -)"; }

install() {
  local directory code=0
  [ -n "$dry" ] && directory=/tmp || directory=$(mktemp -d)
  pack "$directory/rapo_jax.tgz" && doing scp -q -P "$port" "$directory/rapo_jax.tgz" "$host:rapo_jax.tgz" || code=$?
  [ -n "$dry" ] || rm -rf "$directory"
  [ "$code" = 0 ] || fail "$host cannot be reached, or takes no files (exit code $code of scp); its words are above."
  there 'mkdir -p rapo_jax/files && tar -xzf rapo_jax.tgz -C rapo_jax'
  on install "$extra" ${needed[@]+"${needed[@]}"}
}

put() {
  local file
  [ ${#places[@]} -gt 0 ] || fail "put takes files."
  for file in "${places[@]}"; do [ -e "$file" ] || fail "there is no $file here."; done
  doing scp -q -r -P "$port" "${places[@]}" "$host:rapo_jax/files/"
}

run() {
  a_verb ${words[@]+"${words[@]}"}
  [ ${#needed[@]} = 0 ] || on install "$extra" "${needed[@]}"
  on start run -- "${words[@]}"
  echo "The machine costs money until you give it back where you rented it."
}

status() {
  on state run
  there nvidia-smi --query-gpu=name,utilization.gpu,memory.used,memory.total --format=csv,noheader || true
}
logs() { on log run $follow; }
stop() { on stop run; }

newest() { on newest "$1" 2>/dev/null | sed -n 's/^.* newest //p'; }

fetch() {
  local run_dir local_dir step out job state
  export_to_fetch
  state=$([ -n "$dry" ] || on state "$job" 2>/dev/null | sed 's/^[^ ]* //') || state='' # '': a lost ssh
  [ "$state" = 'exit 0' ] || on start "$job" -- export "$run_dir" "$out" --step "$step"
  while [ -z "$dry" ]; do
    state=$(on state "$job" 2>/dev/null | sed 's/^[^ ]* //') || state=''
    case $state in
      'exit 0') break ;;
      running | '') sleep "$poll" ;;
      *)
        on log "$job"
        fail "the export ended with: $state."
        ;;
    esac
  done
  case $out in /*) ;; *) out=rapo_jax/$out ;; esac
  doing scp -q -r -P "$port" "$host:$out" "$local_dir"
}

verb=${1-}
shift || true
case $verb in
  --dry-run) fail "the verb comes first: bash launch/gpu-box.sh VERB --dry-run ..." ;;
  install | put | run | status | logs | stop | fetch) ;;
  *) fail "${verb:-no verb} must be install, put, run, status, logs, stop or fetch." ;;
esac
options "$@"
needed=() # what the words of rapo need more than the hardware does
if uses_bucket ${words[@]+"${words[@]}"}; then needed=(-- "${words[@]}"); fi
need ssh scp
"$verb"
