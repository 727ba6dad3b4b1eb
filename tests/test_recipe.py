"""Recipes of llm-compressor: what is read from them, and the one line that a wrong one gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_model import make_case

from runners import _recipe, base
from runners._shapes import Shapes
from scorecard import keys
from scorecard.errors import RunnerUnavailable, SpecError
from scorecard.load import load

TEXT = """
quant_stage:
  quant_modifiers:
    SmoothQuantModifier: {smoothing_strength: 0.8}
    GPTQModifier:
      ignore: ["lm_head"]
      scheme: "W4A16"
      targets: "Linear"
      dampening_frac: 0.1
"""
GPTQ = {"ignore": ["lm_head"], "scheme": "W4A16", "targets": "Linear", "dampening_frac": 0.1}
STEPS = [("SmoothQuantModifier", {"smoothing_strength": 0.8}), ("GPTQModifier", GPTQ)]


DYNAMIC = {"num_bits": 8, "dynamic": True}


def parsed(**options: Any) -> Any:
    return base.get("llmcompressor").parse(options, "configs.c")


@pytest.mark.parametrize(
    "recipe",
    [
        TEXT,
        {"any_stage": {"some_modifiers": dict(STEPS)}},
        {"first_stage": {"a_modifiers": dict(STEPS[:1])}, "second_stage": {"b_modifiers": dict(STEPS[1:])}},
        {"a_stage": {"a_modifiers": [dict([step]) for step in STEPS]}},
        [dict([step]) for step in STEPS],
        dict(STEPS),
    ],
    ids=["text", "mapping", "stages", "list in a group", "list", "modifiers alone"],
)
def test_every_form_gives_the_same_steps(recipe: Any) -> None:
    assert parsed(recipe=recipe).steps() == STEPS


def test_the_old_awq_modifier_is_taken_apart() -> None:
    old = [{"AWQModifier": {"scheme": "W4A16_ASYM", "targets": ["Linear"], "duo_scaling": False}}]
    assert parsed(recipe=old).steps() == [
        ("AWQModifier", {"duo_scaling": False}),
        ("QuantizationModifier", {"scheme": "W4A16_ASYM", "targets": ["Linear"]}),
    ]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("quant:\n  mods: {}", "recipe.quant: is no stage, and would be passed over; write 'quant_stage'"),
        ({"gptqmodifier": {}}, "recipe.gptqmodifier: is no stage, .*; did you mean 'GPTQModifier'"),
        ({"q_stage": {"mods": {}}}, "recipe.q_stage.mods: is no group of modifiers; write 'mods_modifiers'"),
        ({"q_stage": {"q_modifiers": {"GPTQModifer": {}}}}, "GPTQModifer: is no modifier; did you mean"),
        ([{"GPTQModifier": {"dampenin_frac": 1}}], r"recipe\[0\].GPTQModifier: .*mean 'dampening_frac'"),
        ([{"GPTQModifier": {"scheme": "W4A61"}}], "GPTQModifier.scheme: 'W4A61' is no scheme; did you mean"),
        ([{"GPTQModifier": {"scheme": {"W4A": ["Linear"]}}}], "'W4A' is no scheme"),
        ([{"GPTQModifier": 3}], "3 is not a mapping; write 'GPTQModifier: "),
        ([{"AWQModifier": {}}], "AWQModifier only scales; write a QuantizationModifier after it"),
        (["GPTQModifier"], r"recipe\[0\]: 'GPTQModifier' is no modifier"),
        ("a: 1\na: 2", "configs.c.recipe: line 2, column 1: key 'a' is there twice"),
        ("recipes/w4", "'recipes/w4' is no recipe"),
        ({"q_stage": {}}, "holds no modifier"),
        ([], "holds no modifier"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_one_line_before_any_work(recipe: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        parsed(recipe=recipe)
    assert str(error.value).startswith("configs.c.recipe")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": TEXT, "scheme": "W8A8"}, "scheme: the recipe says everything; keep one of both"),
        ({"bits": 4, "scheme": "W4A16"}, "bits: the scheme says them; keep one of both"),
        ({"bits": 9}, "bits: 9 is not possible; write 2 to 8"),
        ({"scheme": "NVFP4A16", "group_size": 32}, "group_size: NVFP4A16 has its own"),
        ({"scheme": "W4A16_ASYM", "symmetric": True}, "symmetric: W4A16_ASYM is not; write scheme: W4A16"),
        ({"group_size": 0}, "group_size: 0 is not possible"),
        ({"dampening_frac": 0.1}, "dampening_frac: not for method 'None'; write method: gptq"),
        ({"method": "gptq", "sparsity": 0.5}, "sparsity: not for method 'gptq'; write method: sparsegpt"),
        ({"method": "wanda", "bits": 4}, r"bits: wanda stores no codes; write method: wanda\+gptq"),
        ({"lm_head_bits": 8}, "lm_head_bits: 8 is not possible; write lm_head: true"),
        ({"method": "gptq", "pipeline": "datafree"}, "pipeline: the recipe needs calibration data"),
        ({"max_memory_per_gpu": "all"}, "max_memory_per_gpu: is no number; write GB, hessian or null"),
        ({"scheme": "W4A15"}, "scheme: 'W4A15' is not possible; write one of"),
        ({"batch_size": 0}, "batch_size: 0 is not possible"),
        ({"recipe": 4}, "recipe: 4 is of the wrong type"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"configs.c.{message}"):
        parsed(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("QuantizationModifier", {"scheme": "W4A16", "targets": ["Linear"], "ignore": ["lm_head"]})]),
        (
            {
                "method": "smoothquant+gptq",
                "scheme": "W8A8",
                "smoothing_strength": 0.8,
                "dampening_frac": 0.1,
            },
            [
                ("SmoothQuantModifier", {"smoothing_strength": 0.8}),
                (
                    "GPTQModifier",
                    {"dampening_frac": 0.1, "scheme": "W8A8", "targets": ["Linear"], "ignore": ["lm_head"]},
                ),
            ],
        ),
        (
            {"method": "sparsegpt", "mask_structure": "2:4", "ignore": ["re:.*down_proj"]},
            [
                (
                    "SparseGPTModifier",
                    {
                        "sparsity": 0.5,
                        "mask_structure": "2:4",
                        "ignore": ["lm_head", "re:.*down_proj"],
                        "targets": ["Linear"],
                    },
                )
            ],
        ),
    ],
)
def test_plain_options_stand_for_a_recipe(options: dict[str, Any], expected: list[Any]) -> None:
    assert parsed(**options).steps() == expected


def test_a_group_size_makes_a_group_of_its_own() -> None:
    ((_, arguments),) = parsed(bits=3, group_size=-1, symmetric=False, lm_head=True).steps()
    assert arguments["ignore"] == []
    weights = {"num_bits": 3, "type": "int", "strategy": "channel", "symmetric": False, "dynamic": False}
    assert arguments["config_groups"] == {"group_0": {"targets": ["Linear"], "weights": weights}}


def test_head_and_embeddings_are_a_step_of_their_own() -> None:
    options = parsed(method="gptq", bits=4, lm_head=True, lm_head_bits=8, embeddings=True, group_size=32)
    body, apart = options.steps(("embed_out",))
    assert body[0] == "GPTQModifier"
    assert body[1]["ignore"] == ["embed_out"]
    groups = apart[1]["config_groups"]
    assert groups["lm_head"]["targets"] == ["embed_out"]
    assert groups["lm_head"]["weights"]["num_bits"] == 8
    assert groups["embeddings"]["targets"] == ["Embedding"]
    assert groups["embeddings"]["weights"]["num_bits"] == 4


def test_every_plain_recipe_is_one_that_is_taken() -> None:
    for method in (
        "rtn",
        "gptq",
        "awq",
        "smoothquant+rtn",
        "smoothquant+gptq",
        "sparsegpt+gptq",
        "wanda+gptq",
    ):
        for scheme in _recipe.SCHEMES:
            found = parsed(method=method, scheme=scheme, embeddings=True).steps()
            assert _recipe.steps([dict([step]) for step in found], "recipe") == found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scheme": "W4A16"}, False),
        ({"scheme": "FP8_DYNAMIC"}, False),
        ({"scheme": "FP8"}, True),
        ({"scheme": "NVFP4"}, True),
        ({"method": "gptq"}, True),
        ({"method": "awq"}, True),
        ({"method": "wanda"}, True),
        ({"recipe": [{"QuantizationModifier": {"scheme": "W8A8"}}]}, False),
        ({"recipe": [{"QuantizationModifier": {"scheme": {"fp8": ["Linear"]}}}]}, True),
        ({"recipe": [{"QuantizationModifier": {"kv_cache_scheme": {"num_bits": 8}}}]}, True),
        ({"recipe": [{"QuantizationModifier": {"config_groups": {"a": {"input_activations": {}}}}}]}, True),
        (
            {"recipe": [{"QuantizationModifier": {"config_groups": {"a": {"input_activations": DYNAMIC}}}}]},
            False,
        ),
        ({"recipe": [{"MagnitudePruningModifier": {"final_sparsity": 0.5}}]}, False),
    ],
)  # fmt: skip
def test_calibration_is_asked_for_when_it_is_used(options: dict[str, Any], expected: bool) -> None:
    case = make_case("llmcompressor", options)
    assert base.get("llmcompressor")(case, None, Path("out")).calibrates is expected


SHAPES = Shapes({"model.layers.0.up": (256, 96)}, {"lm_head": (320, 128)}, tied=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 64}, "group_size: 64 does not divide the 96 input features of model.layers.0.up"),
        ({}, "group_size: 128 does not divide the 96"),
        ({"recipe": [{"GPTQModifier": {"scheme": "W4A16"}}]}, "group_size: 128 does not divide the 96"),
        ({"group_size": 32, "lm_head": True}, "lm_head: embeddings and output layer are one tensor"),
        ({"group_size": 32, "embeddings": True}, "embeddings: embeddings and output layer are one tensor"),
    ],
)
def test_a_layer_that_cannot_be_stored_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"configs.config.{message}"):
        base.get("llmcompressor")(make_case("llmcompressor", options), None, Path("out")).check_shapes(SHAPES)


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 32},
        {"scheme": "W8A8"},
        {"scheme": "MXFP4A16"},
        {"ignore": ["re:.*up"]},
        {"targets": ["re:.*down"]},
        {"group_size": -1},
    ],
)
def test_layers_that_fit_are_taken(options: dict[str, Any]) -> None:
    base.get("llmcompressor")(make_case("llmcompressor", options), None, Path("out")).check_shapes(SHAPES)


def test_memory_on_gpus_is_nothing_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorecard.machine.device", lambda: "cpu")
    runner = base.get("llmcompressor")(
        make_case("llmcompressor", {"max_memory_per_gpu": 20}), None, Path("out")
    )
    with pytest.raises(RunnerUnavailable, match="needs a GPU; write max_memory_per_gpu: null"):
        runner.check()


def test_room_for_the_hessians_of_the_largest_decoder_layer() -> None:
    from runners._llmcompressor import hessian_bytes

    layers = {"model.layers.0.a": (8, 16), "model.layers.0.b": (8, 32), "model.layers.1.a": (8, 16)}
    assert hessian_bytes(layers) == 4 * (16 * 16 + 32 * 32)
    assert hessian_bytes({}) == 0


# -- in models.yaml --------------------------------------------------------------------------------

MODELS = """
models:
  - {set: s, name: m, version: 1, source: "path:there", tasks: [piqa]}
configs:
  one:
    runner: llmcompressor
    recipe: RECIPE
    recipe_args: {damp: 0.1, damp_frac: text, layers: [Linear, "re:.*x$"]}
"""
WITH_VARIABLES = """
q_stage:
  q_modifiers:
    GPTQModifier:
      dampening_frac: $damp
      targets: $layers
      scheme: W${bits:-8}A16
      weight_observer: $damp_frac
      ignore: ["a$$", "b at ${damp}"]
"""


def steps_of(path: Path) -> Any:
    (case,) = load(path).cases
    return base.get("llmcompressor")(case, None, Path("out")).options.steps()


def test_variables_keep_their_types_in_a_file_and_in_text(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "w8.yaml").write_text(WITH_VARIABLES)
    (tmp_path / "file.yaml").write_text(MODELS.replace("RECIPE", "recipes/w8.yaml"))
    text = "|\n" + "".join(f"      {line}\n" for line in WITH_VARIABLES.splitlines())
    (tmp_path / "text.yaml").write_text(MODELS.replace("RECIPE", text))
    ((_, arguments),) = steps_of(tmp_path / "file.yaml")
    assert arguments == {
        "dampening_frac": 0.1,
        "targets": ["Linear", "re:.*x$"],
        "scheme": "W8A16",
        "weight_observer": "text",
        "ignore": ["a$", "b at 0.1"],
    }
    assert steps_of(tmp_path / "text.yaml") == steps_of(tmp_path / "file.yaml")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("scheme: $schem", r"configs.one.recipe: variable '\$schem' is not set"),
        ("dampening_frac: 1", "configs.one.recipe_args: variable 'damp' is never used"),
        (
            None,
            r"configs.one.recipe: cannot be read \(No such file .*\); write the path of a YAML file",
        ),
    ],
)
def test_what_is_wrong_with_a_recipe_file_is_said(tmp_path: Path, recipe: str | None, message: str) -> None:
    (tmp_path / "models.yaml").write_text(MODELS.replace("RECIPE", "r.yaml"))
    if recipe:
        (tmp_path / "r.yaml").write_text(f"GPTQModifier: {{{recipe}}}")
    with pytest.raises(SpecError, match=message):
        load(tmp_path / "models.yaml")


def test_another_recipe_in_the_file_is_another_case(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        MODELS.replace("RECIPE", "r.yaml").replace("recipe_args", "tags: [x] #")
    )
    found = []
    for scheme in ("W4A16", "W8A16"):
        (tmp_path / "r.yaml").write_text(f"GPTQModifier: {{scheme: {scheme}}}")
        found.append(load(tmp_path / "models.yaml").cases[0].config.options)
    assert found[0] != found[1]


def test_tags_and_places_do_not_change_the_key() -> None:
    def key(**options: Any) -> Any:
        case = make_case("llmcompressor", options)
        return keys.compress(case, base.get("llmcompressor")(case, None, Path("out")), "0")

    assert key(tags=["a"], save_directory="x") == key(tags=["b"])
    assert key(scheme="W8A16") != key()
