#!/usr/bin/env bash
# Install what the code in this folder needs and, with --compress, write the compressed model to $OUTPUT_MODEL.
#   MODEL_DIR     the original model        (default: the embedded model of the repository)
#   OUTPUT_MODEL  where the result goes     (default: output_model in this folder)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python=$(command -v python || command -v python3)
export MODEL_DIR=${MODEL_DIR:-$PWD/../embedded/tiny-llama}
export OUTPUT_MODEL=${OUTPUT_MODEL:-$PWD/output_model}

find_missing() {
    "$python" - <<'PY'
from importlib.util import find_spec
print(*[name for name in ("torch", "safetensors", "transformers", "lm_eval") if find_spec(name) is None])
PY
}

if [[ -n "$(find_missing)" ]]; then
    "$python" -m pip install --quiet .
fi

case "${1:-}" in
    "") ;;
    --compress) "$python" compression/compress.py "$MODEL_DIR" "$OUTPUT_MODEL" ;;
    *) echo "build.sh: unknown argument '$1'; write --compress or nothing" >&2; exit 2 ;;
esac
