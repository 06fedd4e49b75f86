#!/usr/bin/env bash
# What happens on a machine that trains. The other scripts call it over ssh; it can be called by hand as well.
#
#   bash launch/on-worker.sh install tpu|cuda|cpu     into ~/rapo-venv; once, then only what has changed
#   bash launch/on-worker.sh install tpu -- WORDS     and what `rapo WORDS` needs more, which is gcs where they say gs://
#   bash launch/on-worker.sh mount gs://B|HOST:/SHARE at /mnt/rapo
#   bash launch/on-worker.sh start NAME -- WORDS      `rapo WORDS` in the background; a lost ssh does not end it
#   bash launch/on-worker.sh state NAME               running, exit N, stopped (by stop), lost (with its host) or none
#   bash launch/on-worker.sh log NAME [--follow]
#   bash launch/on-worker.sh stop NAME                it saves a checkpoint and exits with 75
#   bash launch/on-worker.sh newest RUN_DIR           its newest step
#   bash launch/on-worker.sh expire HOURS COMMAND     does the command after so many hours
#
# --dry-run before the verb shows the commands and does nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/doing.sh
. "$here/doing.sh"

venv=${RAPO_VENV:-$HOME/rapo-venv}
kept=${RAPO_KEPT:-$HOME/.rapo} # what is known of the programs that were started
mount_point=/mnt/rapo

install() {
  local extra=$1 device=$1 stamp python installed
  case $extra in
    cpu | tpu | cuda) ;;
    *) fail "install $extra must be install tpu, cuda or cpu." ;;
  esac
  cd "$here/.."
  if uses_bucket "${@:2}"; then extra=$extra,gcs; fi
  stamp=$(all_code | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-16)-$extra
  installed=$(cat "$venv/installed" 2>/dev/null) || true
  if [ "$installed" = "$stamp" ] || [ "$installed" = "$stamp,gcs" ]; then
    echo "$(hostname): installed already"
    return
  fi
  python=$(a_python)
  if [ -n "$python" ]; then
    [ -x "$venv/bin/python" ] || doing "$python" -m venv "$venv"
    [ -x "$venv/bin/pip" ] || [ -n "$dry" ] || doing "$venv/bin/python" -m ensurepip
    doing "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(requirement "$extra")"
  else # Cloud TPU images have Python 3.10
    doing bash -c 'command -v ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh'
    [ -x "$venv/bin/python" ] || doing "$HOME/.local/bin/uv" venv --quiet --python 3.12 "$venv"
    doing "$HOME/.local/bin/uv" pip install --quiet --python "$venv/bin/python" "$(requirement "$extra")"
  fi
  if [ "$device" = tpu ]; then
    doing sudo sh -c 'echo always > /sys/kernel/mm/transparent_hugepage/enabled' # faster start on v5e and newer
  fi
  doing "$venv/bin/rapo" --version
  if [ -z "$dry" ]; then echo "$stamp" >"$venv/installed"; fi
}

all_code() { find pyproject.toml rapo_jax -type f \( -name '*.py' -o -name '*.toml' \) -print0; }

requirement() {
  local clone
  clone=$(cd "$here/.." && pwd)
  case $1 in
    cpu) echo "$clone" ;;
    cpu,*) echo "${clone}[${1#cpu,}]" ;;
    *) echo "${clone}[$1]" ;;
  esac
}

a_python() { # a Python of 3.11 or newer that can make virtual environments
  local name
  for name in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null &&
      "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
}

mount_storage() {
  local from
  a_storage mount "$1"
  from=$value
  if mountpoint --quiet "$mount_point" 2>/dev/null; then
    echo "$(hostname): $mount_point is mounted already"
    return
  fi
  doing sudo install -d -m 0777 "$mount_point"
  case $from in
    gs://*)
      command -v gcsfuse >/dev/null || install_gcsfuse
      # Nothing is remembered of the other hosts' files: what one writes, the others see at once.
      doing gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=200000 \
        "${from#gs://}" "$mount_point"
      ;;
    *)
      command -v mount.nfs >/dev/null || doing sudo apt-get install --yes --quiet nfs-common
      doing sudo mount -t nfs -o hard,nconnect=4 "$from" "$mount_point"
      ;;
  esac
}

install_gcsfuse() {
  local list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
  local from='https://packages.cloud.google.com/apt'
  doing sudo sh -c "curl -fsS $from/doc/apt-key.gpg > $key"
  # shellcheck disable=SC2016 # expanded by the inner shell
  doing sudo sh -c 'echo "deb [signed-by=$2] $1 gcsfuse-$(lsb_release -cs) main" > $3' sh "$from" "$key" "$list"
  doing sudo apt-get update --quiet
  doing sudo apt-get install --yes --quiet gcsfuse
}

alive() { runs "$kept/$1/pid"; } # NAME

runs() { # FILE: whether the process that it names runs, and since this boot
  local pid boot
  [ -e "$1" ] && read -r pid boot <"$1" || return 1
  [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] && kill -0 "$pid" 2>/dev/null
}

start() {
  local name=$1
  shift
  if alive "$name"; then
    echo "$(hostname): $name is running already"
    return
  fi
  [ -n "$dry" ] || [ -x "$venv/bin/rapo" ] || fail "rapo is not installed on $(hostname); install it first."
  if mountpoint --quiet "$mount_point" 2>/dev/null; then # programs that were compiled outlive the host
    export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$mount_point/compilations}
  fi
  cd "$here/.."
  show "$venv/bin/rapo" "$@"
  [ -z "$dry" ] || return 0
  mkdir -p "$kept/$name"
  rm -f "$kept/$name/exit" "$kept/$name/pid" "$kept/$name/stopped"
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid nohup bash -c '
    directory=$1
    shift
    "$@" &
    echo "$! $(cat /proc/sys/kernel/random/boot_id)" > "$directory/pid"
    wait "$!"
    echo "$?" > "$directory/exit.new"
    mv "$directory/exit.new" "$directory/exit"
  ' rapo-on-worker "$kept/$name" "$venv/bin/rapo" "$@" >>"$kept/$name/log" 2>&1 </dev/null &
  for _ in $(seq 50); do # until it is known, so that a state asked for at once is right
    [ ! -e "$kept/$name/pid" ] || break
    sleep 0.1
  done
  echo "$(hostname): $name started"
}

state() {
  local at=$kept/$1
  if alive "$1"; then
    echo "$(hostname) running"
    return
  fi
  [ ! -e "$at/log" ] || [ -e "$at/exit" ] || sleep 0.3 # between its end and the note of it
  if [ -e "$at/exit" ] && [ -e "$at/stopped" ] && [ "$(cat "$at/exit")" != 0 ]; then
    echo "$(hostname) stopped"
  elif [ -e "$at/exit" ]; then
    echo "$(hostname) exit $(cat "$at/exit")"
  elif [ -e "$at/log" ]; then
    echo "$(hostname) lost"
  else
    echo "$(hostname) none"
  fi
}

log() {
  [ -e "$kept/$1/log" ] || [ -n "$dry" ] || fail "nothing called $1 was started on $(hostname)."
  case ${2-} in
    '') doing tail -n 40 "$kept/$1/log" ;;
    --follow) doing tail -n 40 -F "$kept/$1/log" ;;
    *) fail "log takes --follow, not $2." ;;
  esac
}

stop() {
  local pid
  if alive "$1"; then
    read -r pid _ <"$kept/$1/pid"
    [ -n "$dry" ] || touch "$kept/$1/stopped"
    doing kill -TERM "$pid"
  else
    echo "$(hostname): $1 is not running"
  fi
}

newest() {
  local step
  cd "$here/.."
  step=$(find "$1/checkpoints" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | grep -xE '[0-9]+' | sort -n | tail -n 1)
  echo "$(hostname) newest $step"
}

expire() { # a guard: the slice deletes itself, if its service account may
  local hours
  a_number hours "$1"
  hours=$value
  shift
  show sleep "${hours}h" '&&' "$@"
  [ -z "$dry" ] || return 0
  mkdir -p "$kept"
  if runs "$kept/expires"; then return; fi
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid nohup bash -c 'sleep "$0"; "$@"' "${hours}h" "$@" >"$kept/expires.log" 2>&1 </dev/null &
  echo "$! $(cat /proc/sys/kernel/random/boot_id)" >"$kept/expires"
}

if [ "${1-}" = --dry-run ]; then
  dry=1
  shift
fi
verb=${1-}
shift || true
case $verb in
  install)
    [ $# = 1 ] || [ "${2-}" = -- ] || fail "install takes tpu, cuda or cpu, and -- with what rapo is to do."
    install "${1-}" "${@:3}"
    ;;
  mount) [ $# = 1 ] || fail "mount takes gs://BUCKET or HOST:/SHARE." && mount_storage "$1" ;;
  newest) [ $# = 1 ] || fail "newest takes RUN_DIR." && newest "$1" ;;
  expire) [ $# -ge 2 ] || fail "expire takes hours and a command." && expire "$@" ;;
  start | state | log | stop)
    [ $# -ge 1 ] || fail "$verb takes the name of a run."
    a_name "the name of a run" "$1"
    name=$value
    shift
    if [ "$verb" = start ]; then
      [ "${1-}" = -- ] || fail "start takes NAME -- and what rapo is to do."
      shift
      a_verb "$@"
    fi
    "$verb" "$name" "$@"
    ;;
  *) fail "${verb:-no verb} must be install, mount, start, state, log, stop, newest or expire; the head of the file says more." ;;
esac
