"""An LM that shares work between requests: a drop-in for lm-eval's HFLM, with its numbers.

What ``runners._plain_lm`` says of tokenization and truncation holds here. Two things differ from lm-eval
0.4.13: log-softmax is in float32 whatever the model's data type, and each request gets the answer that it
gets alone. (There, of two requests with one input and continuations of different lengths, the shorter one
gets the log-probabilities of other positions.)
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runners._plain_lm import Pair, PlainLM, Request, rolling_windows
from runners._scoring import memory, parts, plan, probe, products
from runners._scoring.encodings import Encodings
from runners._scoring.engine import Engine
from runners._scoring.generation import Generation
from runners._scoring.queries import Answers, Queries, Query
from runners._scoring.readout import LogProbs, logits_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answer = tuple[float, bool]
Progress = Callable[[int, int], None]

_ATTENTION = 0.25  # measured on CPUs: 4 · width of 12 · width² operations, at a lower speed
CUDA_CALL = 256.0  # tokens that a forward pass costs more: the launches of its kernels
_GROWTH = 1.5  # times farther than checked is checked again
_ROUNDING = 16  # times the rounding of a mean over the vocabulary may be that of one token
_EPSILON = 1e-6  # of a sum in float32


class SharingLM(PlainLM):
    """What needs no model of transformers: texts become queries, each distinct text tokenized once.

    ``encodings``, if set, knows texts that were tokenized before this process began.
    """

    encodings: Encodings | None = None

    def tok_encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of ``text``; its own beginning-of-text token is not put there twice."""
        known = self._encoded.get((text, add_special_tokens))
        return super().tok_encode(text, add_special_tokens) if known is None else known

    @functools.cached_property
    def _encoded(self) -> dict[tuple[str, bool | None], list[int]]:
        return {}

    @functools.cached_property
    def _first_text(self) -> str:
        return str(self.tokenizer.decode(self.prefix_token_id))

    def loglikelihood(self, requests: Sequence[Request]) -> list[Answer]:
        """For each (context, continuation) its log-probability in nats, and whether it is the greedy one.

        Raises SpecError where a context or continuation has no tokens, or one has more than the model takes.
        """
        pairs = [request.args for request in requests]
        self._encode_all(pairs)
        encoded = [self._encode_pair(*pair) for pair in pairs]
        self._encoded.clear()
        for context, continuation in encoded:
            self._check_lengths(context, continuation)
        return self._answers([self._query(pair) for pair in encoded], share=True)

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """The log-probability of each whole text, in windows of ``max_length`` tokens."""
        windows: list[Pair] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            found = list(rolling_windows(tokens, self.prefix_token_id, self.max_length))
            windows += found
            owners += [place] * len(found)
        # Windows begin alike only where whole texts do: packing them would cost more than it saves.
        answers = self._answers([self._query(window) for window in windows], share=False)
        sums: list[float] = [0] * len(requests)
        for owner, (logprob, _) in zip(owners, answers, strict=True):
            sums[owner] += logprob
        return sums

    def _query(self, pair: Pair) -> Query:
        """The last token is only predicted; what is too long loses its beginning."""
        context, continuation = pair
        return Query((context + continuation)[-(self.max_length + 1) :][:-1], continuation)

    def _answers(self, queries: Sequence[Query], *, share: bool) -> list[Answer]:
        raise NotImplementedError

    def _encode_all(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Tokenize what ``_encode_pair`` will ask for, in one call for all texts with the same settings."""
        if not self.tokenizer.is_fast:
            return
        wanted: dict[tuple[bool | None, bool | None], dict[str, None]] = {}
        for context, continuation in pairs:
            asked = False if context == "" else None
            for text in (continuation,) if context == "" else (context + continuation, context.rstrip()):
                special = self.add_bos_token if asked is None else asked
                if asked is None and text.startswith(self._first_text):
                    special = False
                wanted.setdefault((asked, special), {})[text] = None
        for (asked, special), texts in wanted.items():
            for text, ids in self._tokenized(list(texts), special):
                self._encoded[text, asked] = ids

    def _tokenized(self, texts: list[str], special: bool | None) -> Iterator[tuple[str, list[int]]]:
        """The ids of each text: those that an earlier case has kept, the others in one call."""
        kept, new = self.encodings, texts
        if kept:
            known = {text: ids for text in texts if (ids := kept.get(text, special)) is not None}
            yield from known.items()
            new = [text for text in texts if text not in known]
        if new:
            options = {} if special is None else {"add_special_tokens": special}
            encoded = self.tokenizer(new, return_attention_mask=False, **options)["input_ids"]
            yield from zip(new, encoded, strict=True)
            if kept:
                kept.add(new, special, encoded)


class FastLM(SharingLM):
    """``model`` and ``tokenizer``; arguments as ``PlainLM`` has them.

    ``batch_size`` counts only for texts to generate; for log-likelihoods the free memory decides. ``notes``
    says why requests of this model could not share work, if they could not.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 16, **settings: Any
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
        config = getattr(self.model.config, "text_config", None) or self.model.config
        costs = plan.Costs(
            row_tokens=tokens,
            call=CUDA_CALL if device.type == "cuda" else plan.Costs.call,
            attention=_ATTENTION / memory.width(config),
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
    """A ``FastLM`` that lm-eval's evaluator takes."""
    return for_lm_eval(FastLM)(model, tokenizer, **settings)


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
