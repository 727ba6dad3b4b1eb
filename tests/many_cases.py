"""Many cases of one runner in two fresh processes: one compresses them all, the other loads them all.

many_cases.py compress FOLDER MODEL   FOLDER/NAME.case.json -> artifact FOLDER/NAME
many_cases.py logits FOLDER           artifacts -> FOLDER/NAME.logits.pt
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from in_environment import run_python
from tiny_model import make_case

from runners import base
from scorecard.spec import Case, from_json, to_json

if TYPE_CHECKING:
    import torch

RUN = "import many_cases, sys; many_cases.main(sys.argv[1:])"


def round_trip(
    runner: str,
    options: Mapping[str, Mapping[str, Any]],
    model: Path,
    folder: Path,
    calibration: Path | None = None,
) -> dict[str, torch.Tensor]:
    """Logits of every artifact, by the name of its options; the artifacts stay in ``folder``."""
    import torch

    folder.mkdir()
    for name, values in options.items():
        case = make_case(runner, values, calibration)
        (folder / f"{name}.case.json").write_text(json.dumps(to_json(case)))
    environment = base.get(runner).environment
    run_python(environment, RUN, "compress", folder, model, cwd=folder)
    run_python(environment, RUN, "logits", folder, cwd=folder)
    return {name: torch.load(folder / f"{name}.logits.pt") for name in options}


def plain_logits(model: Path) -> torch.Tensor:
    """Logits of a model that no library compressed, computed in this process."""
    from fresh_logits import logits
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval())


def divergence(old: torch.Tensor, new: torch.Tensor) -> float:
    """KL(old || new) in nats a token."""
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    return float((log_old.exp() * (log_old - log_new)).sum(-1).mean())


def size_of(artifact: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in artifact.iterdir())


def main(arguments: list[str]) -> None:
    verb, folder = arguments[0], Path(arguments[1])
    for file in sorted(folder.glob("*.case.json")):
        case = from_json(Case, json.loads(file.read_text()))
        artifact = folder / file.name.removesuffix(".case.json")
        if verb == "compress":
            _compress(case, Path(arguments[2]), artifact)
        else:
            _logits(case, artifact)


def _compress(case: Case, model: Path, artifact: Path) -> None:
    from runners._hf import shapes

    artifact.mkdir()
    runner = base.get(case.config.runner)(case, model, artifact)
    runner.check()
    runner.check_shapes(shapes(model, case))
    runner.compress()


def _logits(case: Case, artifact: Path) -> None:
    import torch
    from fresh_logits import logits

    lm: Any = base.get(case.config.runner)(case, None, artifact).load()
    torch.save(logits(lm.model), artifact.with_name(f"{artifact.name}.logits.pt"))
