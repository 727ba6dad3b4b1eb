"""Files of rdq: what goes in comes out, nothing half-written looks whole, nothing damaged is believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rdq_plain_decoder
import torch
from rdq_matrices import matrix, same
from safetensors.torch import load_file, save_file

import rdq
from rdq.coded import CodedMatrix, dequantize, spreads
from rdq.container import open_container
from rdq.errors import RdqError
from rdq.tables import Tables
from rdq.writing import Writer

PLAIN = {
    "norm.weight": torch.arange(7, dtype=torch.bfloat16) / 3,
    "bias": torch.linspace(-1, 1, 15).reshape(3, 5),
    "flag": torch.tensor([True, False, True]),
    "scalar": torch.tensor(3.5, dtype=torch.float16),
}
KINDS = ("heavy", "zero", "gaussian", "outliers")


def write(folder: Path, **settings: Any) -> dict[str, CodedMatrix]:
    """A small folder with coded and plain tensors; the coded ones."""
    coded = {f"{kind}.weight": matrix(kind, 20 + n, 17, n, (1, 4, 8, 8)[n]) for n, kind in enumerate(KINDS)}
    with Writer(folder, **settings) as writer:
        for name, m in coded.items():
            writer.add_matrix(name, m)
        for name, tensor in PLAIN.items():
            writer.add_plain(name, tensor)
        writer.close({"model_type": "none"})
    return coded


@pytest.mark.parametrize(
    "settings", [{}, {"shard_bytes": 300}, {"tables": Tables.gaussian()}, {"threads": 2}]
)
def test_all_tensors_come_back(tmp_path: Path, settings: dict[str, Any]) -> None:
    coded = write(tmp_path, **settings)
    with open_container(tmp_path) as container:
        container.verify()
        assert set(container) == {*coded, *PLAIN}
        assert set(container.matrices) == set(coded)
        for name, m in coded.items():
            assert same(container.read_matrix(name), m)
            assert container.shape(name) == m.shape
            assert torch.equal(container.read(name, torch.float32), torch.from_numpy(dequantize(m)))
        for name, tensor in PLAIN.items():
            assert torch.equal(container.read(name), tensor)
            assert container.read(name).dtype == tensor.dtype
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "rdq", "version": 1}
    assert len(list(tmp_path.glob("*.safetensors"))) == (4 if "shard_bytes" in settings else 1)
    assert not list(tmp_path.glob("*.partial"))


def test_the_file_is_a_safetensors_file(tmp_path: Path) -> None:
    coded = write(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == {f"{name}_rdq" for name in coded} | set(PLAIN)
    for name, tensor in PLAIN.items():
        assert torch.equal(found[name], tensor)


def test_a_decoder_written_from_the_page_reads_the_same(tmp_path: Path) -> None:
    coded = write(tmp_path)
    found = rdq_plain_decoder.read_file(tmp_path / "model.safetensors")
    for name, m in coded.items():
        assert np.array_equal(found[name], dequantize(m))


def test_two_writers_write_the_same_bytes(tmp_path: Path) -> None:
    for name, threads in (("one", 1), ("two", 2)):
        write(tmp_path / name, threads=threads)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_what_was_written_is_reported(tmp_path: Path) -> None:
    m = matrix("gaussian", 60, 70)
    with Writer(tmp_path) as writer:
        writer.add_matrix("w", m)
        writer.add_plain("b", PLAIN["bias"])
        coded, plain = writer.close()
    with open_container(tmp_path) as container:
        assert (coded.name, coded.size_bytes, coded.weights) == ("w", container.size_bytes("w"), 60 * 70)
    assert coded.ideal_bytes is not None
    assert coded.ideal_bytes < coded.size_bytes < 1.01 * coded.ideal_bytes + 64 + 4 * 130
    assert (plain.size_bytes, plain.weights, plain.ideal_bytes) == (60, 15, None)
    assert not (tmp_path / "config.json").exists()


def check(path: Path) -> None:
    with open_container(path) as container:
        container.verify()


def test_every_changed_byte_of_a_file_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    damaged_file = tmp_path / "damaged.safetensors"
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        damaged_file.write_bytes(damaged)
        with pytest.raises(RdqError, match=r"damaged\.safetensors: ") as caught:
            check(damaged_file)
        assert "\n" not in str(caught.value)
        assert "; " in str(caught.value)


def test_damage_names_the_tensor(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-10] ^= 1
    file.write_bytes(whole)
    with pytest.raises(
        RdqError, match=r"model\.safetensors: outliers\.weight: damaged, its checksum does not fit"
    ):
        open_container(tmp_path).read("outliers.weight")


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(0, len(whole), 3):
        cut.write_bytes(whole[:length])
        with pytest.raises(RdqError, match=r"cut\.safetensors: "):
            check(cut)


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RdqError, match="cannot be read"):
        open_container(tmp_path)
    save_file({"w": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(RdqError, match="not written by rdq"):
        open_container(tmp_path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write(tmp_path, shard_bytes=300)
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(RdqError, match=r"model-00002-of-00004\.safetensors: cannot be read"):
        open_container(tmp_path)


def test_a_smaller_model_replaces_a_larger_one(tmp_path: Path) -> None:
    write(tmp_path, shard_bytes=300)
    write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_tensor_added_twice_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with Writer(tmp_path) as writer:
        writer.add_matrix("w", matrix("zero", 2, 2))
        with pytest.raises(RdqError, match="w: added twice"):
            writer.add_plain("w", PLAIN["bias"])
    assert not list(tmp_path.iterdir())


@pytest.mark.backend  # a process that imports torch
def test_a_killed_writer_leaves_no_model(tmp_path: Path) -> None:
    program = (
        "import os, sys; sys.path.insert(0, 'tests'); from rdq_matrices import matrix\n"
        f"from rdq.writing import Writer; w = Writer({str(tmp_path)!r})\n"
        "w.add_matrix('w', matrix('zero', 4, 4))\n"
        "w._finish = lambda *parts: os.kill(os.getpid(), 9); w.close({})"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=300
    )
    assert done.returncode == -9
    assert all(path.name.endswith(".partial") for path in tmp_path.iterdir())
    write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_importing_the_package_is_light() -> None:
    program = "import sys, rdq; print(sorted({'numpy', 'torch', 'transformers', 'numba'} & set(sys.modules)))"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "[]", done.stderr


def quantized(weight: torch.Tensor) -> CodedMatrix:
    """A plain scalar quantizer at about three bits: enough to test loading."""
    values = weight.float().reshape(-1, weight.shape[-1]).numpy()
    step = max(float(values.std()) / 2, 1e-6)
    row, column = spreads(values / step)
    flat = [np.full(size, 128, np.uint8) for size in values.shape]
    codes = np.rint(values / step).clip(-255, 255).astype(np.int16)
    return CodedMatrix(codes, *flat, row, column, step, np.zeros((2, 4), np.float16), 1)


def compress(model: Any, folder: Path) -> None:
    """Codes every matrix of a model under its own name, tied ones once."""
    seen: set[int] = set()
    with Writer(folder) as writer:
        for name, weight in model.state_dict().items():
            if weight.data_ptr() in seen:
                continue
            seen.add(weight.data_ptr())
            if weight.ndim < 2:
                writer.add_plain(name, weight)
            elif "c_attn" in name:
                writer.add_matrix(name, quantized(weight.T.contiguous()), transposed=True)
            else:
                stack = weight.shape[0] if weight.ndim == 3 else 1
                writer.add_matrix(name, quantized(weight), stack=stack)
        writer.close(model.config.to_dict())


def small(family: str) -> Any:
    """A model of a few thousand weights."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 50,
    }  # fmt: skip
    if family == "GPT2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32}
        sizes |= {"bos_token_id": 1, "eos_token_id": 1}
    if family == "Mixtral":
        sizes["num_local_experts"] = 4
    if family == "LlamaTied":
        family, sizes["tie_word_embeddings"] = "Llama", True
    model_class = getattr(transformers, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    config = getattr(transformers, f"{family}Config")(**sizes, dtype="bfloat16")
    config.architectures = [model_class.__name__]
    return model_class(config).bfloat16().eval()


@pytest.mark.backend
@pytest.mark.parametrize("family", ["Llama", "LlamaTied", "Mixtral", "GPT2"])
def test_both_ways_of_loading_give_the_stored_weights(tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM

    model = small(family)
    compress(model, tmp_path / "out")
    one = rdq.load(tmp_path / "out")
    two = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(1, 20)[None]
    assert type(one) is type(two) is type(model)
    assert torch.equal(one(tokens).logits, two(tokens).logits)
    states = one.state_dict(), two.state_dict(), model.state_dict()
    assert states[0].keys() == states[1].keys() == states[2].keys()
    with open_container(tmp_path / "out") as container:
        for name in states[2]:
            assert torch.equal(states[0][name], states[1][name])
            assert states[0][name].dtype == torch.bfloat16
            if name in container:
                assert torch.equal(states[0][name], container.read(name, torch.bfloat16))
            error = (states[0][name].float() - states[2][name].float()).abs().max()
            assert (
                error <= states[2][name].float().std(correction=0) / 2
            )  # of the step of `quantized`, and a bit
    assert not hasattr(one.config, "quantization_config")
    two.save_pretrained(tmp_path / "plain")
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "plain")(tokens).logits, two(tokens).logits
    )


@pytest.mark.backend
def test_experts_may_be_stored_one_by_one(tmp_path: Path) -> None:
    """As checkpoints have them, whose experts transformers merges while it loads."""
    from transformers import AutoModelForCausalLM

    model = small("Mixtral")
    model.save_pretrained(tmp_path / "plain")
    with Writer(tmp_path / "out") as writer:
        for name, weight in load_file(tmp_path / "plain" / "model.safetensors").items():
            if weight.ndim == 2 and "gate" not in name:
                writer.add_matrix(name, quantized(weight))
            else:
                writer.add_plain(name, weight)
        writer.close(model.config.to_dict())
    one, two = rdq.load(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    tokens = torch.arange(1, 20)[None]
    assert torch.equal(one(tokens).logits, two(tokens).logits)


@pytest.mark.backend
def test_damaged_and_incomplete_models_do_not_load(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = small("Llama")
    compress(model, tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100] + bytes([whole[-100] ^ 4]) + whole[-99:])
    for load in (rdq.load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(RdqError, match=r"model\.safetensors: .*weight: damaged"):
            load(tmp_path)
    with Writer(tmp_path) as writer:
        for name, weight in list(model.state_dict().items())[:-1]:
            writer.add_plain(name, weight)
        writer.close(model.config.to_dict())
    with pytest.raises(RdqError, match=r"lm_head\.weight: missing in the files"):
        rdq.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RdqError, match=r"config\.json: quant_method is None"):
        rdq.load(tmp_path)
