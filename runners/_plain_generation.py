"""Greedy or sampled continuations as ``lm_eval.models.huggingface.HFLM`` 0.4.13 makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scorecard.errors import SpecError

if TYPE_CHECKING:
    import torch

    from runners._plain_lm import PlainLM

TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first counts


def generate_until(lm: PlainLM, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """One text for each (context, settings); those with the same settings share batches, longest first."""
    texts: dict[int, str] = {}
    for places in same_settings(requests):
        places.sort(key=lambda place: (-len(lm.tok_encode(requests[place][0])), requests[place][0]))
        for start in range(0, len(places), lm.batch_size):
            batch = places[start : start + lm.batch_size]
            contexts = [requests[place][0] for place in batch]
            texts |= zip(batch, _continued(lm, contexts, requests[batch[0]][1]), strict=True)
            lm.progress(len(texts), len(requests))
    return [texts[place] for place in range(len(requests))]


def same_settings(requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for place, (_, settings) in enumerate(requests):
        key = tuple((k, tuple(v) if isinstance(v, Iterable) else v) for k, v in sorted(settings.items()))
        groups.setdefault(repr(key), []).append(place)
    return list(groups.values())


def _continued(lm: PlainLM, contexts: list[str], settings: Mapping[str, Any]) -> Iterator[str]:
    limit, stops, options = normalized(lm, settings)
    room = lm.max_length - limit
    if room <= 0:
        raise SpecError(
            f"max_gen_toks: {limit} of {lm.max_length} tokens leave none for a prompt; write fewer"
        )
    ids, mask = _encoded(lm, contexts, room)
    options.setdefault("max_length", ids.shape[1] + limit)
    made = lm.model.generate(
        input_ids=ids,
        attention_mask=mask,
        stopping_criteria=_criteria(lm.tokenizer, stops, ids),
        pad_token_id=lm.tokenizer.pad_token_id,
        use_cache=True,
        **options,
    )
    for tokens in made.tolist():
        yield cut(lm.tokenizer.decode(tokens[ids.shape[1] :], skip_special_tokens=True), stops)


def normalized(lm: PlainLM, settings: Mapping[str, Any]) -> tuple[int, list[str], dict[str, Any]]:
    """How many tokens at most, the stop sequences, and what ``generate`` takes."""
    options = dict(settings)
    limits = [options.pop(name, None) for name in TOKEN_LIMITS]
    limit = int(next((value for value in limits if value is not None), lm.max_gen_toks))
    until = options.pop("until", [])
    stops = list(until) if isinstance(until, list) else [until]
    end = lm.tokenizer.decode(lm.eot_token_id, skip_special_tokens=False)
    if end not in stops:
        stops.append(end)
    temperature = float(options.get("temperature", 0.0))
    if options.get("do_sample") is None:
        options["do_sample"] = temperature > 0.0
    if options["do_sample"] is False:
        options.pop("temperature", None)  # the library warns of one that has no meaning
    else:
        options.setdefault("temperature", 0.0)
    return limit, stops, options


def _encoded(lm: PlainLM, contexts: list[str], room: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask [batch, length], padded on the left, the last ``room`` tokens."""
    special = lm.add_bos_token
    first = getattr(lm.tokenizer, "bos_token", None)
    if first is not None and contexts[0].startswith(first):
        special = False
    options = {} if special is None else {"add_special_tokens": special}
    side, lm.tokenizer.padding_side = lm.tokenizer.padding_side, "left"
    encoded = lm.tokenizer(contexts, truncation=False, padding="longest", return_tensors="pt", **options)
    lm.tokenizer.padding_side = side
    ids, mask = encoded["input_ids"][:, -room:], encoded["attention_mask"][:, -room:]
    return ids.to(lm.device), mask.to(lm.device)


def _criteria(tokenizer: Any, stops: Sequence[str], prompt: torch.Tensor) -> Any:
    from transformers import StoppingCriteriaList

    rows, start = prompt.shape
    return StoppingCriteriaList([_Stop(tokenizer, stop, start, rows) for stop in stops])


class _Stop:
    """Ends a batch once each of its rows has held the stop sequence.

    It looks back two tokens further than the sequence is long: the same text may be cut in other tokens.
    """

    def __init__(self, tokenizer: Any, sequence: str, start: int, rows: int) -> None:
        self._tokenizer, self._sequence, self._start = tokenizer, sequence, start
        self._back = len(tokenizer.encode(sequence, add_special_tokens=False)) + 2
        self._done = [False] * rows

    def __call__(self, ids: torch.Tensor, scores: Any, **settings: Any) -> bool:
        texts = self._tokenizer.batch_decode(ids[:, self._start :][:, -self._back :])
        self._done = [done or self._sequence in text for done, text in zip(self._done, texts, strict=True)]
        return all(self._done)


def cut(text: str, stops: Sequence[str]) -> str:
    for stop in filter(None, stops):
        text = text.split(stop)[0]
    return text
