"""A random Llama with a byte-level tokenizer, in real files, for the tests of the runners."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scorecard.spec import CalibrationSpec, Case, ConfigSpec, EvalSpec, ModelSpec


def write_model(folder: Path, *, tied: bool = False, hidden: int = 128, mlp: int = 256) -> Path:
    """Two layers, vocabulary 320, bfloat16, both tied and untied."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_calibration(path: Path, documents: int = 60) -> Path:
    generator = random.Random(1)
    rows = [
        {"text": "".join(generator.choices("abcdefgh ", k=generator.randint(20, 90)))}
        for _ in range(documents)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_case(runner: str, options: Mapping[str, Any] | None = None, calibration: Path | None = None) -> Case:
    return Case(
        ModelSpec("test", "tiny", "1", "path:tiny"),
        ConfigSpec("config", runner, dict(options or {})),
        EvalSpec(("some_task",)),
        CalibrationSpec(str(calibration), samples=16, max_length=64) if calibration else None,
    )
