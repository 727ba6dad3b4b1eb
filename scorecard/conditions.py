"""Under what conditions a model was scored, as far as they come with the model and not from models.yaml."""

from __future__ import annotations

import hashlib
import json
from typing import Any

#: Text whose tokens tell tokenizers apart: letters, numbers, runs of spaces, code, scripts, an emoji.
PROBE = (
    "The quick brown fox jumps over the lazy dog, doesn't it? ANTIDISESTABLISHMENTARIANISM; naïve café.\n"
    "0 1 12 123 1234 12345 3.14159 1e-5 2026-11-21 0xFFEE 10,000,000 50 % (a + b) * [c] / {d} <e> \\n\n"
    "def f(x):\n    if x  >=  2:\n\treturn  {'key': [x ** 2, None]}  # done   \n\n\n   three   spaces   \n"
    "Größe, déjà vu, señor, łódź, Ελληνικά, Русский язык, עברית, العربية, हिन्दी, ไทย, 日本語, 한국어 👍🏽"
)


def of_model(lm: Any, *, chat: bool) -> dict[str, Any]:
    """``tokenizer_sha256`` of the tokens that PROBE gives, ``adds_bos`` whether a text begins with the BOS
    token, ``chat_template_sha256`` where prompts go through one. ``None``: not known, or none."""
    told = getattr(lm, "conditions", None)  # a served model's tokenizer is in another process
    template = lm.chat_template(True) if chat else None
    return {
        **(told or of_tokenizer(lm)),
        "chat_template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
    }


def of_tokenizer(lm: Any) -> dict[str, Any]:
    """The part that only the process with the tokenizer can tell."""
    tokenizer = getattr(lm, "tokenizer", None)
    if not callable(tokenizer):
        return {"tokenizer_sha256": None, "adds_bos": None}
    special = getattr(lm, "add_bos_token", None)
    plain = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    start = tokenizer("a", **({} if special is None else {"add_special_tokens": special}))["input_ids"][:1]
    return {
        "tokenizer_sha256": hashlib.sha256(json.dumps(plain).encode()).hexdigest(),
        "adds_bos": bool(start) and start[0] == tokenizer.bos_token_id,
    }
