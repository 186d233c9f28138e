# Sourced by quickstart.sh and test.sh: goes to the repository root and gives `environment`.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

# environment NAME WHAT...: makes .venv with ${PYTHON:-python3} where there is none, and installs
# WHAT into it unless that was done since pyproject.toml last changed. NAME tells the sets apart.
# The versions are those of scripts/constraints/ that were tested with this Python; UNPINNED=1 takes the
# newest, as does an index that lacks them.
environment() {
  local name=$1 python=${PYTHON:-python3} stamp tested
  shift
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      fail "$python is missing or older than Python 3.11; set PYTHON to a newer one"
    "$python" -m venv --clear .venv || fail "$python cannot make .venv; is its venv module there?"
  fi
  tested=$(.venv/bin/python -c 'import sys; print("scripts/constraints/py%d%d.txt" % sys.version_info[:2])')
  [[ -f $tested && -z "${UNPINNED:-}" ]] || tested=
  # A virtual environment that was moved still points at its old place.
  stamp="$PWD $(.venv/bin/python --version) $(cat pyproject.toml $tested | cksum) $*"
  if [[ "$(cat ".venv/installed-$name" 2>/dev/null)" != "$stamp" ]]; then
    echo "installing into $PWD/.venv${tested:+, versions of $tested}"
    if [[ -z $tested ]] || ! pip_install --constraint "$tested" "$@"; then
      [[ -z $tested ]] || echo "the versions of $tested cannot be had here; taking the newest"
      pip_install "$@" || fail "pip could not install $*; its own message is above"
    fi
    echo "$stamp" >".venv/installed-$name"
  fi
}

pip_install() {
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}
