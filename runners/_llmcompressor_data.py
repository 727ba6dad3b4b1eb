"""Calibration samples as llm-compressor takes them: batches of tensors, in the order of the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runners._functions import function
from scorecard.errors import SpecError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


def batches(
    texts: Sequence[Sequence[int]], pictures: Sequence[Mapping[str, Any]], size: int, collator: str | None
) -> DataLoader[Any]:
    """The calibration samples in their order: token ids, then what a processor made of pictures.

    ``collator`` (``file.py:function``) makes a batch of tensors from a list of samples; a sample of text is
    ``{"input_ids": [length], "attention_mask": [length]}``.
    """
    import torch
    from torch.utils.data import DataLoader

    samples: Any = [
        {"input_ids": (ids := torch.tensor(one)), "attention_mask": torch.ones_like(ids)} for one in texts
    ]
    collate: Callable[[list[Any]], Any] = function(collator, "data_collator") if collator else stack
    samples += pictures
    return DataLoader(samples, batch_size=size, shuffle=False, collate_fn=collate)


def stack(samples: list[Any]) -> Any:
    """A batch of samples: shorter ones are filled up on the right, outside of the attention mask.

    A sample that has a batch dimension already, as a processor's has, is a batch by itself.
    """
    import torch

    if samples[0]["input_ids"].dim() > 1:
        return samples[0]
    return {
        name: torch.nn.utils.rnn.pad_sequence([sample[name] for sample in samples], batch_first=True)
        for name in samples[0]
    }


def picture_batches(
    rows: Sequence[Mapping[str, Any]], processor: Any, max_length: int
) -> list[dict[str, Any]]:
    """What the model's processor makes of rows with a text or messages and ``images`` (paths), one by one."""
    from PIL import Image

    found = []
    for row in rows:
        pictures = [Image.open(path).convert("RGB") for path in row["images"]]
        text = _picture_text(row, len(pictures), processor)
        made = processor(text=[text], images=[pictures], return_tensors="pt")
        if (length := made["input_ids"].shape[1]) > max_length:
            raise SpecError(
                f"calibration.max_length: a text with its pictures takes {length} tokens, not {max_length}; "
                f"write max_length: {length} or more"
            )
        found.append(dict(made))
    return found


def _picture_text(row: Mapping[str, Any], count: int, processor: Any) -> str:
    """The prompt of a row, with a place for each picture."""
    if "messages" not in row and not getattr(processor, "chat_template", None):
        return str(getattr(processor, "image_token", "<image>")) * count + str(row.get("text", ""))
    places = [{"type": "image"}] * count
    if "messages" in row:
        chat = [dict(message) for message in row["messages"]]
        if isinstance(chat[0]["content"], str):
            chat = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chat]
            chat[0]["content"] = [*places, *chat[0]["content"]]
    else:
        chat = [{"role": "user", "content": [*places, {"type": "text", "text": row["text"]}]}]
    return str(processor.apply_chat_template(chat, tokenize=False))
