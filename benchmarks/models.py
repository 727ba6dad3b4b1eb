"""Random Llamas by name and a word-level tokenizer, made in memory: nothing is read, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 32_000  # with <s>, </s> and <unk>
MAX_LENGTH = 2048

# hidden size, MLP width, layers, heads, KV heads, vocabulary
SHAPES = {
    "m15": (192, 512, 8, 6, 6, WORDS),  # 15.8 M parameters
    "m50": (384, 1024, 14, 6, 6, WORDS),  # 49.3 M
    "1b": (2048, 8192, 16, 32, 8, 128_256),  # as Llama 3.2 1B, untied
    "8b": (4096, 14_336, 32, 32, 8, 128_256),  # as Llama 3.1 8B
}


def multiply_adds(name: str) -> tuple[int, int]:
    """Of the products with weights: for a token in the body, and for a row in the head. Attention between
    tokens, which grows with their number, is not among them."""
    hidden, mlp, layers, heads, kv_heads, vocabulary = SHAPES[name]
    attention = 2 * hidden * hidden + 2 * hidden * hidden * kv_heads // heads
    return layers * (attention + 3 * hidden * mlp), hidden * vocabulary


def word(index: int) -> str:
    return f"w{index}"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the words ``w0`` … and one at the beginning of a text, as Llama's has it."""
    names = ["<s>", "</s>", "<unk>", *(word(i) for i in range(WORDS - 3))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
    )


def model(name: str, device: str, dtype: torch.dtype, seed: int) -> Any:
    """The Llama called ``name``; the same weights for the same seed, device and dtype."""
    hidden, mlp, layers, heads, kv_heads, vocabulary = SHAPES[name]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        initializer_range=0.1,  # with less a random model repeats one word, whatever the prompt was
        dtype=dtype,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        made = LlamaForCausalLM(config).to(dtype)
    return made.eval().requires_grad_(False)
