#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [[ "${1:-}" == --compress ]]; then
    python compression/compress.py "$MODEL_DIR" "$OUTPUT_MODEL"
fi
