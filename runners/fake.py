"""A backend without a library: tiny deterministic files, made-up scores; for tests of all around it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.base import BaseRunner
from scorecard.errors import StageFailed

if TYPE_CHECKING:
    from lm_eval.api.model import LM

TENSOR = "model.layers.0.mlp.up_proj"
FEATURES = 256
FAILURES = ("", "compress", "load", "crash", "hang", "kill", "memory")


@dataclass(frozen=True)
class Options:
    bits: int = field(default=4, metadata={"doc": "bits per weight: decides size and noise of the scores"})
    group_size: int = field(default=128, metadata={"doc": "input features that share a scale"})
    fail: str = field(
        default="",
        metadata={
            "doc": "how to fail: an error in compress or load; in compress also an exception (crash), no end "
            "(hang), kill -9 of itself (kill), or memory without limit (memory)",
            "choices": FAILURES,
        },
    )
    seconds: float = field(default=0.0, metadata={"doc": "how long compress takes"})


class Runner(BaseRunner):
    """For tests: writes a safetensors file of the right size, loads as a model that guesses by hash."""

    Options = Options

    def compress(self) -> None:
        time.sleep(self.options.seconds)
        _fail(self.options.fail)
        self.output_model.mkdir(parents=True, exist_ok=True)
        config = json.dumps({"model_type": "fake", **asdict(self.options)}, sort_keys=True)
        (self.output_model / "config.json").write_text(config + "\n", encoding="utf-8")
        (self.output_model / "model.safetensors").write_bytes(_safetensors(self.options))

    def load(self) -> LM:
        if self.options.fail == "load":
            raise StageFailed(f"{self.case.id}: was told to fail in load; write fail: ''")
        return fake_lm(self.output_model)


def _fail(how: str) -> None:
    if how == "compress":
        raise StageFailed("fake: was told to fail in compress; write fail: ''")
    if how == "crash":
        raise RuntimeError("fake: was told to crash")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "hang":
        time.sleep(60)
    held = []
    while how == "memory":
        held.append(bytearray(b"\1") * (16 << 20))


def _safetensors(options: Options) -> bytes:
    """One square matrix of noise in as many bytes as real codes have, and a float16 scale for each group."""
    groups = max(1, FEATURES // options.group_size)
    codes = _noise_bytes(f"codes {options.bits}", FEATURES * FEATURES * options.bits // 8)
    scales = struct.pack("<e", 1.0) * (FEATURES * groups)
    header, offset = {}, 0
    for name, dtype, shape, data in (
        (f"{TENSOR}.noise", "U8", [FEATURES, len(codes) // FEATURES], codes),
        (f"{TENSOR}.scales", "F16", [FEATURES, groups], scales),
    ):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + codes + scales


def _noise_bytes(seed: str, count: int) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(count)


def _uniform(*parts: Any) -> float:
    """A number in [0, 1) that depends on ``parts`` alone."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def fake_lm(output_model: Path) -> LM:
    """An lm-eval LM whose log-likelihoods are hashes of the text, plus noise that halves with each bit."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

    bits = int(json.loads((output_model / "config.json").read_text(encoding="utf-8"))["bits"])

    class FakeLM(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            return [(self._score(*request.args), False) for request in requests]

        def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
            return [self._score("", request.args[0]) for request in requests]

        def generate_until(self, requests: list[Instance]) -> list[str]:
            return [f"{_uniform(bits, request.args[0]):.6f}" for request in requests]

        def _score(self, context: str, continuation: str) -> float:
            signal_, noise = _uniform(context, continuation), _uniform(bits, context, continuation)
            return -len(continuation) * (1.0 + signal_ + noise * 2.0 ** (1 - bits))

    return FakeLM()
