"""``scorecard compare A B``: two cases of the store, document by document."""

from __future__ import annotations

import argparse
import json

from scorecard import results
from scorecard.against import metrics
from scorecard.comparable import conditions, differences
from scorecard.compare import Comparison, paired
from scorecard.errors import ComparisonError, SpecError, nearest
from scorecard.pairs import read_documents
from scorecard.records import CaseRecords, own_row
from scorecard.report import comparison
from scorecard.run import Run
from scorecard.spec import Case, to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="a case, or a part of its id that no other case has")
    parser.add_argument("second", metavar="B", help="the case it is compared with")
    parser.add_argument("--json", action="store_true", help="all of it, every flipped document too, as JSON")
    parser.add_argument(
        "--flips", type=int, default=20, metavar="N", help="flipped documents shown per task [%(default)s]"
    )


def main(run: Run, options: argparse.Namespace) -> int:
    """Print the comparison. Raises ComparisonError where the two were not scored alike."""
    cases = [_find(run, name) for name in (options.first, options.second)]
    found = compared(*(results.case_records(run, case) for case in cases))
    if options.json:
        names = {"first": cases[0].id, "second": cases[1].id}
        print(json.dumps({**names, **to_json(found)}, indent=1, ensure_ascii=False))
    else:
        print(comparison.render(found, (cases[0].id, cases[1].id), options.flips))
    return 0


def compared(first: CaseRecords, second: CaseRecords) -> Comparison:
    """First minus second. Raises ComparisonError where one was not scored, or not under like conditions."""
    for case in (first, second):
        if case.documents is None:
            raise ComparisonError(f"{case.case}: is not evaluated; run it first")
    if different := differences(conditions(first), conditions(second)):
        raise ComparisonError(f"{first.case}: {'; '.join(different)}; evaluate both cases alike")
    rows = own_row(first), own_row(second)
    sizes = (rows[0].size_gib, rows[1].size_gib)
    assert first.documents is not None
    assert second.documents is not None
    return paired(
        read_documents(first.documents),
        read_documents(second.documents),
        metrics(rows[0]),
        sizes_gib=(sizes[0], sizes[1]) if sizes[0] and sizes[1] else None,
        common=rows[0].stopped_early or rows[1].stopped_early,
    )


def _find(run: Run, text: str) -> Case:
    """The case with this id, or the only one whose id contains it."""
    cases = {case.id: case for case in run.cases}
    cases |= {
        baseline.id: baseline for baseline in map(run.baseline_of, run.cases) if baseline.id not in cases
    }
    ends = [case for name, case in cases.items() if name == text or name.endswith(f"-{text}")]
    found = ends or [case for name, case in cases.items() if text in name]
    if len(found) == 1:
        return found[0]
    if found:
        raise SpecError(f"compare: '{text}' is in {', '.join(c.id for c in found[:5])}; write one id in full")
    raise SpecError(f"compare: there is no case '{text}'; {nearest(text, cases)}")
