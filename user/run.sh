#!/usr/bin/env bash
# Evaluate $OUTPUT_MODEL: mean accuracy over the tasks, size, and their ratio. Options: bash run.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python=$(command -v python || command -v python3)
export OUTPUT_MODEL=${OUTPUT_MODEL:-$PWD/output_model}
exec "$python" evaluate.py "$@"
