# shellcheck shell=bash
# Read by the scripts beside it: how a command is shown, done or refused.

dry=${dry:-} # not empty: show, do nothing

fail() { # one sentence; the mistake is the user's
  printf '%s: %s\n' "${0##*/}" "$*" | fold -s -w 79 >&2
  exit 2
}

quoted() { # the words, as a shell reads them
  local word
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+~^-]+$ ]]; then
      printf '%s\n' "$word"
    else
      printf "'%s'\n" "${word//\'/\'\\\'\'}"
    fi
  done
}

show() { # a command on lines of at most 80 columns, to be copied; a dry run prints nothing else
  if [ -n "$dry" ]; then wrapped "$@"; else wrapped "$@" >&2; fi
}

wrapped() {
  local line='+' word
  while IFS= read -r word; do
    if [ "$line" != '+' ] && [ $((${#line} + ${#word})) -gt 76 ]; then
      printf '%s \\\n' "$line"
      line='   '
    fi
    line+=" $word"
  done < <(quoted "$@")
  printf '%s\n' "$line"
}

tell() { # a line or more of at most 80 columns
  printf '%s\n' "$*" | fold -s -w 79
}

doing() { # shows a command and, unless this is a dry run, does it
  show "$@"
  if [ -z "$dry" ]; then "$@"; fi
}

need() { # the programs that are called have to be there, unless nothing is called
  local program
  [ -z "$dry" ] || return 0
  for program in "$@"; do
    command -v "$program" >/dev/null || fail "$program is not installed; $(where_from "$program")"
  done
}

where_from() {
  case $1 in
    gcloud) echo "it comes with the Google Cloud CLI (cloud.google.com/sdk)." ;;
    kubectl) echo "gcloud components install kubectl" ;;
    xpk) echo "pip install xpk" ;;
    *) echo "install it with your system's packages." ;;
  esac
}

# The words of a command.

# shellcheck disable=SC2034 # read by the scripts
each_word() { # options of all scripts; `option WORDS` takes one of a script's own, and says how many words by `taken`
  local taken
  follow='' words=() places=()
  while [ $# -gt 0 ]; do
    taken=1
    case $1 in
      --follow) follow=--follow ;;
      --dry-run) dry=1 ;;
      --)
        shift
        words=("$@")
        return
        ;;
      -*) option "$@" || no_option "$1" ;;
      *) places+=("$1") ;;
    esac
    shift "$taken"
  done
}

no_option() { fail "$1 is no option; the head of launch/${0##*/} lists them."; }

# shellcheck disable=SC2034 # read by the scripts
export_to_fetch() { # sets run_dir, local_dir, and of the newest step that `newest RUN_DIR` knows: step, out, and job, its name
  [ ${#places[@]} = 2 ] || fail "fetch takes RUN_DIR and LOCAL_DIR."
  run_dir=${places[0]%/} local_dir=${places[1]} step=STEP
  [ ! -e "$local_dir" ] || fail "$local_dir exists; choose another place."
  if [ -z "$dry" ]; then
    step=$(newest "$run_dir") || step=''
    [[ $step =~ ^[0-9]+$ ]] || fail "$run_dir cannot be read there, or has no checkpoint yet."
  fi
  out=$run_dir-$step-hf
  job=export-$(printf %s "$run_dir" | cksum | cut -d ' ' -f 1)-${step,,}
}

# Each of these sets `value`, the value of an option, from the words that begin with the option.

a_value() {
  case ${2-} in '' | --*) fail "$1 needs a value." ;; esac
  value=$2
}

a_number() {
  a_value "$@"
  [[ $2 =~ ^[0-9]{1,6}$ ]] || fail "$1=$2 must be a whole number."
  # shellcheck disable=SC2034
  value=$((10#$2))
}

a_name() { # that clouds and file systems take
  a_value "$@"
  [[ $2 =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    fail "$1=$2 must be 1 to 40 small letters, digits and dashes, and begin with a letter."
}

a_storage() { # where all hosts keep files
  a_value "$@"
  [[ $2 =~ ^gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$ || $2 =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*$ ]] ||
    fail "$1=$2 must be gs://BUCKET or, for NFS, HOST:/SHARE."
}

a_verb() { # WORDS OF RAPO: only verbs that can join other processes
  case ${1-} in
    train | score | generate | export) ;;
    '') fail "give what rapo is to do after --, such as: -- train configs/tiny.yaml" ;;
    *) fail "rapo $1 does not run on several hosts; train, score, generate and export do." ;;
  esac
}

uses_bucket() { # WORDS OF RAPO: whether they, or a configuration that they name, keep something at gs://
  local word
  for word in "$@"; do
    case $word in
      *gs://*) return 0 ;;
      *.yaml | *.yml) [ ! -f "$word" ] || ! grep -q 'gs://' "$word" || return 0 ;;
    esac
  done
  return 1
}

pack() { # the files of this clone that a run needs, in one archive
  local archive=$1
  doing tar --create --gzip --file "$archive" --exclude __pycache__ \
    pyproject.toml README.md LICENSE rapo_jax configs launch
}
