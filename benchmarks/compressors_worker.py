"""Compress, weigh, audit and score many cases in one process of one environment.

    PYTHON -P -m benchmarks.compressors_worker JOB.json

What the scorecard does in four processes for a case is done here by the same functions in one for all:
importing the libraries takes longer than these small models do. Configs that differ in ``outer_bits`` only
share the body that is compressed once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runners import _hf, _outer, base
from scorecard.errors import ScorecardError
from scorecard.spec import Case, Record, from_json, to_json
from scorecard.store import now, write_atomic

RECORDS, ARTIFACTS, BODIES, DOCUMENTS = "records", "artifacts", "bodies", "documents"
REFERENCE = "reference.safetensors"
CALIBRATED = ("gptq", "awq", "autoround")  # run the model, and so take the copy in float32
WIDE: dict[str, Path] = {}
# What a backend raises for a model or options that it cannot do; anything else is a bug of the benchmark.
FAILURES = (ScorecardError, RuntimeError, ValueError, NotImplementedError, AssertionError, OSError)


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder, model = Path(job["folder"]), Path(job["model"])
    if job.get("wide"):
        WIDE["folder"] = widened(model, folder / "wide")
    for content in job["cases"]:
        case = from_json(Case, content)
        path = record_path(folder, case)
        if not finished(path, case):
            started = time.perf_counter()
            records = worked(case, model, folder)
            write_atomic(path, {"case": to_json(case), "records": to_json(records)})
            say = f"{case.config.name}: {records[-1].reason or 'ok'} ({time.perf_counter() - started:.0f} s)"
            print(say, flush=True)
    return 0


def record_path(folder: Path, case: Case) -> Path:
    """Where the records of a case lie."""
    return folder / RECORDS / f"{case.config.name}.json"


def finished(path: Path, case: Case) -> bool:
    """Whether the case, as it is now, was measured; one that failed is tried again."""
    if not path.is_file():
        return False
    content = json.loads(path.read_text(encoding="utf-8"))
    same = _identity(from_json(Case, content["case"])) == _identity(case)
    return same and all(record["status"] == "ok" for record in content["records"])


def _identity(case: Case) -> Case:
    """The case without what cannot change its result."""
    calibrates = base.get(case.config.runner)(case, None, Path()).calibrates
    return case if calibrates else dataclasses.replace(case, calibration=None)


def worked(case: Case, model: Path, folder: Path) -> list[Record]:
    """The records of the stages up to the first that fails."""
    records: list[Record] = []
    for stage in (compress, audit, evaluate):
        started_at, begin = now(), time.perf_counter()
        reason, result = None, {}
        try:
            result = stage(case, model, folder)
        except FAILURES as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        record = Record(
            stage=stage.__name__,  # type: ignore[arg-type]
            key="",
            case=case.id,
            status="failed" if reason else "ok",
            inputs={},
            started_at=started_at,
            seconds=time.perf_counter() - begin,
            result=result,
            reason=reason,
        )
        records.append(record)
        if reason:
            break
    return records


def artifact(case: Case, folder: Path) -> Path:
    return folder / ARTIFACTS / case.config.name


def compress(case: Case, model: Path, folder: Path) -> dict[str, Any]:
    """Write the artifact as ``Runner.compress`` does, the body copied where another case has made it."""
    out = artifact(case, folder)
    shutil.rmtree(out, ignore_errors=True)
    parsed = base.get(case.config.runner)(case, model, out).options
    if not hasattr(parsed, "outer_bits"):
        out.mkdir(parents=True)
        _compress(case, model, out)
        return {}
    options = {key: value for key, value in case.config.options.items() if key != "outer_bits"}
    shared = dataclasses.replace(case.config, options=options)
    body = folder / BODIES / _digest(shared.runner, options, case)
    if not body.is_dir():
        partial = body.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _compress(dataclasses.replace(case, config=shared), model, partial)
        partial.rename(body)
    shutil.copytree(body, out)
    group = parsed.block_size if case.config.runner == "bnb" else parsed.group_size
    _outer.pack(case, model, out, parsed.outer_bits, group)
    return {}


def _compress(case: Case, model: Path, out: Path) -> None:
    plain = dataclasses.replace(case.evaluation, dtype="auto")  # the files are of the original's type
    wide = WIDE.get("folder") if case.config.runner in CALIBRATED else None
    runner = base.get(case.config.runner)(dataclasses.replace(case, evaluation=plain), wide or model, out)
    runner.check()
    runner.check_shapes(_hf.shapes(model, case))
    runner.compress()
    if wide:
        _hf.store_as_original(model, out)


def widened(model: Path, folder: Path) -> Path:
    """A copy of the model in float32: the same weights for a processor that is slow in bfloat16."""
    from safetensors.torch import load_file, save_file

    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(model, partial)
        for path in _hf.weight_files(partial):
            save_file({name: t.float() for name, t in load_file(path).items()}, path, {"format": "pt"})
        _set_dtype(partial, "float32")
        partial.rename(folder)
    return folder


def _set_dtype(folder: Path, dtype: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8")


def _digest(runner: str, options: Mapping[str, Any], case: Case) -> str:
    text = json.dumps([runner, to_json(options), to_json(_identity(case).calibration)], sort_keys=True)
    return f"{runner}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def audit(case: Case, model: Path, folder: Path) -> dict[str, Any]:
    """The byte ledger and what the audit finds; of the original also its bytes without a bit lost."""
    from scorecard.audit import audit as inspect
    from scorecard.ledger import weigh
    from scorecard.lossless import lossless_bytes

    out = artifact(case, folder)
    options = base.get(case.config.runner)(case, model, out).options
    claims = {"runner": case.config.runner, **dataclasses.asdict(options)}
    result: dict[str, Any] = {"ledger": weigh(out, model), "audit": inspect(out, model, claims)}
    if case.config.runner == "baseline":
        result["lossless_bytes"] = lossless_bytes(model)
    return result


def evaluate(case: Case, model: Path, folder: Path) -> dict[str, Any]:
    """Load the artifact and score it against the original's predictions, which the baseline writes."""
    from scorecard.evaluate import evaluate as score

    first = case.config.runner == "baseline"
    documents = folder / DOCUMENTS / f"{case.config.name}.parquet"
    documents.parent.mkdir(exist_ok=True)
    runner = base.get(case.config.runner)(case, None, artifact(case, folder))
    lm: Any = runner.load()
    return dict(
        score(
            lm,
            case.evaluation,
            reference=None if first else folder / REFERENCE,
            write_reference=folder / REFERENCE if first else None,
            documents=documents,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
