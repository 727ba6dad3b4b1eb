"""Train the embedded model from nothing: `python embedded/train.py --out DIR`.

Fresh text is generated all along, nothing is seen twice. The learning rates fall on a cosine. The forward
pass runs in bfloat16 and is compiled where a C++ compiler is found. `--layers`, `--width`, `--mlp`, `--heads`
and `--kv-heads` make a model of another shape, which speaks the same language with the same tokenizer.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizer as tokens
import torch
from language import Dice
from narrative import document
from optimizer import optimizers
from outliers import scale_channels
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

CONFIG: dict[str, Any] = {
    "vocab_size": tokens.VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
MUON_LR, ADAM_LR, WARMUP = 0.02, 3e-3, 0.04
TOKENS_PER_STEP = 4096
# (share of the tokens, sequence length): short sequences first, because they are faster.
PHASES = ((0.7, 128), (0.3, 256))
DOCUMENTS_PER_CHUNK = 2000
PROBABILITY_OF_BOS = 0.5
Watcher = Callable[[LlamaForCausalLM, float, int, float], None]


def token_stream(seed: int) -> Iterator[int]:
    """Tokens of endless fresh documents, each ended by </s>, half of them begun by <s>."""
    encode = tokens.build().backend_tokenizer.encode_batch
    dice = Dice(seed)
    while True:
        for encoding in encode([document(dice) for _ in range(DOCUMENTS_PER_CHUNK)]):
            if dice.chance(PROBABILITY_OF_BOS):
                yield CONFIG["bos_token_id"]
            yield from encoding.ids
            yield CONFIG["eos_token_id"]


def batches(
    seed: int, total: int, step: int = TOKENS_PER_STEP, time_gone: Callable[[], float] = lambda: 0.0
) -> Iterator[Tensor]:
    """Int64 batches of shape (`step` / length, length), at most `total` tokens in all.

    A length also ends when its share of the time has gone (`time_gone`: 0 to 1), so that a short run gets to
    the long sequences too.
    """
    stream = token_stream(seed)
    end = 0.0
    for share, length in PHASES:
        end += share
        for _ in range(int(share * total / step)):
            if time_gone() >= end:
                break
            yield torch.tensor(list(itertools.islice(stream, step))).view(-1, length)


def new_model(seed: int, config: dict[str, Any] = CONFIG) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager"))


def loss_function(model: LlamaForCausalLM, bf16: bool) -> Callable[[Tensor], Tensor]:
    """A batch of tokens to its mean cross-entropy in nats."""

    def loss(batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=batch, use_cache=False).logits
        return cross_entropy(logits.float()[:, :-1].flatten(0, 1), batch[:, 1:].flatten())

    return loss


def learning_rate_factor(progress: float) -> float:
    """A linear rise over the first WARMUP of training, then a cosine from 1 down to 0.01."""
    if progress < WARMUP:
        return progress / WARMUP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def train(
    seed: int,
    total: int,
    minutes: float,
    *,
    compiled: bool,
    bf16: bool,
    watch: Watcher,
    config: dict[str, Any] = CONFIG,
    step: int = TOKENS_PER_STEP,
) -> LlamaForCausalLM:
    """Train on `total` tokens; where `minutes` would not do for them, on as many as they allow.

    `watch` is called every half minute with the model, the minutes so far, the tokens so far and the loss.
    """
    model = new_model(seed, config)
    loss = loss_function(model, bf16)
    loss = torch.compile(loss, dynamic=False) if compiled else loss
    both = optimizers(model, MUON_LR, ADAM_LR, torch.bfloat16 if bf16 else torch.float32)
    peaks = [group["lr"] for optimizer in both for group in optimizer.param_groups]
    start, done, report = time.monotonic(), 0, 0.0

    def minutes_gone() -> float:
        return (time.monotonic() - start) / 60 if done else 0.0

    for batch in batches(seed, total, step, lambda: minutes_gone() / minutes):
        elapsed = minutes_gone()
        progress = max((done + batch.numel()) / total, elapsed / minutes)
        for peak, group in zip(peaks, (g for o in both for g in o.param_groups), strict=True):
            group["lr"] = peak * learning_rate_factor(progress)
        value = loss(batch)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        if not done:
            start = time.monotonic()  # compilation does not count
        done += batch.numel()
        if elapsed >= report:
            watch(model, elapsed, done, value.item())
            report += 0.5
    return model


def show(_model: LlamaForCausalLM, elapsed: float, done: int, loss: float) -> None:
    print(f"{elapsed:5.1f} min  {done / 1e6:6.2f} M tokens  loss {loss:.4f}", flush=True)


def checkpointing(folder: Path, every_minutes: float) -> Watcher:
    """A watcher that shows how training goes and saves the model, as `save` does, every so many minutes."""
    due = every_minutes

    def watch(model: LlamaForCausalLM, elapsed: float, done: int, loss: float) -> None:
        nonlocal due
        show(model, elapsed, done, loss)
        if elapsed >= due:
            save(copy.deepcopy(model), folder)
            due = elapsed + every_minutes

    return watch


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the bfloat16 model, its channels made unequal, and the tokenizer."""
    model.to(torch.bfloat16)
    scale_channels(model)
    model.save_pretrained(folder)
    ids = {key: CONFIG[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids, do_sample=False).save_pretrained(folder)
    tokens.save(folder)


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The options that make a model of another shape; their defaults are the embedded model's."""
    for name, key, meaning in (
        ("--layers", "num_hidden_layers", "decoder layers"),
        ("--width", "hidden_size", "hidden size, a multiple of the heads"),
        ("--mlp", "intermediate_size", "size of the MLP"),
        ("--heads", "num_attention_heads", "attention heads"),
        ("--kv-heads", "num_key_value_heads", "key-value heads, a divisor of the heads"),
    ):
        parser.add_argument(name, dest=key, type=int, default=CONFIG[key], help=f"{meaning} [%(default)s]")


def shape(options: argparse.Namespace) -> dict[str, Any]:
    """CONFIG with the shape that was asked for."""
    return {key: getattr(options, key, value) for key, value in CONFIG.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    has_compiler = bool(shutil.which("g++"))
    add("--out", type=Path, required=True, help="folder for the model")
    add("--seed", type=int, default=1)
    add("--tokens", type=float, default=20e6, help="tokens to train on [%(default)g]")
    add("--step", type=int, default=TOKENS_PER_STEP, help="tokens of each step [%(default)s]")
    add("--minutes", type=float, default=30, help="end, with a full schedule, by then [%(default)g]")
    add("--threads", type=int, help="[all cores]")
    add("--checkpoint-minutes", type=float, help="save the model so far as often as this [only at the end]")
    add_shape(parser)
    add("--compile", action=argparse.BooleanOptionalAction, default=has_compiler, help="[if g++ is found]")
    add("--bf16", action=argparse.BooleanOptionalAction, default=True, help="--no-bf16 for a CPU without it")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    total, flags = int(options.tokens), {"compiled": options.compile, "bf16": options.bf16}
    every = options.checkpoint_minutes
    watch = checkpointing(options.out, every) if every else show
    settings = {**flags, "watch": watch, "config": shape(options), "step": options.step}
    model = train(options.seed, total, options.minutes, **settings)
    save(model, options.out)


if __name__ == "__main__":
    main()
