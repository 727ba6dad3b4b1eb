"""``generate_until`` with prompts that share their beginning, batched by itself, as HFLM would answer.

The texts are those of ``lm_eval.models.huggingface.HFLM`` 0.4.13 with batch size 1: with more, it lets a
text that has met a stop sequence go on until all of its batch have, and another stop may then cut it
elsewhere. Sampling, beams and whatever else a request asks for beside greedy decoding go to HFLM's way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runners import _plain_generation as plain
from runners._scoring import memory, products
from runners._scoring._generation_cache import Unshareable
from runners._scoring._generation_decode import Row, decode
from runners._scoring._generation_plan import Tokens, clusters, shared_length
from runners._scoring._generation_probe import shareable_length, token_bytes
from runners._scoring._generation_stops import Stops

if TYPE_CHECKING:
    from runners._plain_lm import PlainLM

Request = tuple[str, Mapping[str, Any]]  # context and settings

MOST_ROWS = {"cpu": 64, "cuda": 256}  # more gain nothing: by then the products fill the machine
MEMORY_SHARE = 0.5  # of what is free
# Fields of a generation config that change nothing about greedy decoding up to a limit and stops of our own.
HARMLESS = {
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "max_length", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("early_stopping", "length_penalty", "return_dict_in_generate", "cache_implementation"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
    *("transformers_version", "_from_model_config"),
}


class Generation:
    """Answers for ``lm``. ``note`` says why prompts do not share their beginning, where they do not."""

    def __init__(self, lm: PlainLM) -> None:
        self._lm = lm
        self._tried = False
        self._token_bytes = 0
        self.note: str | None = None

    def texts(self, requests: Sequence[Request]) -> list[str]:
        """One text for each (context, settings), in their order."""
        made: dict[int, str] = {}
        for places in plain.same_settings(requests):
            answers = self._greedy([requests[place] for place in places], len(made), len(requests))
            made |= {place: text for place, text in zip(places, answers, strict=True) if text is not None}
        rest = [place for place in range(len(requests)) if place not in made]
        if rest:
            made |= zip(
                rest, plain.generate_until(self._lm, [requests[place] for place in rest]), strict=True
            )
        return [made[place] for place in range(len(requests))]

    def _greedy(self, group: Sequence[Request], before: int, total: int) -> list[str | None]:
        """The texts of requests with the same settings; ``None`` where HFLM's way is the one to take.

        ``before`` of ``total`` requests are answered already.
        """
        limit, sequences, options = plain.normalized(self._lm, group[0][1])
        room = self._lm.max_length - limit
        if options != {"do_sample": False} or limit < 1 or room < 1 or not self._is_shareable():
            return [None] * len(group)
        prompts = [tuple(ids[-room:]) for ids in _encoded(self._lm, [context for context, _ in group])]
        stops = Stops(self._lm.tokenizer, sequences, _end_ids(self._lm.model))
        made: dict[Tokens, list[int]] = {}
        for cluster in clusters(self._shareable(prompts, limit), limit):
            self._decode(cluster, limit, stops, made)
            self._lm.progress(before + sum(prompt in made for prompt in prompts), total)
        return [self._text(made[prompt], sequences) if prompt in made else None for prompt in prompts]

    def _shareable(self, prompts: Sequence[Tokens], limit: int) -> list[Tokens]:
        """The different ones of ``prompts`` that all layers see whole."""
        longest = shareable_length(self._lm.model.config)
        different = list(dict.fromkeys(prompts))
        if longest is None:
            return different
        fitting = [prompt for prompt in different if len(prompt) + limit <= longest]
        if len(fitting) < len(different):
            self.note = f"generate_until: texts of more than {longest} tokens share no prefix"
        return fitting

    def _is_shareable(self) -> bool:
        """Whether the model gives the same logits this way; tried once."""
        if not self._tried:
            self._tried = True
            try:
                _check_config(self._lm.model.generation_config)
                self._token_bytes = token_bytes(self._lm.model)
            except Unshareable as reason:
                self.note = str(reason)
        return self._token_bytes > 0

    def _decode(
        self, cluster: Sequence[Tokens], limit: int, stops: Stops, made: dict[Tokens, list[int]]
    ) -> None:
        """Add the tokens made for each prompt of ``cluster``; half the rows at a time where memory ends."""
        model, shared = self._lm.model, shared_length(cluster)
        prefix, width = cluster[0][:shared], self._width(cluster, shared, limit)
        while True:
            rows = [Row(i, list(prompt[shared:])) for i, prompt in enumerate(cluster) if prompt not in made]

            def ended(row: Row) -> None:
                made[cluster[row.place]] = row.made

            try:
                with products.fast(model):
                    decode(model, prefix, rows, limit=limit, stops=stops, width=width, ended=ended)
                return
            except (MemoryError, RuntimeError) as error:
                if width == 1 or not memory.is_out_of_memory(error):
                    raise
            memory.release(self._lm.device)
            width = max(1, min(width, len(rows)) // 2)

    def _width(self, cluster: Sequence[Tokens], shared: int, limit: int) -> int:
        """Rows whose keys and values fit into a share of the free memory."""
        device = self._lm.device
        row = (max(map(len, cluster)) - shared + limit) * self._token_bytes
        free = int(memory.free_bytes(device) * MEMORY_SHARE) - shared * self._token_bytes
        return max(1, min(free // row, MOST_ROWS.get(device.type, MOST_ROWS["cuda"])))

    def _text(self, tokens: list[int], sequences: list[str]) -> str:
        return plain.cut(self._lm.tokenizer.decode(tokens, skip_special_tokens=True), sequences)


def _encoded(lm: PlainLM, contexts: Sequence[str]) -> list[list[int]]:
    """Token ids as ``HFLM.tok_batch_encode`` makes them of one context.

    A text without tokens is that which log-likelihoods see for one: HFLM fails, or answers to padding.
    """
    first = getattr(lm.tokenizer, "bos_token", None)
    encoded: dict[str, list[int]] = {}
    for begins in (True, False):
        texts = [
            text
            for text in dict.fromkeys(contexts)
            if (first is not None and text.startswith(first)) is begins
        ]
        special = False if begins else lm.add_bos_token
        options = {} if special is None else {"add_special_tokens": special}
        if texts:
            encoded |= zip(texts, lm.tokenizer(texts, truncation=False, **options)["input_ids"], strict=True)
    return [encoded[text] or [lm.prefix_token_id] for text in contexts]


def _check_config(config: Any) -> None:
    """Raises Unshareable where the model's own generation config changes which token is the most probable."""
    changing = sorted(set(config.to_diff_dict()) - HARMLESS)
    if changing:
        raise Unshareable(f"generate_until: '{changing[0]}' of the generation config is left to transformers")


def _end_ids(model: Any) -> list[int]:
    """The tokens after which ``generate`` ends a text."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
