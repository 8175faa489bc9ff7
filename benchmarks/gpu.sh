#!/usr/bin/env bash
# Checks the fused kernels on this GPU and times them beside what people use, within six minutes; no network.
#   benchmarks/gpu.sh                        parity, edge cases, then timings; all of it goes to gpu-results/
#   benchmarks/gpu.sh --plan                 the parts and the seconds each may take
#   benchmarks/gpu.sh --parts parity build   some parts only
#   benchmarks/gpu.sh --out FOLDER           somewhere else (a relative path begins at the root of the repository)
#   benchmarks/gpu.sh --smoke                the same code on toys in Triton's interpreter, on a CPU
#   benchmarks/gpu.sh --everything           every check, then every benchmark (hours; any option of pytest works);
#                                            rows go to benchmarks/results/
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case " $* " in *" --smoke "*) export TRITON_INTERPRET=1 ;; *) export TRITON_INTERPRET=0 ;; esac
export KINETO_LOG_LEVEL="${KINETO_LOG_LEVEL:-5}" # the profiler says nothing but errors
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-$(command -v python || command -v python3)}" -m benchmarks.gpu "$@"
