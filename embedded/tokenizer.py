"""The tokenizer of the embedded model: one token per word of the language, single characters for all else."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING

import lexicon as lex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"  # how the tokenizer writes a space
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
VOCAB_SIZE = 512


def pieces() -> list[tuple[str, float]]:
    """(piece, score) in the order of token ids; a word always scores above its letters one by one."""
    characters = sorted(set(string.printable) - set(" \t\r\x0b\x0c"))
    named = [(piece, 0.0) for piece in SPECIAL]
    whole = [(SPACE + word, -1.0) for word in lex.words()] + [(word, -1.0) for word in lex.LINE_STARTS]
    single = [(character, -10.0) for character in [SPACE, *characters]]
    unused = [(f"<unused{i}>", -100.0) for i in range(VOCAB_SIZE - len(named + whole + single))]
    return named + single + whole + unused


def build() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer made from `pieces`, lossless on printable ASCII and line breaks.

    A space is put before the text where it does not begin with one, so `x` and ` x` give the same tokens.
    No token is added around the text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram(pieces(), unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def save(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, the latter under the class name every release knows."""
    build().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
