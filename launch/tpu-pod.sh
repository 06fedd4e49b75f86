#!/usr/bin/env bash
# One Cloud TPU slice, from its creation to its deletion, with gcloud on your own machine. Verbs, each of which can be repeated:
#
#   bash launch/tpu-pod.sh create  --name N --zone Z --topology v5e:4x4 --spot
#   bash launch/tpu-pod.sh install --name N --zone Z [--storage gs://BUCKET] [-- what is to run]
#   bash launch/tpu-pod.sh run     --name N --zone Z -- train CONFIG run_dir=/mnt/rapo/runs/mine
#   bash launch/tpu-pod.sh watch   (options of create and install) -- train ...   all three, again after each preemption
#   bash launch/tpu-pod.sh status|logs|stop|delete --name N --zone Z
#   bash launch/tpu-pod.sh fetch   --name N --zone Z [--storage gs://BUCKET] RUN_DIR LOCAL_DIR    the export
#
#   --spot | --reserved | --flex | --on-demand   what is paid; create and watch need one
#   --max-hours H      the slice is deleted so many hours after it was installed, and watch ends (default 24; 0: never)
#   --queue-hours H    how long the request may wait for chips (default 24)
#   --storage S        gs://BUCKET (through gcsfuse) or HOST:/SHARE (NFS), at /mnt/rapo on every worker
#   --restarts N       of watch (default 100); the run itself counts no restarts
#   --project P, --runtime-version V, --follow (logs), --dry-run (shows what would be done)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/doing.sh
. launch/doing.sh

project='' name='' zone='' topology='' tier='' max_hours=24 queue_hours=24 storage='' restarts=100 runtime=''
poll=${RAPO_POLL:-30} # seconds between two looks
hour=${RAPO_HOUR:-3600} # of --max-hours, in seconds
here=()

option() {
  taken=2
  case $1 in
    --name) a_name "$@" && name=$value ;;
    --zone) a_value "$@" && zone=$value ;;
    --project) a_value "$@" && project=$value ;;
    --topology) a_value "$@" && topology=$value ;;
    --runtime-version) a_value "$@" && runtime=$value ;;
    --storage) a_storage "$@" && storage=$value ;;
    --max-hours) a_number "$@" && max_hours=$value ;;
    --queue-hours) a_number "$@" && queue_hours=$value ;;
    --restarts) a_number "$@" && restarts=$value ;;
    --spot | --reserved | --flex | --on-demand)
      [ -z "$tier" ] || fail "$1 and --$tier exclude each other."
      tier=${1#--}
      taken=1
      ;;
    *) return 1 ;;
  esac
}

options() {
  each_word "$@"
  [ -n "$name" ] || fail "--name is missing: what the slice is to be called."
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
    fail "--zone=$zone must be a zone that has TPUs, such as us-west4-a (gcloud compute tpus locations list)."
  here=("$name" --zone "$zone")
  [ -z "$project" ] || here+=(--project "$project")
}

slice() { # the words for gcloud that name the chips, and the image for them
  local kind=${topology%%:*} shape=${topology#*:} chips
  [[ $topology =~ ^[a-z0-9]+:[0-9]+(x[0-9]+){1,2}$ ]] ||
    fail "--topology=$topology must be as for rapo plan, such as v5e:4x4 or v5p:2x2x4."
  chips=$((10#${shape%%x*} * 10#${shape##*x})) # of v5e and v6e
  case $kind:$shape in
    v5e:1x1 | v5e:2x2 | v5e:2x4 | v5e:4x4 | v5e:4x8 | v5e:8x8 | v5e:8x16 | v5e:16x16)
      echo "--accelerator-type v5litepod-$chips --runtime-version ${runtime:-v2-alpha-tpuv5-lite}"
      ;;
    v6e:1x1 | v6e:2x2 | v6e:2x4 | v6e:4x4 | v6e:4x8 | v6e:8x8 | v6e:8x16 | v6e:16x16)
      echo "--accelerator-type v6e-$chips --runtime-version ${runtime:-v2-alpha-tpuv6e}"
      ;;
    v5p:*x*x*) echo "--type v5p --topology $shape --runtime-version ${runtime:-v2-alpha-tpuv5}" ;;
    v4:*x*x*) echo "--type v4 --topology $shape --runtime-version ${runtime:-tpu-ubuntu2204-base}" ;;
    tpu7x:*) fail "--topology=$topology: tpu7x is had through GKE only; see launch/gke/." ;;
    v[4-6]*) fail "--topology=$topology is no slice of $kind; v5e and v6e have 1x1 to 16x16, v4 and v5p AxBxC." ;;
    *) fail "--topology=$topology: the kinds are v4, v5e, v5p and v6e." ;;
  esac
}

ask() { # DESCRIBED FORMAT: a state, or NONE; any other refusal of gcloud's ends this
  local answer errors code=0
  errors=$(mktemp)
  answer=$(gcloud compute tpus "$1" describe "${here[@]}" --format "value($2)" 2>"$errors") || code=$?
  if [ "$code" = 0 ]; then
    echo "${answer:-UNKNOWN}"
  elif grep -q NOT_FOUND "$errors"; then
    echo NONE
  else
    answer=$(grep . "$errors" | tail -n 1)
    rm -f "$errors"
    fail "gcloud cannot look at $name in $zone: $answer"
  fi
  rm -f "$errors"
}
looked() { # as ask; a look that fails, as without a network, is repeated
  local try
  for try in $(seq 20); do
    (ask "$@") && return
    [ "$try" = 20 ] || sleep "$poll"
  done
  return 1
}
request_state() { ask queued-resources state.state; }
node_state() { ask tpu-vm state; }

create() {
  local flags state beta=()
  flags=$(slice) || exit
  read -ra flags <<<"$flags"
  case $tier in
    '') fail "say what is paid: --spot (cheapest, can be preempted), --flex, --reserved or --on-demand." ;;
    flex)
      [ "$max_hours" -ge 1 ] && [ "$max_hours" -le 168 ] ||
        fail "--max-hours=$max_hours must be from 1 to 168 with --flex."
      beta=(alpha)
      flags+=(--provisioning-model flex-start --max-run-duration "${max_hours}h")
      ;;
    spot | reserved) flags+=("--$tier") ;;
  esac
  [ -n "$dry" ] && state=NONE || state=$(request_state) || exit
  if [ "$state" = ACTIVE ]; then
    is_lost "$(node_state)" && state='ACTIVE without a slice'
  fi
  case $state in
    FAILED | SUSPENDED | SUSPENDING | ACTIVE\ without*) # what is left of a slice that was preempted, or never came
      tell "$name is $state; what is left of it is deleted first"
      delete
      state=NONE
      ;;
  esac
  if [ "$state" = NONE ]; then
    doing gcloud ${beta[@]+"${beta[@]}"} compute tpus queued-resources create "${here[@]}" --node-id "$name" \
      "${flags[@]}" --valid-until-duration "${queue_hours}h" --labels made-by=rapo ||
      fail "gcloud did not create $name in $zone; its own words are above."
  fi
  if [ -n "$dry" ]; then
    echo "then looks every $poll s until the request is ACTIVE"
  else
    until_active
  fi
  paid
}

until_active() {
  local state said=''
  while :; do
    state=$(looked queued-resources state.state) || give_up "the request of $name is still there, and may still get chips."
    [ "$state" = "$said" ] || tell "$(date +%H:%M:%S) $name: $state"
    said=$state
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | NONE)
        fail "$name is $state: no chips came. Try another zone, or wait longer (--queue-hours)."
        ;;
    esac
    sleep "$poll"
  done
}

is_lost() { # STATE: of a slice that does not come back
  case $1 in PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | NONE) ;; *) return 1 ;; esac
}

paid() { # nobody shall forget a slice
  echo "It costs money until:"
  wrapped bash launch/tpu-pod.sh delete --name "$name" --zone "$zone" ${project:+--project "$project"} | sed 's/^+/ /'
}

give_up() { # of a slice that is, or may come to be, paid
  paid >&2
  fail "$@"
}

patiently() { # a command over ssh, which can be lost; what it calls can be repeated
  local try
  for try in 1 2 3; do
    "$@" && return
    [ "$try" = 3 ] || tell "that failed; again in $poll s" && sleep "$poll"
  done
  return 1
}

on() { # WORKERS WORDS: launch/on-worker.sh there
  local workers=$1
  shift
  doing gcloud compute tpus tpu-vm ssh "${here[@]}" --worker "$workers" \
    --command "bash rapo_jax/launch/on-worker.sh $(quoted "$@" | paste -s -d ' ' -)"
}

install() {
  local directory code=0
  [ -n "$dry" ] && directory=/tmp || directory=$(mktemp -d)
  pack "$directory/rapo_jax.tgz" && patiently copied "$directory/rapo_jax.tgz" || code=1
  [ -n "$dry" ] || rm -rf "$directory"
  [ "$code" = 0 ] && patiently on all install tpu ${needed[@]+"${needed[@]}"} || return 1
  [ -z "$storage" ] || patiently on all mount "$storage" || return 1
  [ "$max_hours" = 0 ] ||
    on 0 expire "$max_hours" gcloud compute tpus queued-resources delete "${here[@]}" --force --quiet || return 1
}

copied() {
  doing gcloud compute tpus tpu-vm scp "$1" "$name:rapo_jax.tgz" "${here[@]:1}" --worker all &&
    doing gcloud compute tpus tpu-vm ssh "${here[@]}" --worker all \
      --command 'mkdir -p rapo_jax && tar -xzf rapo_jax.tgz -C rapo_jax'
}

run() {
  a_verb ${words[@]+"${words[@]}"}
  [ ${#needed[@]} = 0 ] || patiently on all install tpu "${needed[@]}" || return 1
  patiently on all start run -- "${words[@]}" --distributed
  paid
}

states() { on all state "${1:-run}" 2>/dev/null | grep -E ' (running|exit [0-9]+|stopped|lost|none)$'; }

status() {
  if [ -n "$dry" ]; then
    show gcloud compute tpus queued-resources describe "${here[@]}" --format 'value(state.state)'
    on all state run
    return
  fi
  local request
  request=$(request_state) || exit
  echo "request  $request"
  [ "$request" != NONE ] || return 0
  echo "slice    $(node_state)"
  states | sed 's/^/worker   /' || echo "workers  cannot be reached"
  paid
}

logs() { on "${places[0]:-0}" log run $follow; }
stop() { on all stop run; }

delete() {
  local state
  if [ -z "$dry" ]; then
    state=$(request_state) || exit
    if [ "$state" = NONE ]; then
      echo "there is no $name in $zone"
      return
    fi
  fi
  doing gcloud compute tpus queued-resources delete "${here[@]}" --force --quiet
}

finished() { # NAME: waits until nothing of that name runs; how it ended on the workers
  local said='' answer slice_is unanswered=0
  while :; do
    answer=$(states "$1" | sed 's/^[^ ]* //' | sort -u | paste -s -d , -) || answer=''
    if [ -z "$answer" ]; then # a lost ssh ends nothing; a lost slice does
      slice_is=$(looked tpu-vm state) || give_up "gcloud cannot look at $name; its slice is still there, and the run goes on."
      if is_lost "$slice_is"; then
        echo gone
        return
      fi
      unanswered=$((unanswered + 1))
      [ "$unanswered" -lt 20 ] || give_up "no worker of $name answers, though the slice is $slice_is."
    else
      unanswered=0
      case ,$answer, in *,running,*) ;; *) echo "$answer" && return ;; esac
    fi
    [ "$answer" = "$said" ] || tell "$(date +%H:%M:%S) $1: ${answer:-no answer; it goes on by itself}" >&2
    said=$answer
    if is_over; then
      echo over
      return
    fi
    sleep "$poll"
  done
}

until_stopped() { # a run that is asked to stop saves first
  local try
  for try in $(seq 20); do
    states run | grep -q ' running$' || return 0
    [ "$try" = 20 ] || sleep "$poll"
  done
}

end='' # of the hours that watch pays for
is_over() { [ -n "$end" ] && [ "$SECONDS" -ge "$end" ]; }

meaning() { # HOW IT ENDED: done, mistake, stopped, restart or crash
  case ,$1, in
    *,exit\ 2,*) echo mistake ;;
    *,stopped,*) echo stopped ;;
    ,exit\ 0,) echo "done" ;;
    *)
      # 75 saved, 76 lost another process, 134 and up were ended by a signal
      if [[ ,$1 =~ ^(,(exit\ (0|75|76|134|137|143)|lost|none|gone|over))+$ ]]; then echo restart; else echo crash; fi
      ;;
  esac
}

watch() {
  local again=0 crashes=0 answer
  a_verb ${words[@]+"${words[@]}"}
  [ "$tier" != spot ] || [ -n "$storage" ] || fail "--spot needs --storage: a preemption takes the disks of the slice with it."
  trap 'echo; echo "Nothing is deleted: a run goes on, a request may still get chips."; paid; exit 130' INT
  while :; do
    create
    [ "$max_hours" = 0 ] || [ -n "$end" ] || end=$((SECONDS + max_hours * hour))
    if install && patiently on all start run -- "${words[@]}" --distributed; then
      if [ -n "$dry" ]; then
        echo "then looks every $poll s: exit codes 0 and 2 end the watch; after 75, 76"
        echo "or a preemption it does all of the above again, at most $restarts times"
        return
      fi
      answer=$(finished run) || exit
    else
      answer=unreachable
    fi
    case $(meaning "$answer") in
      done) tell "The run is done. Fetch its export, then delete the slice." && paid && return ;;
      stopped) tell "The run was stopped, and saved." && paid && return ;;
      mistake)
        on 0 log run
        give_up "the run stopped with a mistake (exit code 2), which a restart repeats. Mend it, or delete the slice."
        ;;
      crash)
        crashes=$((crashes + 1))
        on 0 log run || true
        [ "$crashes" -lt 3 ] || give_up "three crashes, the last one: $answer."
        ;;
    esac
    again=$((again + 1))
    [ "$again" -le "$restarts" ] || give_up "the run was restarted $restarts times; raise --restarts."
    if is_over; then
      stop && until_stopped || true
      delete
      fail "$max_hours hours are over (--max-hours), and the run is not done; what it saved is in its run_dir."
    fi
    tell "$(date +%H:%M:%S) restart $again, after: $answer"
  done
}

newest() { on 0 newest "$1" 2>/dev/null | sed -n 's/^.* newest //p'; }

fetch() {
  local run_dir local_dir step out job answer
  export_to_fetch
  if [ -n "$dry" ] || [ "$(states "$job" | sed 's/^[^ ]* //' | sort -u)" != 'exit 0' ]; then
    patiently on all start "$job" -- export "$run_dir" "$out" --step "$step" --distributed
  fi
  if [ -z "$dry" ]; then
    answer=$(finished "$job") || exit
    if [ "$answer" != 'exit 0' ]; then
      on 0 log "$job"
      fail "the export ended with: $answer."
    fi
  fi
  case $storage,$out in
    gs://*,/mnt/rapo/*) doing gcloud storage cp --recursive "$storage/${out#/mnt/rapo/}" "$local_dir" ;;
    *) doing gcloud compute tpus tpu-vm scp --recurse "$name:$out" "$local_dir" "${here[@]:1}" --worker 0 ;;
  esac
}

verb=${1-}
shift || true
case $verb in
  --dry-run) fail "the verb comes first: bash launch/tpu-pod.sh VERB --dry-run ..." ;;
  create | install | run | watch | status | logs | stop | fetch | delete) ;;
  *) fail "${verb:-no verb} must be create, install, run, watch, status, logs, stop, fetch or delete." ;;
esac
options "$@"
needed=() # what the words of rapo need more than chips
if uses_bucket ${words[@]+"${words[@]}"}; then needed=(-- "${words[@]}"); fi
need gcloud
"$verb"
