#!/usr/bin/env bash
# Score $OUTPUT_MODEL: mean accuracy over the tasks, size, and their ratio. Options: bash run.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python=$(command -v python || command -v python3)
export OUTPUT_MODEL=${OUTPUT_MODEL:-$PWD/output_model}
export PYTHONNOUSERSITE=1 DISABLE_MULTIPROC=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-@THREADS@}
exec "$python" evaluate.py "$@"
