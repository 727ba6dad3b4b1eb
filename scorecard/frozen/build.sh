#!/usr/bin/env bash
# Install what the code in this folder needs and, with --compress, write the compressed model to $OUTPUT_MODEL.
#   MODEL_DIR     the original model     (default: where manifest.json says that it is from)
#   OUTPUT_MODEL  where the result goes  (default: output_model in this folder)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python=$(command -v python || command -v python3)
export OUTPUT_MODEL=${OUTPUT_MODEL:-$PWD/output_model}
export PYTHONNOUSERSITE=1 HF_HUB_DISABLE_TELEMETRY=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-@THREADS@}  # as the case had: sums add up in another order with more

# The pins of requirements.txt that this Python does not have.
find_missing() {
    "$python" - <<'PY'
import importlib.metadata as metadata
import re

for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", open("requirements.txt").read(), re.MULTILINE):
    try:
        found = metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        found = None
    if found != version:
        print(f"{name}=={version}")
PY
}

# What has no hash (torch: any build of that version will do) first, with what it brings; then all the rest,
# exactly as it is locked.
install() {
    local scratch
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' RETURN
    grep -v -e '^#' -e '--hash=' requirements.txt > "$scratch/plain.txt" || true
    grep -e '--hash=' requirements.txt > "$scratch/hashed.txt" || true
    sed -n 's/^\([A-Za-z0-9._-]*==[^ ;\\]*\).*/\1/p' requirements.txt > "$scratch/all.txt"
    "$@" -r "$scratch/plain.txt" -c "$scratch/all.txt"
    "$@" --no-deps --require-hashes -r "$scratch/hashed.txt"
}

missing=$(find_missing)
if [[ -n "$missing" ]]; then
    echo "build.sh: installing $(wc -l <<< "$missing") distributions into $("$python" -c 'import sys; print(sys.prefix)')"
    if "$python" -m pip --version > /dev/null 2>&1; then
        install "$python" -m pip install --quiet --disable-pip-version-check
    else
        install uv pip install --quiet --python "$python"
    fi
fi

case "${1:-}" in
    "") ;;
    --compress) "$python" compression/compress.py "${MODEL_DIR:-}" "$OUTPUT_MODEL" ;;
    *) echo "build.sh: unknown argument '$1'; write --compress or nothing" >&2; exit 2 ;;
esac
