"""llm-compressor on a model of text and pictures: both kinds of calibration samples reach it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from in_environment import run_python
from tiny_model import make_case, write_calibration, write_model

from scorecard.spec import CalibrationSpec, to_json

pytestmark = [pytest.mark.backend, pytest.mark.slow]

WRITE = """
import sys
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration, LlavaProcessor

text, out = Path(sys.argv[1]), Path(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(text)
tokenizer.add_tokens(["<image>"], special_tokens=True)
place = tokenizer.convert_tokens_to_ids("<image>")
sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
vision = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=64, **sizes)
torch.manual_seed(0)
config = LlavaConfig(
    text_config=LlamaConfig.from_pretrained(text),
    vision_config=vision,
    image_token_id=place,
    image_seq_length=4,
)
LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(out)
pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
LlavaProcessor(
    pictures,
    tokenizer,
    patch_size=16,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
).save_pretrained(out)
for color in ("red", "green", "blue"):
    Image.new("RGB", (40, 40), color).save(out.parent / f"{color}.png")
"""
RUN = """
import json, sys
from pathlib import Path
import torch
from fresh_logits import logits
from runners import _llmcompressor, base
from runners._hf import shapes
from scorecard.spec import Case, from_json

case = from_json(Case, json.loads(Path(sys.argv[1]).read_text()))
model, output = Path(sys.argv[2]), Path(sys.argv[3])
apply = _llmcompressor.oneshot
seen = []

def watched(changed, processor, recipe, batches, *rest, **settings):
    seen.extend(sorted(batch) for batch in batches)
    apply(changed, processor, recipe, batches, *rest, **settings)
    torch.save(logits(changed), output.parent / "memory.pt")

_llmcompressor.oneshot = watched
output.mkdir()
runner = base.get("llmcompressor")(case, model, output)
runner.check_shapes(shapes(model, case))
runner.compress()
(output.parent / "seen.json").write_text(json.dumps(seen))
"""
LOAD = """
import json, sys
from pathlib import Path
import torch
from fresh_logits import logits
from runners import base
from scorecard.spec import Case, from_json

case = from_json(Case, json.loads(Path(sys.argv[1]).read_text()))
output = Path(sys.argv[2])
torch.save(logits(base.get("llmcompressor")(case, None, output).load().model), output.parent / "loaded.pt")
"""


def test_pictures_and_texts_calibrate(tmp_path: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "out"
    run_python("llmcompressor", WRITE, write_model(tmp_path / "text"), model)
    data = write_calibration(tmp_path / "calibration.jsonl")
    with data.open("a") as file:
        for color in ("red", "green", "blue"):
            file.write(json.dumps({"text": "What color?", "images": [f"{color}.png"]}) + "\n")
    options = {
        "method": "gptq",
        "bits": 4,
        "group_size": 32,
        "model_class": "LlavaForConditionalGeneration",
        "ignore": ["re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
    }
    case = make_case("llmcompressor", options, data)
    calibration = CalibrationSpec(str(data), samples=4, max_length=64, vision_samples=2)
    case = dataclasses.replace(case, calibration=calibration)
    (tmp_path / "case.json").write_text(json.dumps(to_json(case)))
    run_python("llmcompressor", RUN, tmp_path / "case.json", model, output)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert (
        seen == [["attention_mask", "input_ids"]] * 4 + [["attention_mask", "input_ids", "pixel_values"]] * 2
    )
    assert (output / "processor_config.json").is_file()
    run_python("llmcompressor", LOAD, tmp_path / "case.json", output)
    assert torch.equal(torch.load(tmp_path / "loaded.pt"), torch.load(tmp_path / "memory.pt"))
