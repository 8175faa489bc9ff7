#!/usr/bin/env bash
# Parity of the fused kernels on this GPU, then every benchmark on it; no network.
#   benchmarks/gpu.sh                       everything; rows go to benchmarks/results/
#   benchmarks/gpu.sh --levels projection   one level (any option of pytest works)
#   benchmarks/gpu.sh --smoke               the same code on toys in Triton's interpreter, on a CPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case " $* " in *" --smoke "*) export TRITON_INTERPRET=1 ;; *) export TRITON_INTERPRET=0 ;; esac
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m benchmarks.gpu "$@"
