"""Whole models compressed and loaded again: budgets, repeatability, architectures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from rdq_loads import check
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from rdq.__main__ import main
from rdq.budget import Budget, Session, compress
from rdq.compress import Compressor, Options
from rdq.errors import RdqError
from rdq.quantize import Settings

pytestmark = pytest.mark.backend

EMBEDDED = Path("embedded/tiny-llama").resolve()
TEXT = Path("embedded/calibration.jsonl").resolve()
QUICK = Options(calibration=TEXT, samples=16)


@pytest.fixture(scope="module")
def embedded() -> Session:
    return Session(EMBEDDED, QUICK)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_budget_of_bits_is_met_and_behaviour_kept(embedded: Session, tmp_path: Path) -> None:
    report = embedded.compress(tmp_path / "three", Budget(bits=3))
    assert 2.97 < report.bits <= 3
    files = {path.name: path.stat().st_size for path in (tmp_path / "three").iterdir()}
    assert sum(files.values()) == report.folder_bytes
    assert (
        report.weight_bytes == report.folder_bytes - files["tokenizer.json"] - files["tokenizer_config.json"]
    )
    assert report.kl is not None
    assert report.kl < 0.02
    coded = [row for row in report.tensors if row.kind != "plain"]
    assert {row.kind for row in coded} == {"body", "embedding", "head"}
    assert len(coded) == 30
    for row in coded:
        assert row.stored_bytes == pytest.approx(row.predicted_bytes, rel=0.06)


def test_bytes_fall_and_divergence_rises_with_the_steps(tmp_path: Path) -> None:
    made = Compressor(EMBEDDED, QUICK)
    reports = [made.compress(c, tmp_path / str(c)) for c in (0.6e-4, 1.5e-4, 4e-4)]
    sizes, divergences = [r.weight_bytes for r in reports], [r.kl or 0.0 for r in reports]
    assert sizes[0] > 1.2 * sizes[1] > 1.4 * sizes[2]
    assert 0 < 3 * divergences[0] < 2 * divergences[1] < divergences[2]
    made.compress(1.5e-4, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(tmp_path / "0.00015")


def small(tied: bool) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=200, n_positions=64, n_embd=64, n_layer=2, n_head=4))


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, num_local_experts=4,
        )
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def written(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.3 / parameter.shape[-1] ** 0.25, generator=generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    return model.float().eval()


@pytest.mark.parametrize("mode", ["sensitivity", "calibrated", "data-free"])
@pytest.mark.parametrize(("kind", "matrices"), [("plain", 16), ("tied", 15), ("gpt2", 10), ("mixtral", 34)])
def test_architectures(kind: str, matrices: int, mode: str, folder: Path, tmp_path: Path) -> None:
    makers = {"plain": lambda: small(False), "tied": lambda: small(True), "gpt2": gpt2, "mixtral": mixtral}
    model = written(makers[kind](), folder)
    made = Compressor(folder, Options(mode=mode, samples=8, length=32))
    assert len(made.matrices) == matrices
    start = {"sensitivity": 5e-4, "calibrated": 4e-3, "data-free": 0.05}[mode]
    report = made.compress(start, tmp_path / "out")
    assert report.bits < 14  # of 16: the models are so small that side information weighs
    check(model, made, tmp_path / "out")


def test_every_expert_is_told_apart(folder: Path) -> None:
    written(mixtral(), folder)
    made = Compressor(folder, Options(samples=4, length=16))
    experts = [matrix for matrix in made.matrices if ".experts." in matrix.name]
    assert len(experts) == 2 * 4 * 3
    places = {(m.address, m.outputs, m.first) for m in experts}
    assert len(places) == len(experts)
    assert all(made.statistics[m.name].hessian.shape == (m.columns, m.columns) for m in experts)
    router = "model.layers.0.block_sparse_moe.gate.weight"
    assert router not in {matrix.name for matrix in made.matrices}


def test_the_command_writes_a_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(small(False), folder)
    out, report = tmp_path / "out", tmp_path / "report.json"
    asked = ["compress", str(folder), str(out), "--budget", "8,6", "--samples", "8", "--length", "32"]
    assert main([*asked, "--report", str(report)]) == 0
    assert capsys.readouterr().out.count("bits per weight") == 2
    rows = json.loads(report.read_text(encoding="utf-8"))
    assert [round(row["bits"], 1) for row in rows] == [8, 6]
    assert sorted(path.name for path in out.iterdir()) == ["6", "8"]
    assert main(["compress", str(folder), str(out), "--bits", "6"]) == 4
    assert "is not empty; name a new folder" in capsys.readouterr().err


def test_budgets_that_are_none() -> None:
    with pytest.raises(RdqError, match="budget: give one of bits, kl or size"):
        Budget(bits=3, kl=0.1)
    with pytest.raises(RdqError, match="mode: 'best' is unknown"):
        Options(mode="best")


def test_a_divergence_is_met(folder: Path, tmp_path: Path) -> None:
    written(small(True), folder)
    options = Options(samples=16, length=32, settings=Settings(states=4))
    report = compress(folder, tmp_path / "out", Budget(kl=0.05), options)
    assert report.kl is not None
    assert 0.045 < report.kl <= 0.05
