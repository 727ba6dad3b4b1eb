"""Bytes, KL, flips, accuracy and perplexity of every compressor at many sizes, and bytes at equal KL.

``python -m benchmarks.compressors --help`` in the root of the repository; ``benchmarks/README.md`` says how
to read the tables. Compression, byte ledger, audit, evaluation and rows are the scorecard's own, on the
matrix in ``benchmarks/compressors.yaml``; only its processes are not (``compressors_worker.py``). What is
finished is not done again, unless its options changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import compressors_worker
from benchmarks.equal_kl import Point, ratio_table, summary, table
from runners import base
from scorecard import environments, machine, score, yaml_text
from scorecard.load import Suite, load
from scorecard.records import CaseRecords
from scorecard.report import json_report
from scorecard.row import Row
from scorecard.spec import Case, Record, from_json, to_json

CONFIGS = Path(__file__).with_name("compressors.yaml")
OURS = "rdq"  # the runner
ROOT = Path(__file__).resolve().parent.parent
WIDE_GROUP, NARROW_GROUP = 128, 64
SAMPLES, SAMPLE_TOKENS = 128, 256


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    folder: Path = options.out / options.name
    folder.mkdir(parents=True, exist_ok=True)
    content = matrix(yaml_text.parse(CONFIGS.read_text(encoding="utf-8"), CONFIGS.name), options, folder)
    (folder / "models.yaml").write_text(json.dumps(content, indent=1), encoding="utf-8")  # JSON is YAML
    suite = load(folder / "models.yaml")
    if not options.no_build:
        wanted = [case for case in suite.cases if re.search(options.only, case.config.name)]
        cases = [*suite.baselines.values(), *wanted]
        run(cases, model_folder(options.model), folder, jobs=options.jobs, wide=options.wide)
    found = records(suite, folder)
    lossless = {
        c.model: a.result["lossless_bytes"] for c in found if _is_baseline(c) and (a := c.records["audit"])
    }
    results = score.table(found, lossless_bytes=lossless, machine=machine.describe())
    (folder / "results.json").write_text(json_report.render(results), encoding="utf-8")
    points = list(measured(results.rows, found))
    text = f"{table(points)}\n\n{ratio_table(points)}\n"
    (folder / "compressors.md").write_text(text, encoding="utf-8")
    content = {"model": options.model, "points": [asdict(p) for p in points], **summary(points)}
    (folder / "compressors.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(text)
    for row in results.rows:
        for finding in (row.reason, *row.findings):
            if finding:
                print(f"{row.config}: {finding}", file=sys.stderr)
    return 0


def _is_baseline(case: CaseRecords) -> bool:
    return case.runner == "baseline" and "audit" in case.records


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compressors", description=__doc__)
    add = parser.add_argument
    add("--model", default="embedded:tiny-llama", help="embedded:NAME or a folder [%(default)s]")
    add("--name", default="tiny-llama", help="name of the model and of its folder in --out [%(default)s]")
    add("--tasks", default="tiny_pairs,tiny_cloze,tiny_facts", help="lm-eval tasks, or YAML files of some")
    add("--heldout", help="text for KL and perplexity, .txt or .jsonl [the embedded model's]")
    add("--calibration", help="a .jsonl file; 'sampled': by the model itself [the embedded model's]")
    add("--samples", type=int, default=SAMPLES, help="calibration sequences [%(default)s]")
    add("--limit", type=int, default=250, help="documents of each task [%(default)s]")
    add("--narrow", action="store_true", help=f"groups of {NARROW_GROUP} in place of {WIDE_GROUP}")
    add("--only", default="", help="configs whose names this regular expression finds")
    add("--out", type=Path, default=Path("results/compressors"), help="[%(default)s]")
    add(
        "--wide",
        action="store_true",
        help="give calibrated methods the weights as float32: many times as fast on a CPU without bfloat16",
    )
    add("--jobs", type=int, default=1, help="environments at work at once [%(default)s]")
    add("--no-build", action="store_true", help="compute nothing, show what there is")
    return parser.parse_args(arguments)


def matrix(suite: Mapping[str, Any], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The content of a models.yaml: the model that was asked for under the configs of ``suite``."""
    configs = dict(suite["configs"])
    if options.narrow:
        configs = dict(narrow(name, config) for name, config in configs.items())
    defaults = {key: dict(value) for key, value in suite["defaults"].items()}
    evaluation, calibration = defaults["evaluation"], defaults["calibration"]
    evaluation |= {"tasks": [_absolute(task) for task in options.tasks.split(",")], "limit": options.limit}
    calibration["samples"] = options.samples
    if options.heldout:
        evaluation["heldout"] = _absolute(options.heldout)
    if options.calibration == "sampled":
        calibration["data"] = sampled(model_folder(options.model), folder / "calibration.jsonl")
    elif options.calibration:
        calibration["data"] = _absolute(options.calibration)
    embedded = options.model.startswith("embedded:")
    source = options.model if embedded else f"path:{model_folder(options.model)}"
    model = {"set": "compressors", "name": options.name, "version": 1, "source": source}
    return {"models": [{**model, "configs": list(configs)}], "configs": configs, "defaults": defaults}


def narrow(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A config with groups that divide the layers of a narrow model, and its name."""
    changed = dict(config)
    if changed.get("group_size") == WIDE_GROUP:
        changed["group_size"] = NARROW_GROUP
    return name.replace(f"-g{WIDE_GROUP}", f"-g{NARROW_GROUP}"), changed


def _absolute(text: str) -> str:
    """A file's full path; anything else as it is."""
    return str(Path(text).resolve()) if Path(text).suffix and Path(text).is_file() else text


def model_folder(model: str) -> Path:
    """Where the files of ``embedded:NAME`` or of a folder are."""
    kind, _, place = model.rpartition(":")
    return ROOT / "embedded" / place if kind == "embedded" else Path(place).resolve()


def sampled(model: Path, path: Path) -> str:
    """Write calibration text that the model itself makes up, token by token, if it is not there yet."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not path.is_file():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        lm = AutoModelForCausalLM.from_pretrained(model, local_files_only=True, dtype=torch.float32).eval()
        begin = torch.full((SAMPLES, 1), lm.config.bos_token_id)
        made = lm.generate(
            begin, do_sample=True, top_k=0, max_new_tokens=SAMPLE_TOKENS, pad_token_id=lm.config.eos_token_id
        )
        texts = tokenizer.batch_decode(made, skip_special_tokens=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path.resolve())


def run(cases: Iterable[Case], model: Path, folder: Path, *, jobs: int, wide: bool) -> None:
    """Measure what was not measured yet: the baseline first, then environment by environment."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if not compressors_worker.finished(compressors_worker.record_path(folder, case), case):
            groups.setdefault(base.get(case.config.runner).environment, []).append(case)
    first = [case for case in groups.get(base.CORE, ()) if case.config.runner == "baseline"]
    if first:
        _work(base.CORE, first[:1], model, folder, wide)
    with ThreadPoolExecutor(jobs) as pool:
        work = [pool.submit(_work, name, group, model, folder, wide) for name, group in groups.items()]
        for done in work:
            done.result()


def _work(environment: str, cases: Sequence[Case], model: Path, folder: Path, wide: bool) -> None:
    """Run the worker on these cases in their environment; its output goes to ``folder/ENVIRONMENT.log``."""
    core = environment == base.CORE
    python = sys.executable if core else str(environments.ensure(environment, say=print).python)
    job = folder / f"{environment}.job.json"
    where = {"folder": str(folder.resolve()), "model": str(model)}
    content = {**where, "wide": wide, "cases": to_json(cases)}
    job.write_text(json.dumps(content), encoding="utf-8")
    with (folder / f"{environment}.log").open("a", encoding="utf-8") as log:
        command = [python, "-P", "-m", "benchmarks.compressors_worker", str(job)]
        path = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        # A worker that dies leaves its log; the cases that it has not measured have no row.
        subprocess.run(
            command, check=False, env={**os.environ, **path}, stdout=log, stderr=log, start_new_session=True
        )


def records(suite: Suite, folder: Path) -> list[CaseRecords]:
    """What was measured, as the scorecard's table takes it."""
    found = []
    for case in {case.id: case for case in (*suite.baselines.values(), *suite.cases)}.values():
        path = compressors_worker.record_path(folder, case)
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        stages = {record["stage"]: from_json(Record, record) for record in content["records"]}
        scored = "evaluate" in stages and stages["evaluate"].status == "ok"
        documents = folder / compressors_worker.DOCUMENTS / f"{case.config.name}.parquet"
        found.append(
            CaseRecords(
                case=case.id,
                model=case.model.id,
                config=case.config.name,
                runner=case.config.runner,
                records=stages,
                documents=documents if scored else None,
            )
        )
    return found


def measured(rows: Iterable[Row], cases: Iterable[CaseRecords]) -> Iterable[Point]:
    """The points of the rows that have a result, their bytes without the tokenizer from the byte ledger."""
    audits = {case.config: case.records.get("audit") for case in cases}
    ledgers = {name: audit.result["ledger"] for name, audit in audits.items() if audit and audit.result}
    baseline = ledgers["baseline"]
    for row in rows:
        if row.status != "ok" or row.config == "null" or row.size_bytes is None:
            continue
        # The reference row `lossless` has no files of its own: the original's tokenizer is in its size.
        ledger = ledgers.get(row.config, baseline)
        size = row.size_bytes - ledger["by_category"]["tokenizer"]
        yield Point(
            config=row.config,
            ours=row.runner == OURS,
            size_bytes=size,
            bits_per_weight=8 * size / baseline["parameters"],
            kl=row.kl,
            kl_stderr=row.kl_stderr,
            flips=row.flips,
            accuracy=row.mean_accuracy,
            accuracy_stderr=row.mean_accuracy_stderr,
            recovery=row.recovery,
            perplexity=row.perplexity,
            keeps=row.score_floor_99 is not None,
        )


if __name__ == "__main__":
    sys.exit(main())
