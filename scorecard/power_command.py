"""``scorecard power``: how many documents a comparison needs, paired and not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from scorecard import power
from scorecard.errors import SpecError
from scorecard.report import json_report
from scorecard.row import Row

_HEADER = ("case", "documents", "differ %", "Δ points", "needs paired", "needs unpaired", "sees Δ of")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delta", type=float, metavar="D", help="difference in accuracy to be seen, as 0.01")
    parser.add_argument(
        "--discordance", type=float, metavar="S", help="share of documents right in only one of the two"
    )
    parser.add_argument(
        "--accuracy",
        type=float,
        default=0.5,
        metavar="A",
        help="of one case, for the unpaired test [%(default)s]",
    )
    parser.add_argument("--documents", type=int, metavar="N", help="documents there are: what do they show?")
    parser.add_argument(
        "--alpha", type=float, default=power.ALPHA, help="of the two-sided test [%(default)s]"
    )
    parser.add_argument("--power", type=float, default=power.POWER, help="chance of seeing it [%(default)s]")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="take the cases of a results.json, against their baseline",
    )


def main(options: argparse.Namespace) -> int:
    """Print what was asked for. Raises SpecError for numbers that cannot be."""
    for name in ("alpha", "power"):
        if not 0 < getattr(options, name) < 1:
            raise SpecError(
                f"--{name}: {getattr(options, name)} is not possible; write a number between 0 and 1"
            )
    if options.results:
        print("\n".join(_of_results(options)))
    elif options.discordance is None or (options.delta is None) == (options.documents is None):
        raise SpecError("power: what for? write --results FILE, or --discordance with --delta or --documents")
    else:
        print("\n".join(_of_numbers(options)))
    return 0


def _of_numbers(options: argparse.Namespace) -> Iterator[str]:
    setting = f"alpha {options.alpha:g} two-sided, power {options.power:g}"
    levels = (options.alpha, options.power)
    if options.documents:
        seen = power.detectable(options.documents, options.discordance, *levels)
        least = "no difference" if seen is None else f"a difference of {100 * seen:.2f} points"
        share = f"{100 * options.discordance:g} %"
        yield f"{options.documents:,} documents, {share} of which differ, show {least}"
        yield f"({setting}, McNemar)"
        return
    try:
        paired = power.paired_documents(options.delta, options.discordance, *levels)
        apart = power.unpaired_documents(options.accuracy, options.accuracy - options.delta, *levels)
    except ValueError as error:
        raise SpecError(f"power: {error}; write another --delta, --discordance or --accuracy") from None
    share = f"{100 * options.discordance:g} %"
    yield f"a difference of {100 * options.delta:g} points, where {share} of the documents differ, needs"
    yield f"{paired:>12,} documents, the same for both cases (McNemar)"
    yield f"{apart:>12,} documents of each case, if others for each (two proportions)"
    yield f"({setting})"


def _of_results(options: argparse.Namespace) -> Iterator[str]:
    try:
        text = options.results.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"--results: {options.results} cannot be read ({error}); write a results.json"
        ) from None
    table = json_report.read(text, str(options.results))
    rows = [row for row in table.rows if row.flips is not None and row.documents]
    lines = [list(_HEADER), *(_line(row, options) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        rest = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        yield "  ".join([f"{line[0]:<{widths[0]}}", *rest])
    yield f"(McNemar and two proportions, alpha {options.alpha:g} two-sided, power {options.power:g})"


def _line(row: Row, options: argparse.Namespace) -> list[str]:
    """The difference and the disagreement that were observed, taken for the true ones."""
    documents, levels = row.documents or 0, (options.alpha, options.power)
    share, delta = (row.flips or 0) / documents, row.delta_accuracy or 0.0
    seen = power.detectable(documents, share, *levels)
    paired = apart = "–"
    if 0 < abs(delta) <= share:
        paired = f"{power.paired_documents(delta, share, *levels):,}"
    if delta and row.mean_accuracy is not None and 0 <= row.mean_accuracy - delta <= 1:
        apart = f"{power.unpaired_documents(row.mean_accuracy, row.mean_accuracy - delta, *levels):,}"
    least = "–" if seen is None else f"{100 * seen:.2f}"
    return [row.case, f"{documents:,}", f"{100 * share:.1f}", f"{100 * delta:+.2f}", paired, apart, least]
