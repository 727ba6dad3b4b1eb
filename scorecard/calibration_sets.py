"""Well-known calibration sets of the Hugging Face hub by their usual names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubSet:
    """A data set and where its text is: ``text`` names a column or is a pattern of columns (``{question}``),
    ``messages`` names a column of chat messages, ``images`` one of images; ``file`` is one file of a set that
    is too large to fetch whole."""

    repository: str
    split: str
    config: str | None = None
    text: str | None = None
    messages: str | None = None
    images: str | None = None
    file: str | None = None


KNOWN = {
    "c4": HubSet("allenai/c4", "train", text="text", file="en/c4-train.00000-of-01024.json.gz"),
    "cnn_dailymail": HubSet("abisee/cnn_dailymail", "train", "3.0.0", text="article"),
    "evolcodealpaca": HubSet("theblackcat102/evol-codealpaca-v1", "train", text="{instruction}\n\n{output}"),
    "flickr30k": HubSet("lmms-lab/flickr30k", "test", text="Describe this picture.", images="image"),
    "gsm8k": HubSet("openai/gsm8k", "train", "main", text="Question: {question}\nAnswer: {answer}"),
    "open_platypus": HubSet(
        "garage-bAInd/Open-Platypus", "train", text="{instruction}\n\n{input}\n\n{output}"
    ),
    "pileval": HubSet("mit-han-lab/pile-val-backup", "validation", text="text"),
    "ultrachat_200k": HubSet("HuggingFaceH4/ultrachat_200k", "train_sft", messages="messages"),
    "wikitext": HubSet("Salesforce/wikitext", "train", "wikitext-2-raw-v1", text="text"),
    "wikitext103": HubSet("Salesforce/wikitext", "train", "wikitext-103-raw-v1", text="text"),
}
