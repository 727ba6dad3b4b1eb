"""Real things in small: a random Llama with its tokenizer, and lm-eval tasks of every kind."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = ["the", "cat", "dog", "bird", "fish", "sees", "eats", "likes", "red", "blue", "small"]
WORDS += ["big", "a", "and", "not", "runs", "sleeps", "house", "tree", "river"]

DATA_PY = """\
import json
from pathlib import Path

import datasets


def load(files, **metadata):
    here = Path(__file__).parent
    read = lambda name: [json.loads(line) for line in (here / name).read_text().splitlines()]
    return datasets.DatasetDict({split: datasets.Dataset.from_list(read(f)) for split, f in files.items()})


def shout(doc):
    return doc["question"].upper()


def first_or_last(doc, results):
    scores = [score for score, _ in results]
    return {"acc": float(scores.index(max(scores)) in (0, len(scores) - 1)), "acc_norm": 0.0}
"""

COMMON = """\
custom_dataset: !function data.load
dataset_kwargs: {{files: {files}}}
test_split: test
metadata: {{version: 2}}
"""

TASKS = {
    "choice": """\
task: t_choice
tag: t_tag
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
fewshot_split: examples
num_fewshot: 2
metric_list: [{metric: acc_norm}, {metric: acc}]
""",
    "pairs": """\
task: t_pairs
tag: t_tag
output_type: multiple_choice
doc_to_text: !function data.shout
doc_to_choice: ["{{question}}", "{{choices[0]}}"]
doc_to_target: 0
num_fewshot: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "generate": """\
task: t_generate
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: plain, filter: [{function: take_first}]}
  - {name: first-word, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
""",
    "rolling": """\
task: t_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}


def sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(words))


def write_tasks(folder: Path, documents: int = 12) -> Path:
    """Four tasks, a group and a tag, with ``documents`` documents each."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(7)
    (folder / "data.py").write_text(DATA_PY)
    for split in ("test", "examples"):
        rows = [
            {
                "question": sentence(generator, generator.randint(3, 9)),
                "choices": [sentence(generator, generator.randint(1, 3)) for _ in range(4)],
                "answer": generator.randrange(4),
            }
            for _ in range(documents)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        splits = "{test: test.jsonl, examples: examples.jsonl}"
        (folder / f"{name}.yaml").write_text(text + COMMON.format(files=splits))
    (folder / "group.yaml").write_text("group: t_group\ntask: [t_choice, t_pairs]\n")
    return folder


def write_heldout(path: Path, documents: int = 9) -> Path:
    generator = random.Random(11)
    rows = [{"text": sentence(generator, generator.randint(4, 40))} for _ in range(documents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_model(folder: Path, *, vocabulary: int = 64, bos: bool = True, seed: int = 0) -> Path:
    """A Llama of some 20,000 random float32 parameters with a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>", "\n"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def load_lm(folder: Path, **options: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4, **options)
