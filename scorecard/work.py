"""What each stage does, in the process that a worker forks for it: a request in, the record's ``result`` out.

``evaluate`` and ``measure`` isolate themselves first: they see the artifact and not the original.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecard import isolation, machine, supervise
from scorecard.errors import RunnerUnavailable, ScorecardError, SpecError
from scorecard.request import Request
from scorecard.spec import Case
from scorecard.store import sha256_tree, stage_key

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from runners._scoring.encodings import Encodings

REFERENCE, DOCUMENTS, ENCODINGS = "reference.safetensors", "documents.parquet", "encodings.safetensors"


def _case(request: Request) -> Case:
    if request.case is None:
        raise SpecError(f"{request.stage}: the request names no case")
    return request.case


def _path(value: str | None, what: str) -> Path:
    if value is None:
        raise SpecError(f"the request names no {what}")
    return Path(value)


def prepare(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    """Resolve the tasks and fetch their data, so that everything later can run with the hub off."""
    from scorecard.evaluate import resolve

    return dict(resolve(request.evaluation, offline=request.offline))


def compress(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    from runners import _calibration, _hf, base

    case, artifact = _case(request), folder / "artifact"
    artifact.mkdir()
    os.environ["OUTPUT_MODEL"] = str(artifact)
    runner = base.get(case.config.runner)(case, _path(request.model_dir, "model"), artifact)
    _check_gpu()
    if type(runner).check_shapes is not base.BaseRunner.check_shapes:
        runner.check_shapes(_hf.shapes(runner.model_dir, case))
    begin = time.perf_counter()
    runner.compress()
    seconds = time.perf_counter() - begin
    files = sha256_tree(artifact)
    if not files:
        raise ScorecardError(
            f"{case.id}: compress left nothing in $OUTPUT_MODEL; write the model's files there"
        )
    return {
        "artifact_sha256": stage_key(files),
        "seconds": seconds,
        "peak_host_memory_bytes": supervise.peak_memory_bytes(),
        "peak_cuda_memory_bytes": _peak_cuda_bytes(),
        "device": machine.device(),
        "calibration": _calibration.describe(case, runner.model_dir) if runner.calibrates else None,
    }


def _check_gpu() -> None:
    """A GPU that this environment's torch cannot use must not turn into a slow run on the CPU.

    Raises RunnerUnavailable.
    """
    if machine.device() == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise RunnerUnavailable(
            f"torch {torch.__version__} cannot use this machine's {machine.gpus()[0]['name']}; "
            "install a build for its driver, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        )


def _peak_cuda_bytes() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())


def audit(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    from runners import base
    from scorecard.audit import audit as inspect
    from scorecard.ledger import weigh
    from scorecard.lossless import lossless_bytes

    case = _case(request)
    artifact, original = _path(request.artifact, "artifact"), _path(request.model_dir, "model")
    options = base.get(case.config.runner)(case, original, artifact).options
    claims = {"runner": case.config.runner, **dataclasses.asdict(options)}
    result: dict[str, Any] = {"ledger": weigh(artifact, original)}
    result["audit"] = inspect(artifact, original, claims)
    if case.config.runner == "baseline":  # what the table's lossless row weighs
        result["lossless_bytes"] = lossless_bytes(original)
    return result


def evaluate(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    from scorecard.evaluate import evaluate as score

    case = _case(request)
    granted = {"artifact": _path(request.artifact, "artifact"), "out": folder}
    if request.reference:
        granted["reference"] = Path(request.reference)
    calibration = _calibration_texts(case)
    seen = _isolate(request, scratch, granted)
    out, reference = seen.granted["out"], seen.granted.get("reference")
    _check_gpu()
    with _loaded(request, case, seen) as lm:
        encodings = _encodings(lm, reference or out)
        result = score(
            lm,
            case.evaluation,
            reference=reference / REFERENCE if reference and case.evaluation.heldout else None,
            write_reference=out / REFERENCE if request.writes_reference else None,
            documents=out / DOCUMENTS,
            baseline=reference / DOCUMENTS if reference else None,
            calibration=calibration,
        )
    if encodings and not reference:
        encodings.write()
    return {**result, "isolation": seen.mode, "threads": request.threads}


def _encodings(lm: Any, folder: Path) -> Encodings | None:
    """Let the baseline keep its token ids for all cases with its tokenizer; any other case reads them."""
    from runners._scoring.encodings import Encodings
    from runners._scoring.sharing import SharingLM

    if isinstance(lm, SharingLM):
        lm.encodings = Encodings(lm.tokenizer, folder / ENCODINGS)
        return lm.encodings
    return None


def _calibration_texts(case: Case) -> list[str] | None:
    """What the case was calibrated on; to be read before the store, which may hold it, is out of reach."""
    from runners import _calibration, base

    runner = base.get(case.config.runner)(case, None, Path())
    if case.calibration is None or not runner.calibrates:
        return None
    return _calibration.documents(case.calibration.data)


@contextlib.contextmanager
def _loaded(request: Request, case: Case, seen: isolation.Isolation) -> Iterator[Any]:
    """The artifact as an lm-eval LM: here, or served by an environment in which lm-eval cannot live."""
    from scorecard.lm_client import serve

    if request.served_by is None:
        yield _loader(case, seen.granted["artifact"])()
        return
    with serve(Path(request.served_by), case, seen.granted["artifact"], seen) as lm:
        yield lm


def measure(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    from scorecard.latency import measure as time_it

    case = _case(request)
    granted = {"artifact": _path(request.artifact, "artifact"), "out": folder}
    if request.baseline_artifact:
        granted["baseline"] = Path(request.baseline_artifact)
    seen = _isolate(request, scratch, granted, later=("baseline",) if request.baseline_artifact else ())

    def load_baseline() -> LM:
        return _loader(_baseline(request), seen.reveal("baseline"))()

    result = time_it(
        _loader(case, seen.granted["artifact"]),
        case.measure,
        load_baseline if request.baseline_artifact else None,
        baseline_bytes=request.baseline_bytes,
    )
    return {**result, "isolation": seen.mode}


def _baseline(request: Request) -> Case:
    if request.baseline is None:
        raise SpecError("measure: the request names no baseline")
    return request.baseline


def _isolate(
    request: Request, scratch: Path, granted: dict[str, Path], later: tuple[str, ...] = ()
) -> isolation.Isolation:
    os.chdir(scratch)  # a working directory below a covered folder would still reach into it
    hidden = [Path(p) for p in request.hidden]
    needed = [Path(request.served_by)] if request.served_by else []
    return isolation.enter(
        scratch, hidden=hidden, granted=granted, later=later, writable=("out",), needed=needed
    )


def _loader(case: Case, artifact: Path) -> Callable[[], LM]:
    from runners import base

    os.environ["OUTPUT_MODEL"] = str(artifact)
    return base.get(case.config.runner)(case, None, artifact).load


STAGES: dict[str, Callable[[Request, Path, Path], dict[str, Any]]] = {
    "prepare": prepare,
    "compress": compress,
    "audit": audit,
    "evaluate": evaluate,
    "measure": measure,
}
