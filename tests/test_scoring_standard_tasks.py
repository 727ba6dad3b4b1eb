"""Standard tasks on a real model: our LM and lm-eval's HFLM agree on every document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"
TASKS = {
    "arc_easy": "allenai/ai2_arc",
    "piqa": "baber/piqa",
    "blimp_npi_present_1": "nyu-mll/blimp",
    "lambada_openai": "EleutherAI/lambada_openai",
    "gsm8k": "openai/gsm8k",
}
pytestmark = [
    pytest.mark.backend,
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="development data are not here"),
]

EVALUATE = """
import json, sys
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer
from runners._scoring.lm import make_lm

folder, kind, out, tasks = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
settings = {"batch_size": 16, "max_length": 2048}
lm = make_lm(model, tokenizer, **settings) if kind == "ours" else HFLM(model, tokenizer=tokenizer, **settings)
found = lm_eval.simple_evaluate(
    model=lm, tasks=tasks.split(","), limit=40, bootstrap_iters=0, task_manager=TaskManager()
)
documents = {
    f"{task} {s['doc_id']} {s['filter']}": [s["resps"], {m: s[m] for m in s["metrics"]}]
    for task, samples in found["samples"].items()
    for s in samples
}
json.dump(documents, open(out, "w"), default=str)
"""


def documents(folder: Path, kind: str, environment: dict[str, str]) -> dict[str, Any]:
    out = folder / f"{kind}.json"
    model = SHARED / "models" / "stories260k-pad"
    command = [sys.executable, "-c", EVALUATE, str(model), kind, str(out), ",".join(TASKS)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(out.read_text()))


def test_every_document_of_standard_tasks_gets_the_answer_of_hflm(tmp_path: Path) -> None:
    home = tmp_path / "huggingface"
    maker = [
        sys.executable,
        str(SHARED / "tools" / "make_cache.py"),
        str(SHARED / "hub"),
        str(home / "datasets"),
    ]
    subprocess.run([*maker, *TASKS.values()], check=True, capture_output=True)
    hub = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment = {**os.environ, **hub, "PYTHONPATH": str(REPOSITORY)}
    theirs, ours = (documents(tmp_path, kind, environment) for kind in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert len(theirs) >= 200
    largest = 0.0
    for name, (answers, metrics) in theirs.items():
        assert ours[name][1] == pytest.approx(metrics, rel=1e-5), name
        for one, other in zip(flat(answers), flat(ours[name][0]), strict=True):
            if isinstance(one, float):
                largest = max(largest, abs(one - other) / max(1.0, abs(one)))
            else:
                assert one == other, name
    print(f"largest relative difference of a log-likelihood: {largest:.1e}")
    assert largest < 1e-5


def flat(value: Any) -> list[Any]:
    return [part for item in value for part in flat(item)] if isinstance(value, list) else [value]
