"""``scorecard freeze CASE``: the case as a folder that stands alone, user/ by default."""

from __future__ import annotations

import argparse
from pathlib import Path

from runners import custom
from scorecard import freeze, machine, placing, results
from scorecard.errors import ManifestError, SpecError, nearest
from scorecard.manifest import Manifest
from scorecard.row import SCORES, Row
from scorecard.run import Run
from scorecard.spec import Case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", nargs="?", metavar="CASE", help="id of the case, or name of its config")
    parser.add_argument("--best", action="store_true", help="the first one of the table, by --ranking")
    parser.add_argument("-k", dest="keyword", metavar="TEXT", default="", help="with --best: ids with TEXT")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where it is written [user]")
    parser.add_argument("--force", action="store_true", help="replace a folder that nothing else holds")


def main(run: Run, options: argparse.Namespace) -> int:
    """Write the folder. Raises ScorecardError where that cannot be; the old folder then stays as it is."""
    if bool(options.case) == options.best:
        raise SpecError("freeze: says no case; write the id of one, or --best")
    folder = Path(options.folder or machine.ROOT / "user").absolute()
    case = _best(run, options.keyword) if options.best else _named(run, options.case)
    own = list(custom.code(folder)) if folder.is_dir() else []
    placing.check_replaceable(folder, own, force=options.force)
    frozen = freeze.gather(run, case)
    with placing.beside(folder) as made:
        manifest = freeze.write(frozen, made)
    print(told(manifest, folder))
    return 0


def told(manifest: Manifest, folder: Path) -> str:
    """What was written, and what to do with it."""
    claims, sums = manifest.claims, manifest.sums
    accuracy = "no accuracy" if claims.mean_accuracy is None else f"accuracy {claims.mean_accuracy:.6f}"
    score = "" if claims.score is None else f", score {claims.score:.3f}"
    return (
        f"froze {manifest.case} into {folder}: {accuracy}, {claims.size_bytes:,} bytes{score}\n"
        f"code {sums['code_bytes']:,} bytes + model {sums['model_bytes']:,} bytes = "
        f"{sums['total_bytes']:,} bytes\n"
        f"next: bash {folder}/build.sh --compress && bash {folder}/run.sh"
    )


def _named(run: Run, text: str) -> Case:
    """The case with this id, or the only one whose config has this name."""
    cases = {case.id: case for case in run.cases}
    found = [case for name, case in cases.items() if text in (name, case.config.name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise SpecError(f"freeze: '{text}' is {', '.join(c.id for c in found[:5])}; write one id in full")
    raise SpecError(f"freeze: there is no case '{text}'; {nearest(text, cases)}")


def _best(run: Run, keyword: str) -> Case:
    """The compressed case with the best score, of those that the store has to the end.

    Raises ManifestError where there is none, and SpecError for several models, whose scores do not compare.
    """
    cases = {case.id: case for case in run.cases if keyword in case.id}
    models = dict.fromkeys(case.model.id for case in cases.values())
    if len(models) != 1:
        which = f"are {', '.join(models)}" if models else f"is none with '{keyword}'"
        raise SpecError(
            f"freeze: --best chooses among the cases of one model, and there {which}; write -k TEXT"
        )
    rows = results.summarise(run, list(cases.values()), write=False).table.rows
    ranking = run.options.ranking
    scored = [row for row in rows if _counts(row, ranking) and row.case in cases]
    if not scored:
        raise ManifestError(
            f"freeze: no case has a {ranking} score (of {', '.join(SCORES)}); run pytest first"
        )
    return cases[max(scored, key=lambda row: row.score(ranking) or 0.0).case]


def _counts(row: Row, ranking: str) -> bool:
    return row.status == "ok" and not row.reference and not row.baseline and row.score(ranking) is not None
