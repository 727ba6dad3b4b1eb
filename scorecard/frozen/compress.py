"""Make the compressed model: python compress.py MODEL_DIR OUTPUT_MODEL

MODEL_DIR holds the original; "" for where manifest.json says that it is from.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from runners.baseline import Runner
from scorecard.frozen.case import CASE

FOLDER = Path(__file__).resolve().parents[1]


def original(given: str, manifest: dict[str, Any]) -> Path:
    """The folder of the original model; one of the hub is fetched at its revision."""
    if given:
        return Path(given)
    model = manifest["model"]
    scheme, _, name = str(model["source"]).partition(":")
    if scheme == "hf":
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name.partition("@")[0], revision=model["revision"]))
    if scheme == "embedded" and (FOLDER.parent / "embedded" / name).is_dir():
        return FOLDER.parent / "embedded" / name
    sys.exit(f"compress.py: the original is {model['source']}; set MODEL_DIR to a folder that holds it")


def check_original(folder: Path, manifest: dict[str, Any]) -> None:
    """Ends the program where a file is not the one that the case was made from."""
    for name, entry in manifest["original"].items():
        path = folder / name
        if not path.is_file():
            sys.exit(f"{path}: is missing; MODEL_DIR must hold {manifest['model']['source']}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                sys.exit(f"{path}: is not that of {manifest['model']['source']}; fetch the original again")


def main() -> None:
    """Compress into an empty folder, and say what came out."""
    if len(sys.argv) != 3:
        sys.exit("usage: compress.py MODEL_DIR OUTPUT_MODEL")
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    model, output = original(sys.argv[1], manifest).resolve(), Path(sys.argv[2]).resolve()
    if output.exists() and any(output.iterdir()):
        sys.exit(f"{output}: is not empty; remove what is in it, or set OUTPUT_MODEL to another folder")
    check_original(model, manifest)
    output.mkdir(parents=True, exist_ok=True)
    runner = Runner(CASE, model, output)
    runner.compress()
    size_bytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size_bytes:,} bytes")


if __name__ == "__main__":
    main()
