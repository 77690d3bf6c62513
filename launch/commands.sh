# shellcheck shell=bash
# Sourced by the launchers: arguments, quoting, commands that --dry-run only prints, restarts.

is_dry_run=""
# Of a run that hung or lost a process: what does so each time needs a look.
# shellcheck disable=SC2034 # For the scripts that source this one.
max_restarts=20

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints the arguments as a line that any POSIX shell parses back to the same arguments.
quote() {
  local argument line=""
  for argument in "$@"; do
    if [[ ! "$argument" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      argument="'${argument//\'/\'\\\'\'}'"
    fi
    line+="${line:+ }$argument"
  done
  printf '%s\n' "$line"
}

run() {
  if [[ -n "$is_dry_run" ]]; then
    quote "$@"
  else
    "$@"
  fi
}

# Sets option_NAME for each --NAME=VALUE before --, and `flags` to what comes after it.
#
#   read_options "name zone" "$@"
read_options() {
  local known=" $1 " argument name
  shift
  flags=()
  while [[ $# -gt 0 ]]; do
    argument="$1"
    shift
    case "$argument" in
      --) flags=("$@") && break ;;
      --dry-run) is_dry_run=1 ;;
      --help) usage && exit 0 ;;
      --*=*)
        name="${argument%%=*}"
        name="${name#--}"
        # shellcheck disable=SC2086 # A word for each name.
        [[ "$known" == *" $name "* ]] || fail "--$name is unknown; known are$(printf ' --%s' $known)"
        printf -v "option_${name//-/_}" '%s' "${argument#*=}"
        ;;
      *) fail "${argument@Q} is not --NAME=VALUE; the run's own flags come after --" ;;
    esac
  done
}

# Fails unless every option named has a value.
need_options() {
  local name variable
  for name in "$@"; do
    variable="option_${name//-/_}"
    [[ -n "${!variable:-}" ]] || fail "--$name=VALUE is missing; --help shows an example"
  done
}

# Fails unless the options named are yes or no; those that are no count as unset.
read_switches() {
  local name variable
  for name in "$@"; do
    variable="option_$name"
    case "${!variable:-no}" in
      yes) ;;
      no) printf -v "$variable" '' ;;
      *) fail "--$name=${!variable} is neither yes nor no" ;;
    esac
  done
}

# Fails unless the run's flags name a config and leave the workdir to the launcher, and that is a
# folder.
check_flags() {
  local flag has_config=""
  # shellcheck disable=SC2154 # `read_options` sets it.
  [[ "$option_workdir" != *://* ]] ||
    fail "--workdir=$option_workdir is a URL; mount the bucket, and name a folder in it"
  for flag in "${flags[@]}"; do
    case "$flag" in
      --config=*) has_config=1 ;;
      --workdir | --workdir=*) fail "--workdir goes in front of --" ;;
    esac
  done
  [[ -n "$has_config" ]] || fail "after -- comes --config=FILE.py, and further flags of videoar_jax.main"
}

# Prints which exit status of a run's processes explains how the run ended: nothing for none.
#
# If one process ends with an error, the others end by signals, and if one hangs, others may still be
# told to stop. So errors, below 128, come first; then 134, of a step that hung, a lost process or
# another failure of the runtime, and signals; then 130 and 143, of processes that were told to stop; then 0.
telling_status() {
  local status rank found="" highest=0
  for status in "$@"; do
    case "$status" in
      0) rank=1 ;;
      130 | 143) rank=2 ;;
      *) rank=$((status > 127 ? 3 : 4)) ;;
    esac
    if ((rank > highest)); then
      found="$status" highest="$rank"
    fi
  done
  printf '%s\n' "$found"
}

# Returns whether to restart a run that ended with a status, and counts that in `restarts`: after a
# hang or a lost process, up to 20 times in a row of less than three hours each.
count_restart() {
  [[ "$1" -gt 127 && "$1" -ne 130 && "$1" -ne 143 ]] || return 1
  restarts=$((restarts + 1))
  ((restarts <= max_restarts)) || return 1
  echo "the run ended with status $1; starting it again ($restarts of $max_restarts)"
}

# Resets the count of restarts if a run has lasted three hours since it began, by `date +%s`: longer
# than a step that hangs from the start takes until the default timeout ends it.
forgive_restarts() {
  (($(date +%s) - $1 < 10800)) || restarts=0
}

# Prints the comment at the head of the script.
usage() {
  sed -n '2,/^[^#]/{/^# shellcheck/d;s/^# \{0,1\}//p;}' "$0"
}
