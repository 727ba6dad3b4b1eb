"""``scorecard submit FILE.zip``: a frozen folder, checked and packed."""

from __future__ import annotations

import argparse
from pathlib import Path

from scorecard.submission import submit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.zip")
    parser.add_argument("--folder", type=Path, default=Path("user"), help="the frozen folder [%(default)s]")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="FILE:LINE", help="what looks like a secret is none"
    )


def main(options: argparse.Namespace) -> int:
    """Pack, and say what is in the zip. Raises SubmissionError, ArtifactError and ManifestError."""
    made = submit(options.folder, options.file, options.allow)
    print(f"{options.file}: {made.files} files, sha256 {made.sha256}")
    total = made.model_bytes + made.code_bytes
    print(f"model {made.model_bytes:,} bytes, code {made.code_bytes:,} bytes, together {total:,} bytes")
    return 0
