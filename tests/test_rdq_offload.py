"""Models run block after block from their files: the same statistics as in memory, with less of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import rdq
import rdq.kept
import rdq.ways
from rdq.__main__ import main
from rdq.chain import Chain
from rdq.compress import Compressor, Options
from rdq.errors import RdqError
from rdq.kept import Kept
from rdq.mapped import Held, load_mapped
from rdq.matrices import files
from rdq.quantize import Prepared
from rdq.shelf import Pages, Shelf
from rdq.statistics import Statistics
from rdq.ways import InMemory, Offloaded, way_of
from tests.test_rdq_architectures import FAMILIES
from tests.test_rdq_architectures import written as of_family
from tests.test_rdq_compress import EMBEDDED, TEXT, mixtral, small, written

pytestmark = pytest.mark.backend

ROUGH = 1e-3  # of the largest value: both ways compute in float32, but sum in another order
TOKENS = torch.randint(200, (9, 33), generator=torch.Generator().manual_seed(2)).tolist()


def apart(one: np.ndarray | torch.Tensor, other: np.ndarray | torch.Tensor) -> float:
    """The largest difference, in largest values."""
    first, second = (torch.as_tensor(values).double() for values in (one, other))
    return float((first - second).abs().max() / second.abs().max())


def same_statistics(folder: Path, mode: str, scratch: Path) -> None:
    lengths = [ids[:20] if n % 4 == 1 else ids for n, ids in enumerate(TOKENS)]
    options: dict[str, Any] = {"mode": mode, "calibration": lengths, "damping": 0.01}
    there = Compressor(folder, Options(**options, offload=scratch))
    here = Compressor(folder, Options(**options, offload=False))
    assert [m.name for m in there.matrices] == [m.name for m in here.matrices]
    assert set(there.statistics) == set(here.statistics) == {m.name for m in here.matrices}
    for name, known in here.statistics.items():
        assert apart(there.statistics[name].hessian, known.hessian) < ROUGH, name
        assert apart(there.statistics[name].sensitivity, known.sensitivity) < ROUGH, name


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_the_same_both_ways(family: str, tmp_path: Path) -> None:
    of_family(family, tmp_path / "model")
    same_statistics(tmp_path / "model", "sensitivity", tmp_path / "scratch")


@pytest.mark.parametrize("mode", ["sensitivity", "calibrated", "data-free"])
def test_statistics_of_tied_weights_are_the_same(mode: str, tmp_path: Path) -> None:
    written(small(True), tmp_path / "model")
    same_statistics(tmp_path / "model", mode, tmp_path / "scratch")


@pytest.mark.parametrize("kind", ["embedded", "mixtral"])
def test_what_is_written_is_as_good_both_ways(kind: str, tmp_path: Path) -> None:
    folder, options = EMBEDDED, {"calibration": TEXT, "samples": 16, "damping": 0.01}
    if kind == "mixtral":
        folder, options = tmp_path / "model", {"calibration": TOKENS, "damping": 0.01}
        written(mixtral(), folder)
    reports = []
    for name, offload in (("there", tmp_path / "scratch"), ("here", False)):
        made = Compressor(folder, Options(**options, offload=offload))
        reports.append(made.compress(1.5e-4 if kind == "embedded" else 5e-4, tmp_path / name))
    there, here = reports
    assert there.weight_bytes == pytest.approx(here.weight_bytes, rel=2e-3)
    assert here.kl
    assert there.kl == pytest.approx(here.kl, rel=0.03)
    again = made.divergence(tmp_path / "there")
    assert there.kl == pytest.approx(again, rel=1e-3)  # of one folder, measured both ways
    del made
    gc.collect()
    assert list((tmp_path / "scratch").iterdir()) == []


def wide() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=200, hidden_size=256, intermediate_size=1024, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        )
    )  # fmt: skip


@pytest.fixture
def fresh() -> Iterator[None]:
    """``in_memory`` counts what comes to be in the test, and need not look at all the rest."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def in_memory(but: tuple[int, int] = (0, 0)) -> int:
    """Bytes of all new tensors, those at addresses from ``but[0]`` to ``but[1]`` excepted."""
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if isinstance(one, torch.Tensor) and one.device.type == "cpu"
    }
    return sum(size for place, size in storages.items() if not but[0] <= place < but[1])


@pytest.mark.usefixtures("fresh")
def test_one_block_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(wide(), tmp_path / "model")
    gc.collect()
    most = 0
    mapped: list[tuple[int, int]] = []
    put, loaded = Pages.put, load_mapped

    def noted(*arguments: Any) -> Any:
        model, maps = loaded(*arguments)
        mapped.extend(found[:2] for found in maps._open)
        return model, maps

    def watched(self: Pages, block: int, batch: int, tensor: torch.Tensor) -> None:
        nonlocal most
        most = max(most, in_memory(mapped[0]))
        put(self, block, batch, tensor)

    monkeypatch.setattr(Pages, "put", watched)
    monkeypatch.setattr(rdq.ways, "load_mapped", noted)
    made = Compressor(tmp_path / "model", Options(calibration=TOKENS[:4], damping=0.01, offload=tmp_path))
    weights = 4 * (4 * 256**2 + 3 * 256 * 1024)
    hessians = 4 * (3 * 256**2 + 1024**2)
    assert weights + hessians < most < 1.2 * (weights + hessians)
    kept = sum(path.stat().st_size for path in tmp_path.rglob("hessian-*"))
    assert kept > 3 * hessians
    assert in_memory(mapped[0]) < 0.2 * hessians
    assert len(made.statistics) == 3 * 7 + 2


@pytest.mark.usefixtures("fresh")
def test_loading_takes_the_model_and_a_stack_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [2 * parameter.numel() for parameter in written(mixtral(), tmp_path / "model").parameters()]
    made = Compressor(tmp_path / "model", Options(mode="data-free", calibration=TOKENS))
    made.compress(0.05, tmp_path / "out", measure=False)
    del made
    gc.collect()
    before, most = in_memory(), 0

    def watched(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watching(*arguments: Any, **settings: Any) -> torch.Tensor:
            nonlocal most
            result = function(*arguments, **settings)
            most = max(most, in_memory() - before)
            return result

        return watching

    for name in ("stack", "cat"):  # of experts, which transformers does
        monkeypatch.setattr(torch, name, watched(getattr(torch, name)))
    loaded = rdq.load(tmp_path / "out")
    assert sum(sizes) / 2 < most
    assert most <= sum(sizes) + max(sizes) + 4096  # and some buffers
    assert loaded.num_parameters() == sum(sizes) / 2


def test_held_weights_are_float32_and_go_again(tmp_path: Path) -> None:
    written(small(False), tmp_path / "model")
    model, maps = load_mapped(tmp_path / "model", files(tmp_path / "model"), tmp_path)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.data in maps
    assert weight.dtype == torch.bfloat16
    outside, values = weight.data_ptr(), weight.data.clone()
    with Held(list(model.model.layers[0].parameters()), maps) as held:
        assert weight.dtype == torch.float32
        assert torch.equal(weight.data, values.float())
        assert held.there(outside + 2 * 7) == weight.data_ptr() + 4 * 7
        assert held.there(model.lm_head.weight.data_ptr()) is None
    assert weight.data_ptr() == outside
    assert torch.equal(weight.data, values)


def test_a_shelf_shares_files_and_forgets_nothing(tmp_path: Path) -> None:
    shelf, one = Shelf(tmp_path), torch.rand(3, 3)
    shelf["a"], shelf["b"] = Statistics(one, np.ones(2)), Statistics(one, np.zeros(4))
    shelf["c"] = Statistics(one + 1, np.ones(1))
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(shelf["b"].hessian, one)
    assert shelf["b"].sensitivity.tolist() == [0] * 4
    assert torch.equal(shelf["c"].hessian, one + 1)
    assert list(shelf) == ["a", "b", "c"]
    with pytest.raises(KeyError):
        shelf["d"]


class Skipping(LlamaForCausalLM):  # type: ignore[misc]
    """Its second block is given what the first was given."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        first, second = self.model.layers
        forward = first.__class__.forward
        first.register_forward_hook(lambda module, inputs, output: output + inputs[0])
        assert forward is second.__class__.forward


def test_models_that_are_no_chain_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = written(Skipping(small(False).config), tmp_path / "model")
    with pytest.raises(RdqError, match="block 1 is not called with what the one before gave; this model has"):
        Chain(model)
    monkeypatch.setattr(rdq.ways, "Chain", lambda _: Chain(model))
    monkeypatch.setattr(rdq.ways, "FULL_PRECISION", 1)  # all models are large
    with pytest.warns(UserWarning, match="block 1 is not called"):
        assert isinstance(way_of(tmp_path / "model", None, drift=False), InMemory)
    with pytest.raises(RdqError, match="block 1"):
        way_of(tmp_path / "model", tmp_path, drift=False)


def test_large_models_go_by_block_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(way_of(EMBEDDED, None, drift=False), InMemory)
    monkeypatch.setattr(rdq.ways, "FULL_PRECISION", 10**6)
    assert isinstance(way_of(EMBEDDED, None, drift=False), Offloaded)
    assert isinstance(way_of(EMBEDDED, None, drift=True), InMemory)
    assert isinstance(way_of(EMBEDDED, False, drift=False), InMemory)
    asked = ["compress", str(EMBEDDED), str(tmp_path / "out"), "--bits", "3", "--offload", str(tmp_path)]
    assert main([*asked, "--drift", "0.5"]) == 4
    assert "offload: drift needs the model in memory; leave one of them out" in capsys.readouterr().err


def test_what_is_prepared_is_kept_in_files_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdq.kept, "KEPT_BYTES", 1000)
    calls = []

    def prepared() -> Prepared:
        calls.append(len(calls))
        return Prepared(torch.full((1, 10, 10), len(calls)).double(), np.ones((1, 10)), np.ones(3))

    kept, without = Kept(tmp_path), Kept(None)
    for _ in range(2):
        for number, name in enumerate("abc"):
            assert kept.get(name, prepared).factor.tolist() == [[[number + 1.0] * 10] * 10]
    assert (calls, len(list(tmp_path.iterdir()))) == ([0, 1, 2], 2)
    kept.forget()
    assert list(tmp_path.iterdir()) == []
    assert kept.get("a", prepared).factor[0, 0, 0] == 4
    for name in "xyy":
        without.get(name, prepared)
    assert len(calls) == 7
