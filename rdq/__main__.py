"""``rdq compress MODEL OUT --bits 3.0``: a language model in the Hugging Face layout, compressed."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdq.errors import RdqError

if TYPE_CHECKING:
    from rdq.report import Report

EXIT_USAGE = 4
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def size(text: str) -> int:
    """Bytes of "2GiB", "900MB" or "123456"; raises argparse's error for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?|)b?", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write 2GiB, 900MB or a number of bytes")
    return int(float(match[1]) * UNITS[match[2]])


def numbers(text: str) -> list[float]:
    """The numbers of "4,3,2.5"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' are no numbers; write 4,3,2.5") from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="rdq", description=__doc__)
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser("compress", help="a model folder to a compressed one")
    verb.add_argument(
        "model", type=Path, metavar="MODEL", help="folder with config.json and safetensors files"
    )
    verb.add_argument("out", type=Path, metavar="OUT", help="new folder; with --budget one below it for each")
    budget = verb.add_mutually_exclusive_group(required=True)
    budget.add_argument("--bits", type=float, help="bits per weight, all files but the tokenizer's counted")
    budget.add_argument("--kl", type=float, help="nats per token that the predictions may differ by")
    budget.add_argument("--size", type=size, help="of the whole folder, such as 2GiB")
    budget.add_argument("--budget", type=numbers, metavar="BITS,…", help="several bits per weight at once")
    verb.add_argument(
        "--mode",
        choices=("sensitivity", "calibrated", "data-free"),
        default="sensitivity",
        help="inputs and gradients, inputs alone, or neither (default: %(default)s)",
    )
    verb.add_argument("--data-free", dest="mode", action="store_const", const="data-free")
    verb.add_argument("--calibration", type=Path, metavar="FILE", help="text or .jsonl; default: model's own")
    verb.add_argument("--samples", type=int, default=128, help="sequences to calibrate on")
    verb.add_argument("--length", type=int, default=512, help="tokens of each")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument(
        "--drift",
        type=float,
        default=0.0,
        metavar="PART",
        help="make up for the blocks before: 0 to 1, try 0.5",
    )
    where = verb.add_mutually_exclusive_group()
    where.add_argument(
        "--offload",
        type=Path,
        metavar="FOLDER",
        help="one block of the model in memory at a time, scratch files here; models of more than 2 GB do it "
        "by themselves, in TMPDIR",
    )
    where.add_argument("--in-memory", dest="offload", action="store_const", const=False)
    verb.add_argument(
        "--damping", type=float, help="of the inputs' products, in means; default: measured on held-back text"
    )
    verb.add_argument("--report", type=Path, metavar="FILE", help="JSON: bytes of every tensor")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        reports = _compress(arguments)
    except RdqError as error:
        print(f"rdq: {error}", file=sys.stderr)
        return EXIT_USAGE
    if arguments.report:
        content = [report.to_json() for report in reports]
        arguments.report.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _compress(arguments: argparse.Namespace) -> list[Report]:
    from rdq.budget import Budget, Session
    from rdq.compress import Options

    options = Options(
        mode=arguments.mode,
        calibration=arguments.calibration,
        samples=arguments.samples,
        length=arguments.length,
        seed=arguments.seed,
        drift=arguments.drift,
        offload=arguments.offload,
        damping=arguments.damping,
    )
    session = Session(arguments.model, options)
    if arguments.budget is None:
        budget = Budget(bits=arguments.bits, kl=arguments.kl, size=arguments.size)
        return [_say(arguments.out, session.compress(arguments.out, budget))]
    folders: list[tuple[Path, Any]] = [
        (arguments.out / f"{bits:g}", Budget(bits=bits)) for bits in arguments.budget
    ]
    return [_say(folder, session.compress(folder, budget)) for folder, budget in folders]


def _say(folder: Path, report: Report) -> Report:
    kl = f"{report.kl:.4g} nats per token" if report.kl is not None else "not measured"
    print(
        f"{folder}: {report.bits:.3f} bits per weight, {report.folder_bytes} bytes, divergence {kl}",
        flush=True,
    )
    return report


if __name__ == "__main__":
    sys.exit(main())
