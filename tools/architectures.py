"""Which backend takes which architecture: tiny random models through compress, reload and comparison.

    python tools/architectures.py [--runners awq,hqq] [--architectures Llama,Phi] [--output FILE.md]

Each cell is compressed in a process of the runner's own environment, loaded in another one from the artifact
alone, and compared with the original as that environment loads it. Random weights tell a wrong
reload from a right one, not a good recipe from a bad one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from in_environment import run_all  # noqa: E402 - the path comes first
from tiny_model import make_case, write_calibration, write_model  # noqa: E402

from runners import base  # noqa: E402
from scorecard.errors import RunnerUnavailable  # noqa: E402
from scorecard.spec import Case, to_json  # noqa: E402

if TYPE_CHECKING:
    import torch

_COMMON = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
_GPT = {
    "n_embd": 128,
    "n_inner": 256,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 256,
    "initializer_range": 0.1,
}
_OPT = {"ffn_dim": 256, "word_embed_proj_dim": 128, "init_std": 0.1, "tie_word_embeddings": False}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", _LLAMA),
    "GPTBigCode": ("GPTBigCodeConfig", _GPT),
    "Qwen2": ("Qwen2Config", _LLAMA),
    "Qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 64}),
    "Mistral": ("MistralConfig", {**_LLAMA, "head_dim": 64}),
    "Gemma": ("GemmaConfig", {**_LLAMA, "head_dim": 64, "tie_word_embeddings": True}),
    "Phi": ("PhiConfig", {**_LLAMA, "num_key_value_heads": 2}),
    "GPT-2": ("GPT2Config", _GPT),
    "OPT": ("OPTConfig", {**_LLAMA, **_OPT}),
}

# Recipes for each runner that fit these small layers; a runner that is not here has its defaults.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "autoawq": [{"group_size": 64}],
    "autogptq": [{"group_size": 64}],
    "autoround": [{"group_size": 64, "iters": 5}],
    "awq": [{"group_size": 64}],
    "bnb": [{"format": "nf4"}, {"format": "int8"}],
    "gptq": [{"group_size": 64}],
    "hqq": [{"group_size": 64}],
    "llmcompressor": [{"method": "gptq", "scheme": "W4A16", "group_size": 64}, {"scheme": "W8A16"}],
    "modelopt": [{"format": "int8"}, {"format": "int4_awq", "group_size": 64}],
    "quanto": [{"format": "qint8"}, {"format": "qint4"}],
    "rtn": [{"group_size": 64}],
    "torchao": [{"format": "int8"}, {"format": "intx", "bits": 4, "group_size": 64}],
}
LEFT_OUT = ("baseline", "custom", "fake")


@dataclass(frozen=True)
class Cell:
    """``kl`` in nats, or why there is none."""

    kl: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        return self.reason.replace("|", "\\|") if self.kl is None else f"{self.kl:.4f}"


def write_architecture(name: str, folder: Path) -> Path:
    """Random weights of one architecture in bfloat16, with the tokenizer of ``tiny_model``."""
    import torch
    import transformers

    write_model(folder)
    kind, settings = ARCHITECTURES[name]
    for path in [*folder.glob("*.safetensors"), *folder.glob("*config.json")]:
        if path.name != "tokenizer_config.json":
            path.unlink()
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**_COMMON, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def cells(case: Case, models: Mapping[str, Path], scratch: Path) -> list[Cell]:
    """Compress, reload, compare each model; whatever goes wrong is its cell's reason."""
    runner = base.get(case.config.runner)
    try:
        runner(case, None, scratch).check()
    except RunnerUnavailable as error:
        return [Cell(reason=f"skipped: {error}")] * len(models)
    outputs = {name: scratch / f"{name}-output" for name in models}
    request = scratch / "case.json"
    request.write_text(json.dumps(to_json(case)))
    for output in outputs.values():
        output.mkdir()
    wrong = run_all(runner.environment, [("compress", request, models[n], outputs[n]) for n in models])
    kept = [name for name, reason in zip(models, wrong, strict=True) if not reason]
    found = {name: scratch / f"{name}.pt" for name in kept}
    again = run_all(runner.environment, [("logits", request, outputs[n], found[n]) for n in kept])
    reasons = {**dict(zip(models, wrong, strict=True)), **dict(zip(kept, again, strict=True))}
    original = originals(runner.environment, models)
    return [_cell(reasons[name], original[name], found.get(name)) for name in models]


def _cell(reason: str, original: Path, found: Path | None) -> Cell:
    import torch

    if reason or found is None:
        told = reason.removeprefix("scorecard.errors.")
        refused = told.removeprefix("SpecError: configs.config.").partition(": ")[2]
        return Cell(reason=f"refused: {refused}" if told.startswith("SpecError") else f"failed: {told}"[:200])
    return Cell(divergence(torch.load(original), torch.load(found)))


def originals(environment: str, models: Mapping[str, Path]) -> dict[str, Path]:
    """Logits of the originals as an environment loads them."""
    files = {name: model.with_name(f"{name}.{environment}.pt") for name, model in models.items()}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        request = files[missing[0]].with_name("baseline.json")
        request.write_text(json.dumps(to_json(make_case("baseline"))))
        wrong = run_all(environment, [("original", request, models[n], files[n]) for n in missing])
        assert not any(wrong), wrong
    return files


def divergence(original: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL(original || other) over all tokens."""
    import torch

    p, q = (torch.log_softmax(x.float(), -1) for x in (original, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def recipes(runners: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for runner in runners:
        for options in OPTIONS.get(runner, [{}]):
            yield runner, options


def table(rows: Mapping[str, Mapping[str, Cell]], columns: list[str]) -> str:
    """Markdown: one row for each recipe; long reasons stand below."""
    notes: list[str] = []
    lines = [f"| recipe | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for recipe, cells in rows.items():
        shown = []
        for column in columns:
            text = str(cells[column])
            if cells[column].kl is None:
                if text not in notes:
                    notes.append(text)
                text = f"{text.partition(':')[0]} [{notes.index(text) + 1}]"
            shown.append(text)
        lines.append(f"| {recipe} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *(f"{place}. {note}" for place, note in enumerate(notes, 1))])


HEAD = """\
# Architectures

KL divergence (nats a token) of tiny random models, compressed and then reloaded in a fresh process, against
the original; made by `python tools/architectures.py`. The weights are random: the numbers tell a wrong reload
from a right one, not a good recipe from a bad one.

"""


def main() -> int:
    """Fill the table and write it."""
    known = [name for name in base.names() if name not in LEFT_OUT]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runners", default=",".join(known))
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "architectures.md")
    given = parser.parse_args()
    columns, rows = given.architectures.split(","), {}
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: write_architecture(name, Path(scratch) / name) for name in columns}
        calibration = write_calibration(Path(scratch) / "calibration.jsonl")
        for runner, options in recipes(given.runners.split(",")):
            recipe = f"{runner} {' '.join(f'{k}={v}' for k, v in options.items())}".strip()
            case = make_case(runner, options, calibration)
            with tempfile.TemporaryDirectory() as folder:
                rows[recipe] = dict(zip(models, cells(case, models, Path(folder)), strict=True))
            print(recipe, *(f"{name}: {cell}" for name, cell in rows[recipe].items()), sep="\n  ", flush=True)
    given.output.write_text(HEAD + table(rows, columns) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
