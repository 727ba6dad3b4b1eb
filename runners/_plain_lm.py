"""A causal language model that lm-eval's evaluator can score, without lm-eval.

The semantics are those of ``lm_eval.models.huggingface.HFLM``, version 0.4.13 (tokenization, truncation,
the order and padding of batches, stop sequences), so that no number depends on which of the two ran:
``tests/test_plain_lm.py`` compares them request by request. Only what the scorecard uses is here: one
process, decoder-only models, a fixed batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from runners import _plain_generation as generation
from scorecard.errors import SpecError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_LENGTH = 2048
NO_LIMIT = int(1e30)  # what a tokenizer says when it knows no length

Pair = tuple[list[int], list[int]]  # token ids of a context and of its continuation


class Request(Protocol):
    """What is read of an ``lm_eval.api.instance.Instance``."""

    @property
    def args(self) -> tuple[Any, ...]: ...


class PlainLM:
    """``model`` on its device and its ``tokenizer``, scored in batches of ``batch_size``.

    ``max_length`` in tokens (``None``: the model's own), ``add_bos_token`` as in lm-eval. ``progress`` is
    called with (done, total) after each batch.
    """

    backend = "causal"
    max_gen_toks = 256

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
    ) -> None:
        model.eval()
        model.tie_weights()
        self.model = model
        self.tokenizer: Any = _with_padding(tokenizer, model.config)
        self.batch_size = batch_size
        self.max_length = max_length or _context_length(model.config, tokenizer)
        self.add_bos_token = add_bos_token
        self.progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of ``text``; its own beginning-of-text token is not put there twice."""
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and text.startswith(self.tokenizer.decode(self.prefix_token_id)):
            special = False
        options = {} if special is None else {"add_special_tokens": special}
        ids: list[int] = self.tokenizer.encode(text, **options)
        return ids

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """For each (context, continuation) its log-probability in nats, and whether it is the greedy one."""
        return self._score([self._encode_pair(*request.args) for request in requests], self.progress)

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """The log-probability of each whole text, in windows of ``max_length`` tokens."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            windows = list(rolling_windows(tokens, self.prefix_token_id, self.max_length))
            pairs += windows
            owners += [place] * len(windows)
        sums: list[float] = [0] * len(requests)
        for start in range(0, len(pairs), self.batch_size):
            stop = min(start + self.batch_size, len(pairs))
            for owner, (logprob, _) in zip(owners[start:stop], self._score(pairs[start:stop]), strict=True):
                sums[owner] += logprob
            self.progress(stop, len(pairs))
        return sums

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """The continuation of each (context, settings), up to its first stop sequence."""
        return generation.generate_until(self, [request.args for request in requests])

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that ``apply_chat_template`` uses. Raises SpecError for a name that is not there."""
        template = getattr(self.tokenizer, "chat_template", None)
        if chat_template is False or template is None:
            return None
        if not isinstance(template, dict):
            return str(template)
        name = chat_template if isinstance(chat_template, str) else "default"
        if name not in template:
            raise SpecError(f"apply_chat_template: no template '{name}'; write one of {', '.join(template)}")
        return str(template[name])

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text; without its system message where the template refuses one."""
        from jinja2.exceptions import TemplateError

        def apply(messages: list[dict[str, str]]) -> str:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return text

        try:
            return apply(chat_history)
        except TemplateError:
            return apply([message for message in chat_history if message["role"] != "system"])

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        """Spaces that end the context belong to the continuation, as a tokenizer would have it."""
        if context == "":
            ids = self.tok_encode(continuation, add_special_tokens=False)
            first = self.prefix_token_id
            return (ids[:1], ids[1:]) if ids[0] == first else ([first], ids)
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        whole, start = self.tok_encode(context + continuation), self.tok_encode(context)
        return start, whole[len(start) :]

    def _score(
        self, pairs: Sequence[Pair], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[tuple[float, bool]]:
        """Pairs whose input is the same share one forward pass; longest first."""
        for context, continuation in pairs:
            self._check_lengths(context, continuation)
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, (context, continuation) in enumerate(pairs):
            groups.setdefault((*context, *continuation[:-1]), []).append(place)
        shared = [(max(places, key=lambda p: len(pairs[p][1])), places) for places in groups.values()]
        shared.sort(key=lambda entry: _longest_first(pairs[entry[0]]))
        answers: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(shared), self.batch_size):
            batch = shared[start : start + self.batch_size]
            logprobs = self._logprobs([pairs[first] for first, _ in batch])
            for (_, places), rows in zip(batch, logprobs, strict=True):
                answers |= {place: _answer(rows, pairs[place][1]) for place in places}
            progress(len(answers), len(pairs))
        return [answers[place] for place in range(len(pairs))]

    def _check_lengths(self, context: list[int], continuation: list[int]) -> None:
        if not context or not continuation:
            raise SpecError("tasks: a context or continuation has no tokens; leave this task out")
        if len(continuation) > self.max_length:
            raise SpecError(
                f"max_length: a continuation has {len(continuation)} tokens, {self.max_length} are taken; "
                "write more, or leave this task out"
            )

    def _logprobs(self, batch: Sequence[Pair]) -> Iterator[torch.Tensor]:
        """For each pair the log-probabilities [continuation, vocabulary] in the model's own data type.

        The input is padded on the right with zeros and without a mask: no earlier position sees them.
        """
        import torch

        # The last token is only predicted; what is too long loses its beginning.
        inputs = [(context + rest)[-(self.max_length + 1) :][:-1] for context, rest in batch]
        width = max(map(len, inputs))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in inputs], device=self.device)
        with torch.no_grad():
            logits = self.model(ids).logits
        logprobs = torch.log_softmax(logits, dim=-1)
        for rows, row, (_, rest) in zip(logprobs, inputs, batch, strict=True):
            end = len(row) + rows.shape[0] - width
            yield rows[end - len(rest) : end]


def rolling_windows(tokens: list[int], prefix: int, size: int) -> Iterator[Pair]:
    """Every token predicted once, after as much context as ``size`` input tokens hold."""
    if tokens:
        yield [prefix], tokens[:size]
    for start in range(size, len(tokens), size):
        end = min(start + size, len(tokens))
        yield tokens[end - size - 1 : start], tokens[start:end]


def _longest_first(pair: Pair) -> tuple[int, tuple[int, ...]]:
    tokens = (*pair[0], *pair[1])
    return -len(tokens), tokens


def _answer(logprobs: torch.Tensor, continuation: list[int]) -> tuple[float, bool]:
    """Sum over the continuation's tokens, and whether each of them is the most probable one."""
    import torch

    wanted = torch.tensor([continuation], device=logprobs.device)
    rows = logprobs.unsqueeze(0)
    greedy = bool((rows.argmax(-1)[:, -len(continuation) :] == wanted).all())
    # Where another pair of the group has a longer continuation, lm-eval 0.4.13 takes the first rows here.
    return float(rows.gather(2, wanted.unsqueeze(-1)).squeeze(-1).sum()), greedy


def _context_length(config: Any, tokenizer: Any) -> int:
    config = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    length = getattr(tokenizer, "model_max_length", None)
    return DEFAULT_MAX_LENGTH if length in (None, NO_LIMIT) else int(length)


def _with_padding(tokenizer: Any, config: Any) -> Any:
    """The tokenizer with a padding token: its own, else that for unknown text, else the end of text."""
    if tokenizer.pad_token_id is None:
        for name in ("unk_token", "eos_token"):
            if getattr(tokenizer, name, None):
                tokenizer.pad_token = getattr(tokenizer, name)
                break
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tokenizer
