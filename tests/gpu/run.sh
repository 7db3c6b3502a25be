#!/usr/bin/env bash
# Speed, memory and equality on a GPU, measured in some minutes and told in lines and in one JSON file:
#
#     tests/gpu/run.sh                      # from the root of the repository, or of a copy of trainers/ and tests/gpu/
#     tests/gpu/run.sh --out figures.json --preset 350m
#
# Needs torch, DeepSpeed, numpy, psutil, pydantic and safetensors there, and nothing else: no Ray, no MLflow, no installation. Without
# a GPU the same code runs in small on the CPU, about a minute, and says what it could not measure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
exec "$PYTHON" tests/gpu/measure.py "$@"
