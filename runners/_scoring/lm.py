"""An LM that shares work between requests: a drop-in for lm-eval's HFLM, with its numbers.

What ``runners._plain_lm`` says of tokenization and truncation holds here. Two things differ from lm-eval
0.4.13: log-softmax is in float32 whatever the model's data type, and each request gets the answer that it
gets alone. (There, of two requests with one input and continuations of different lengths, the shorter one
gets the log-probabilities of other positions.)
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from runners._plain_lm import Request
from runners._scoring import memory, parts, plan, probe, products
from runners._scoring.engine import Engine
from runners._scoring.generation import Generation
from runners._scoring.queries import Answers, Queries, Query
from runners._scoring.readout import LogProbs, logits_at_once
from runners._scoring.sharing import Answer, SharingLM
from scorecard.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FastLM", "SharingLM", "for_lm_eval", "make_lm"]

Progress = Callable[[int, int], None]

_ATTENTION = 0.25  # measured on CPUs: 4 · width of 12 · width² operations, at a lower speed
CUDA_CALL = 256.0  # tokens that a forward pass costs more: the launches of its kernels
DEFAULT_BATCH_SIZE = 16
_GROWTH = 1.5  # times farther than checked is checked again
_ROUNDING = 16  # times the rounding of a mean over the vocabulary may be that of one token
_EPSILON = 1e-6  # of a sum in float32


class FastLM(SharingLM):
    """``model`` and ``tokenizer``; arguments as ``PlainLM`` has them.

    ``batch_size`` counts only for texts to generate; for log-likelihoods the free memory decides. ``notes``
    says why requests of this model could not share work, if they could not.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **settings: Any,
    ) -> None:
        super().__init__(model, tokenizer, batch_size=batch_size, **settings)
        self.notes: list[str] = []
        self._generation = Generation(self)
        self.tokens_forwarded = self.rows_read = 0
        self._checked = 0  # the farthest that tokens stood off their positions where this was checked

    @functools.cached_property
    def _parts(self) -> parts.Parts:
        import torch

        ids = torch.tensor([[5, 3, 8, 2, 7, 1]], device=self.device)
        with products.fast(self.model):
            return parts.split(self.model, ids)

    @functools.cached_property
    def _ability(self) -> probe.Ability:
        split = self._parts
        with products.fast(self.model):
            found = probe.ability(self.model, split, self.device, self.max_length)
        self.notes += [found.note] if found.note else []
        return found

    @functools.cached_property
    def _engine(self) -> Engine:
        device, tokens = self.device, memory.pass_tokens(self.model, self.device)
        if self._parts.whole:  # logits of every token
            tokens = max(memory.LEAST_TOKENS, min(tokens, logits_at_once(device) // self._vocabulary))
        config = self.model.config.get_text_config()
        costs = plan.Costs(
            row_tokens=tokens,
            call=CUDA_CALL if device.type == "cuda" else plan.Costs.call,
            attention=_ATTENTION / memory.width(config),
            kept=memory.kept_bytes(self.model) / memory.token_bytes(self.model),
        )
        return Engine(self._parts, costs, tokens, device, self.model.dtype, caches=self._ability.longest > 0)

    @property
    def _vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """The continuation of each (context, settings), up to its first stop sequence."""
        texts = self._generation.texts([request.args for request in requests])
        if self._generation.note and self._generation.note not in self.notes:
            self.notes.append(self._generation.note)
        return texts

    def _answers(self, queries: Sequence[Query], *, share: bool) -> list[Answer]:
        longest = self._ability.longest if share else 0
        short = [place for place, query in enumerate(queries) if len(query.tokens) <= longest]
        long = [place for place, query in enumerate(queries) if len(query.tokens) > longest]
        found: dict[int, Answer] = {}
        for places, scored in ((short, self._shared), (long, self._separate)):
            report = functools.partial(self._report, len(found), len(queries))
            found |= zip(places, scored([queries[place] for place in places], report), strict=True)
        return [found[place] for place in range(len(queries))]

    def _report(self, before: int, total: int, done: int, _: int) -> None:
        self.progress(before + done, total)

    def _shared(self, queries: Sequence[Query], progress: Progress) -> list[Answer]:
        """Answers with shared work.

        Where tokens stood much farther off their positions than in any row before, the farthest text is
        scored alone too: the probe's rows are short, and a model's own code may go by places in the row.
        """
        work = Queries(queries)
        answers = self._run(work, plan.plan(work.trie, self._engine.costs), progress)
        shift, last = self._engine.farthest
        if shift <= _GROWTH * self._checked:
            return answers
        self._checked, query = shift, work.trie.index.index(last)
        alone = self._separate([queries[query]], lambda done, total: None)[0][0]
        rounding = _ROUNDING * self._ability.rounding * len(queries[query].targets)
        if abs(answers[query][0] - alone) <= rounding + _ROUNDING * _EPSILON * abs(alone):
            return answers
        reason = f"a long packed row gave {answers[query][0]:.6g}, not {alone:.6g}"
        self._ability = probe.none(self.model, reason)
        self.notes.append(self._ability.note)
        del self._engine
        return self._separate(queries, progress)

    def _separate(self, queries: Sequence[Query], progress: Progress) -> list[Answer]:
        work = Queries(queries)
        return self._run(work, plan.separate(work.trie), progress)

    def _run(self, work: Queries, steps: plan.Step, progress: Progress) -> list[Answer]:
        answers, before = Answers(work.all, progress), self._engine.forwarded
        readout = LogProbs(self._parts, answers, self._vocabulary, self.device)
        with products.fast(self.model):
            self._engine.run(work, steps, readout)
            readout.flush()
        self.tokens_forwarded += self._engine.forwarded - before
        self.rows_read += readout.rows
        return answers.result()


def make_lm(model: Any, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Any:
    """A ``FastLM`` that lm-eval's evaluator takes; lm-eval's own where there is an encoder.

    Raises SpecError for a model with an encoder where lm-eval is not installed.
    """
    if not model.config.is_encoder_decoder:
        return for_lm_eval(FastLM)(model, tokenizer, **settings)
    kind = model.config.model_type
    if importlib.util.find_spec("lm_eval") is None:
        raise SpecError(f"{kind}: only lm-eval scores encoder-decoder models; use an environment that has it")
    from lm_eval.models.huggingface import HFLM

    settings = {"batch_size": DEFAULT_BATCH_SIZE, **settings}
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="seq2seq", **settings)
    lm.notes = [f"{kind}: requests share no work: an encoder-decoder model, scored by lm-eval's own class"]
    return lm


@functools.cache
def for_lm_eval(kind: type[SharingLM]) -> type[Any]:
    """``kind`` as a subclass of lm-eval's LM, which its evaluator asks for; itself without lm-eval."""
    if importlib.util.find_spec("lm_eval") is None:
        return kind
    from lm_eval.api.model import LM

    class Both(kind, LM):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **settings: Any) -> None:
            LM.__init__(self)
            kind.__init__(self, *given, **settings)

    Both.__name__ = Both.__qualname__ = kind.__name__
    return Both
