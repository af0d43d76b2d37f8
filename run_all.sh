#!/usr/bin/env bash
# Usage: ./run_all.sh [--profile smoke|laptop|study] [--from NN] [--only NN] [--force] [--strict] [--seeds N] [--seed N] [--debug]
#        ./run_all.sh --profile paper --plan-only | --profile paper [--data DIR --reader DIR --sae DIR --policy DIR ..., see run --help]
#        ./run_all.sh test [pytest arguments]
#        ./run_all.sh publish [--profile laptop|study]
# Runs the notebooks in order, leaves artifacts/<profile>/ and says how it compares with figures/; runs the test suite;
# or replaces figures/ and the outputs in notebooks/ by those of the finished run.
# Uses the active environment when it holds the locked packages, else .venv, which it makes from requirements.lock.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"

case "${1:-}" in
  -h | --help)
    sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac

# Relative folders are meant from where the command was typed.
absolute() {
  case "$1" in
    /* | "~"*) printf '%s' "$1" ;;
    *) printf '%s/%s' "$PWD" "$1" ;;
  esac
}
if [[ -n "${SAERL_HOME:-}" ]]; then SAERL_HOME="$(absolute "$SAERL_HOME")"; export SAERL_HOME; fi
if [[ -n "${SAERL_DATA_DIR:-}" ]]; then SAERL_DATA_DIR="$(absolute "$SAERL_DATA_DIR")"; export SAERL_DATA_DIR; fi
export SAERL_CALLED_FROM="$PWD"
cd "$ROOT"

passes() {
  [[ -n "$1" ]] && "$1" -m saerl_lib.needs --packages >/dev/null 2>&1
}

active_python() {
  if [[ -n "${VIRTUAL_ENV:-}" ]]; then
    printf '%s' "$VIRTUAL_ENV/bin/python"
  elif [[ -n "${CONDA_PREFIX:-}" ]]; then
    printf '%s' "$CONDA_PREFIX/bin/python"
  else
    command -v python3 || true
  fi
}

is_recent() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

base_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3 python; do
    if is_recent "$name"; then
      printf '%s' "$name"
      return
    fi
  done
  echo "error: no Python 3.11 or newer with venv was found; install one or activate the conda environment" >&2
  return 1
}

wants_plan() {
  local argument
  for argument in "$@"; do
    if [[ "$argument" == "--plan-only" ]]; then return 0; fi
  done
  return 1
}

install() {
  local base
  if ! is_recent .venv/bin/python; then
    base="$(base_python)"
    echo "environment: making .venv with $base"
    "$base" -m venv --clear .venv
  fi
  echo "environment: installing requirements.lock into .venv (some minutes) ..."
  .venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.lock
  echo "environment: installed in $SECONDS s"
  if ! .venv/bin/python -m saerl_lib.needs --packages; then
    echo "error: .venv does not agree with requirements.lock after installing; remove .venv and try again" >&2
    return 1
  fi
}

PYTHON="$(active_python)"
if passes "$PYTHON"; then
  echo "environment: active, $PYTHON"
else
  PYTHON="$ROOT/.venv/bin/python"
  if ! passes "$PYTHON"; then
    # The plan of profile paper needs no package, so nothing is installed for it.
    if wants_plan "$@"; then exec "$(base_python)" -m saerl_lib.needs "$@"; fi
    install
  fi
  echo "environment: .venv, $PYTHON"
fi

export PYTHONHASHSEED="${PYTHONHASHSEED:-0}"
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1779753600}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export PYDEVD_DISABLE_FILE_VALIDATION="${PYDEVD_DISABLE_FILE_VALIDATION:-1}"
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore:IProgress not found}"
export HF_HUB_DISABLE_PROGRESS_BARS="${HF_HUB_DISABLE_PROGRESS_BARS:-1}"
export JUPYTER_PREFER_ENV_PATH=1
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# The reader, SmolLM2, is fetched once, like the packages; without it only what it reads is missing.
has_reader() {
  [[ -f "$ROOT/artifacts/models/smollm2/provenance.json" || -f "${SAERL_HOME:-$ROOT/artifacts}/models/smollm2/provenance.json" ]]
}
if [[ "${1:-}" != "publish" ]] && ! wants_plan "$@" && ! has_reader; then
  "$PYTHON" -m saerl_lib fetch || echo "reader: SmolLM2 is not there; what reads text will say so"
fi

if [[ "${1:-}" == "test" ]]; then
  shift
  # Two files of tests side by side; pytest -n 0 runs them one after another.
  exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
fi
if [[ "${1:-}" == "publish" ]]; then exec "$PYTHON" -m saerl_lib "$@"; fi
exec "$PYTHON" -m saerl_lib run "$@"
