"""The runners, as far as no compression library is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_model import make_case, write_calibration, write_model

import runners._calibration as calibration
from runners import _docs, _rounding, base, custom, fake, rtn
from runners._hf import load_tokenizer, shapes, weight_files
from runners._packing import pack, unpack
from scorecard.errors import DataUnavailable, SourceError, SpecError, StageFailed

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "lm_eval", "numpy", "gptqmodel", "bitsandbytes", "safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def make_runner(name: str, options: dict[str, Any] | None = None) -> Any:
    return base.get(name)(make_case(name, options), None, Path("nowhere"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration(tmp_path_factory.mktemp("text") / "calibration.jsonl")


# -- all runners --------------------------------------------------------------------------------


def test_importing_every_runner_imports_no_library():
    code = (
        "import sys; from runners import _docs; _docs.page();"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_page_of_options_is_up_to_date():
    assert _docs.PAGE.read_text(encoding="utf-8") == _docs.page(), "run 'python -m runners._docs'"


@pytest.mark.parametrize("name", base.names())
def test_every_runner_and_option_is_documented(name):
    runner = base.get(name)
    assert runner.__doc__
    assert all(f.metadata.get("doc") for f in dataclasses.fields(runner.Options))
    assert f"\n## {name}\n" in _docs.page()


def test_the_alias_of_gptq_is_known():
    assert base.get("auto-gptq") is base.get("gptq")


def test_load_may_not_ask_for_the_original(tmp_path):
    with pytest.raises(SpecError, match="not the original"):
        base.get("baseline")(make_case("baseline"), None, tmp_path).compress()


# -- packing and round-to-nearest ------------------------------------------------------------------


@given(st.data(), st.integers(2, 8), st.integers(1, 5), st.integers(1, 40))
def test_packed_codes_come_back(data, bits, rows, width):
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=rows * width, max_size=rows * width))
    codes = torch.tensor(values, dtype=torch.uint8).reshape(rows, width)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, -(-width // 8) * bits)
    assert torch.equal(unpack(packed, bits, width), codes)


def test_packing_is_little_endian():
    assert pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]]), 3).tolist() == [
        [0b11010001, 0b01011000, 0b00011111]
    ]


@settings(deadline=None)
@given(
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from([4, 8, 24]),
    st.integers(0, 999),
    st.sampled_from([1e-9, 0.02, 900]),
)
def test_rounding_is_off_by_half_a_step_at_most(bits, symmetric, group, seed, size):
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(seed)) * size
    weight[2] = 0
    options = rtn.Options(bits=bits, group_size=group, symmetric=symmetric)
    parts = rtn.quantize(weight, options, group)
    back = rtn.dequantize(parts, options, (24, "float32"))
    step = parts["scales"].float().repeat_interleave(group, 1)
    # half a step, half a step more where the zero point was rounded, and the rounding of the scale to 16 bits
    limit = step * (0.5 if symmetric else 1.0) + weight.abs().amax() * 2**-10 + 1e-12
    assert torch.all((back - weight).abs() <= limit)
    assert torch.equal(back[2], torch.zeros(24))
    assert ("zeros" in parts) is not symmetric


def test_rounding_in_pieces_is_the_same(monkeypatch):
    weight = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    options = rtn.Options(bits=3, group_size=8, symmetric=False)
    whole = rtn.quantize(weight, options, 8)
    monkeypatch.setattr(_rounding, "CHUNK_WEIGHTS", 7 * 16)
    pieces = rtn.quantize(weight, options, 8)
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bits": 3, "symmetric": False, "lm_head": True, "embeddings": True}]
)
def test_rtn_stores_what_it_says_and_loads_it(tmp_path, monkeypatch, tied, options):
    monkeypatch.setattr(rtn, "SHARD_BYTES", 60_000)  # more than one file
    model = write_model(tmp_path / "model", tied=tied)
    case = make_case("rtn", {"group_size": 32, **options})
    rtn.Runner(case, model, tmp_path / "out").compress()
    shutil.rmtree(model)
    stored = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        stored |= load_file(path)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    packed = {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")}
    everything = bool(options)
    assert ("model.embed_tokens" in packed) is everything
    assert ("lm_head" in packed) is (everything and not tied)
    bits = case.config.options.get("bits", 4)
    assert stored["model.layers.0.mlp.down_proj.qweight"].nbytes == 128 * 256 * bits // 8
    lm = rtn.Runner(case, None, tmp_path / "out").load()
    assert lm.model.dtype == torch.bfloat16
    assert (lm.model.lm_head.weight is lm.model.model.embed_tokens.weight) is tied
    assert lm.tok_encode("abc")


# -- checks of the libraries' runners before any work ----------------------------------------------


def check_shapes(model: Path, runner: str, options: dict[str, Any]) -> None:
    case = make_case(runner, options)
    base.get(runner)(case, model, model).check_shapes(shapes(model, case))


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("rtn", {"group_size": 64}, "64 does not divide the 48 input features of model"),
        ("bnb", {}, "multiples of 32 x 64.*; write format: int8"),
        ("gptq", {"group_size": 64}, "64 does not divide the 48 input features of model"),
        ("gptq", {"group_size": -1}, "GPTQModel cannot store"),
        ("awq", {"group_size": 32}, "32 does not divide the 48 input features"),
        ("awq", {"group_size": 16}, "multiples of 64 x 32"),
    ],
)
def test_shapes_are_checked_before_work(tmp_path, runner, options, message):
    model = write_model(tmp_path / "model", hidden=48, mlp=96)
    with pytest.raises(SpecError, match=message) as caught:
        check_shapes(model, runner, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("runner", "options"), [("bnb", {}), ("gptq", {"group_size": 64})])
def test_a_tied_lm_head_is_refused(tmp_path, runner, options):
    model = write_model(tmp_path / "model", tied=True)
    check_shapes(model, runner, options)
    with pytest.raises(SpecError, match="tied to the embeddings"):
        check_shapes(model, runner, {**options, "lm_head": True})


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        (
            "bnb",
            {"format": "int8", "double_quant": True},
            "configs.config.double_quant: int8 has no such thing",
        ),
    ],
)
def test_options_that_do_not_go_together(runner, options, message):
    with pytest.raises(SpecError, match=message) as caught:
        make_runner(runner, options)
    assert "; write" in str(caught.value)


# -- baseline --------------------------------------------------------------------------------


def test_baseline_copies_bytes_and_stands_alone(tmp_path):
    model = write_model(tmp_path / "model")
    (model / "README.md").write_text("not needed")
    (model / "vocab.json").write_text("{}")  # repeats tokenizer.json
    base.get("baseline")(make_case("baseline"), model, tmp_path / "out").compress()
    copied = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert all((model / name).read_bytes() == content for name, content in copied.items())
    assert set(copied) == {path.name for path in model.iterdir()} - {"README.md", "vocab.json"}
    shutil.rmtree(model)
    lm = base.get("baseline")(make_case("baseline"), None, tmp_path / "out").load()
    assert lm.model.dtype == torch.bfloat16
    assert lm.max_length == 256


def test_weights_that_are_there_twice_are_taken_once(tmp_path):
    for name in ("model-00001-of-00001", "consolidated"):
        save_file({"a": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    assert [path.name for path in weight_files(tmp_path)] == ["model-00001-of-00001.safetensors"]


def test_a_folder_without_safetensors_is_an_error(tmp_path):
    with pytest.raises(SourceError, match=r"no \.safetensors file"):
        weight_files(tmp_path)


def test_shapes_tell_the_head_from_the_body(model):
    found = shapes(model, make_case("rtn"))
    assert len(found.body) == 14
    assert found.body["model.layers.1.mlp.down_proj"] == (128, 256)
    assert found.lm_head == {"lm_head": (320, 128)}
    assert not found.tied


def write_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 320, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "embedded" / "tiny-llama" / name, folder)
    return folder


def test_a_conv1d_is_a_layer_with_its_sides_changed(tmp_path):
    found = shapes(write_gpt2(tmp_path / "gpt2"), make_case("rtn"))
    assert found.body["transformer.h.0.attn.c_attn"] == (96, 32)
    assert found.body["transformer.h.0.mlp.c_proj"] == (32, 128)
    assert found.lm_head == {"lm_head": (320, 32)}
    assert found.tied


def test_rtn_rounds_a_conv1d_along_its_inputs(tmp_path):
    model, name = (
        write_gpt2(tmp_path / "gpt2"),
        "transformer.h.0.attn.c_proj.weight",
    )  # square: shapes tell nothing
    weights = load_file(model / "model.safetensors")
    case = make_case("rtn", {"bits": 3, "group_size": 16})
    rtn.Runner(case, model, tmp_path / "out").compress()
    lm = rtn.Runner(case, None, tmp_path / "out").load()
    parts = rtn.quantize(weights[name].T, rtn.Options(bits=3), 16)
    expected = rtn.dequantize(parts, rtn.Options(bits=3), (32, "float32")).T
    assert torch.equal(lm.model.state_dict()[name].float(), expected.to(lm.model.dtype).float())


# -- calibration --------------------------------------------------------------------------------


def test_calibration_is_exact_and_follows_its_seed(model, text):
    case = make_case("gptq", {}, text)
    tokenizer = load_tokenizer(model, case)
    first = calibration.token_lists(case.calibration, tokenizer)
    assert [len(ids) for ids in first] == [64] * 16
    assert first == calibration.token_lists(case.calibration, tokenizer)
    other = dataclasses.replace(case.calibration, seed=5)
    assert first != calibration.token_lists(other, tokenizer)
    assert calibration.token_lists(case.calibration, tokenizer, samples=3) == first[:3]
    assert any(1 in ids for ids in first)  # the end of a document


def test_calibration_is_described_by_what_was_used(model, text):
    case = make_case("gptq", {"samples": 4}, text)
    described = calibration.describe(case, model)
    sequences = calibration.token_lists(case.calibration, load_tokenizer(model, case), 4)
    assert described == {
        "data": str(text),
        "sha256": calibration.token_sha256(sequences),
        "samples": 4,
        "tokens": 256,
    }


def test_token_hash_is_over_little_endian_words():
    words = b"".join(n.to_bytes(4, "little") for n in (2, 7, 300, 1, 9))
    assert calibration.token_sha256([[7, 300], [9]]) == hashlib.sha256(words).hexdigest()


def test_too_little_text_says_how_much_there_is(model, text):
    case = make_case("gptq", {}, text)
    spec = dataclasses.replace(case.calibration, samples=10_000)
    with pytest.raises(SpecError, match=r"holds \d+ sequences of 64 tokens, not 10000; write samples: \d+"):
        calibration.token_lists(spec, load_tokenizer(model, case))


def test_no_calibration_says_what_to_write(model):
    with pytest.raises(SpecError, match="write 'calibration: "):
        calibration.token_lists(None, load_tokenizer(model, make_case("gptq")))


def test_the_fingerprint_is_the_hash_of_the_file(text):
    assert calibration.fingerprint(str(text)) == hashlib.sha256(text.read_bytes()).hexdigest()


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"words": "a"}', "3"])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(SpecError, match=r"bad\.jsonl:2"):
        calibration.documents(str(path))


def test_text_files_are_cut_into_paragraphs(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("one\ntwo\n\n\n\nthree\n")
    assert calibration.documents(str(path)) == ["one\ntwo", "three"]


@pytest.mark.parametrize("data", ["embedded:nothing", "missing.jsonl"])
def test_missing_calibration_is_data_unavailable(data):
    with pytest.raises(DataUnavailable, match="write embedded:calibration"):
        calibration.fingerprint(data)


# -- fake --------------------------------------------------------------------------------


def run_fake(folder: Path, **options) -> Path:
    fake.Runner(make_case("fake", options), None, folder).compress()
    return folder


def test_fake_writes_the_same_files_again(tmp_path):
    one, two = run_fake(tmp_path / "one"), run_fake(tmp_path / "two")
    assert [(p.name, p.read_bytes()) for p in sorted(one.iterdir())] == [
        (p.name, p.read_bytes()) for p in sorted(two.iterdir())
    ]
    tensors = load_file(one / "model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.noise"].nbytes == 256 * 256 * 4 // 8
    assert run_fake(tmp_path / "eight", bits=8).joinpath("model.safetensors").stat().st_size > 60_000


def test_fake_scores_depend_on_text_and_bits_alone(tmp_path):
    from lm_eval.api.instance import Instance

    pairs = [("a b", f" {word}") for word in ("cat", "dog", "bird")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]

    def scores(bits: int) -> list[float]:
        case = make_case("fake", {"bits": bits})
        folder = run_fake(tmp_path / str(bits), bits=bits)
        return [score for score, _ in fake.Runner(case, None, folder).load().loglikelihood(requests)]

    assert scores(4) == scores(4) != scores(2)
    near, far = (sum(abs(a - b) for a, b in zip(scores(16), scores(bits), strict=True)) for bits in (8, 2))
    assert near < far


def test_fake_fails_as_told(tmp_path):
    with pytest.raises(StageFailed, match="in compress"):
        run_fake(tmp_path, fail="compress")
    with pytest.raises(RuntimeError, match="crash"):
        run_fake(tmp_path, fail="crash")
    with pytest.raises(StageFailed, match="in load"):
        fake.Runner(make_case("fake", {"fail": "load"}), None, run_fake(tmp_path, fail="load")).load()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("how", "code"), [("kill", -9), ("memory", 1), ("hang", None)])
def test_fake_dies_as_told(tmp_path, how, code):
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "from runners import fake; fake._fail(sys.argv[1])"
    )
    process = subprocess.Popen([sys.executable, "-c", script, how], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        _, err = process.communicate(timeout=2 if code is None else 60)
        assert process.returncode == code
        assert how != "memory" or b"MemoryError" in err
    except subprocess.TimeoutExpired:
        assert code is None
    finally:
        process.kill()
        process.communicate()


# -- custom --------------------------------------------------------------------------------


def write_user(folder: Path, build: str, user: str = "") -> Path:
    folder.mkdir()
    (folder / "build.sh").write_text(build)
    (folder / "user.py").write_text(user)
    return folder


def custom_runner(folder: Path, output: Path, model: Path | None = None) -> custom.Runner:
    return custom.Runner(make_case("custom", {"folder": str(folder)}), model, output)


def test_build_finds_its_places_and_this_python(tmp_path, capfd):
    build = 'echo "$1|$MODEL_DIR|$PWD"; python -c "import sys; print(sys.prefix)" > "$OUTPUT_MODEL/prefix"\n'
    folder = write_user(tmp_path / "mine", build)
    (tmp_path / "model").mkdir()
    custom_runner(folder, tmp_path / "out", tmp_path / "model").compress()
    assert capfd.readouterr().out.strip() == f"--compress|{tmp_path / 'model'}|{folder}"
    assert (tmp_path / "out" / "prefix").read_text().strip() == sys.prefix


def test_a_failed_build_says_its_last_lines(tmp_path):
    folder = write_user(
        tmp_path / "mine", "for i in $(seq 30); do echo line $i; done; echo no disk >&2; exit 7\n"
    )
    with pytest.raises(StageFailed, match=r"exit code 7; its last lines: .*line 30 \| no disk") as caught:
        custom_runner(folder, tmp_path / "out", tmp_path).compress()
    assert "\n" not in str(caught.value)
    assert "line 5 " not in str(caught.value)


def test_a_build_that_writes_nothing_fails(tmp_path):
    folder = write_user(tmp_path / "mine", "true\n")
    with pytest.raises(StageFailed, match="left nothing"):
        custom_runner(folder, tmp_path / "out", tmp_path).compress()


def test_code_is_part_of_the_key_and_results_are_not(tmp_path):
    folder = write_user(tmp_path / "mine", "true\n")
    runner = custom_runner(folder, tmp_path / "out")
    before = runner.inputs()
    assert set(before["code"]) == {"build.sh", "user.py"}
    for name in ("output_model/weights.bin", "__pycache__/user.pyc", ".cache/x", "mine.egg-info/PKG-INFO"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert runner.inputs() == before
    (folder / "lib").mkdir()
    (folder / "lib" / "helper.py").write_text("x = 1\n")
    assert runner.inputs() != before


def test_a_folder_without_user_py_is_a_spec_error(tmp_path):
    folder = write_user(tmp_path / "mine", "true\n")
    (folder / "user.py").unlink()
    with pytest.raises(SpecError, match=r"has no user\.py"):
        custom_runner(folder, tmp_path / "out").inputs()


def test_user_py_without_a_model_is_a_spec_error(tmp_path):
    folder = write_user(tmp_path / "mine", "true\n", "x = 1\n")
    with pytest.raises(SpecError, match="no lm-eval model in it"):
        custom_runner(folder, tmp_path / "out").load()


def test_any_lm_takes_the_arguments_that_lm_eval_gives(tmp_path):
    user = """
from lm_eval.api.model import LM
class UserLM(LM):
    def __init__(self, pretrained, batch_size=1):
        super().__init__()
        self.seen = (pretrained, batch_size)
    loglikelihood = loglikelihood_rolling = generate_until = None
"""
    case = make_case("custom", {"folder": str(write_user(tmp_path / "mine", "true\n", user))})
    case = dataclasses.replace(case, evaluation=dataclasses.replace(case.evaluation, dtype="float32"))
    runner = custom.Runner(case, None, tmp_path / "out")
    assert runner.load().seen == runner.load().seen == (str(tmp_path / "out"), 16)


# -- the documented example ------------------------------------------------------------------------


def test_the_example_in_the_page_is_the_tested_file():
    page = (ROOT / "docs" / "add-a-backend.md").read_text(encoding="utf-8")
    example = (ROOT / "docs" / "examples" / "float8.py").read_text(encoding="utf-8")
    assert f"```python\n{example}```" in page


@pytest.mark.backend
def test_a_file_in_runners_is_all_that_a_backend_needs(tmp_path, model):
    for name in ("runners", "scorecard"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "docs" / "examples" / "float8.py", tmp_path / "runners")
    script = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from runners import base, _docs
from tiny_model import make_case
import fresh_logits, torch
assert "float8" in base.names() and "## float8" in _docs.page()
case, out = make_case("float8"), Path({str(tmp_path / "out")!r}); out.mkdir()
base.get("float8")(case, Path({str(model)!r}), out).compress()
new = fresh_logits.logits(base.get("float8")(case, None, out).load().model)
lm = base.get("baseline")(make_case("baseline"), None, Path({str(model)!r})).load()
old = fresh_logits.logits(lm.model)
kl = torch.nn.functional.kl_div(new.log_softmax(-1), old.log_softmax(-1), log_target=True, reduction="sum")
print("KL", kl.item() / new[..., 0].numel())
"""
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert 0 < float(out.stdout.split("KL")[1]) < 0.05


@pytest.mark.backend
@pytest.mark.parametrize("heeds", [True, False])
def test_custom_says_so_where_user_py_takes_no_dtype(tmp_path, heeds):
    user = f"""
from types import SimpleNamespace
from lm_eval.api.model import TemplateLM


class UserLM(TemplateLM):
    eot_token_id = 0
    tok_encode = loglikelihood_rolling = generate_until = _loglikelihood_tokens = None

    def __init__(self, pretrained, dtype="bfloat16", **kwargs):
        super().__init__()
        self.model = SimpleNamespace(dtype="torch." + (dtype if {heeds} else "bfloat16"))
"""
    case = make_case("custom", {"folder": str(write_user(tmp_path / "mine", "true\n", user))})
    case = dataclasses.replace(case, evaluation=dataclasses.replace(case.evaluation, dtype="float32"))
    notes = getattr(custom.Runner(case, None, tmp_path / "out").load(), "notes", [])
    said = "user.py took no dtype: its weights are bfloat16, evaluation.dtype asks for float32"
    assert notes == ([] if heeds else [said])
