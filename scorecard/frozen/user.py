"""The compressed model as an lm-eval model: ``lm_eval --model user --model_args pretrained=$OUTPUT_MODEL``.

Works from its folder and, copied, as ``lm_eval/models/user.py``. Reads what compression/compress.py wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from runners.baseline import Runner
from scorecard.frozen.case import CASE


@register_model("user")
class UserLM(HFLM):  # type: ignore[misc]
    """lm-eval's HFLM around the model in ``pretrained``, a folder that ``build.sh --compress`` wrote."""

    def __init__(self, pretrained: str, device: str | None = None, **kwargs: Any) -> None:
        runner: Any = Runner(CASE, None, Path(pretrained).resolve())
        model, tokenizer = runner.load()
        super().__init__(pretrained=model, tokenizer=tokenizer, **kwargs)
