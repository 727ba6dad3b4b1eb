"""Whether a model gives the same numbers in packed rows behind a cache as it gives for each text alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runners._scoring.engine import Engine
from runners._scoring.parts import Parts
from runners._scoring.plan import Costs, Step
from runners._scoring.queries import Picks, Queries, Query

if TYPE_CHECKING:
    import torch

# Names of windows, in tokens: longer texts than this see less than all of themselves, or other positions.
_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window")
# Attention that goes by places in the row, not by positions: GPT-Neo's window, ALiBi of Falcon and MPT.
_BY_PLACE = ("window_size", "alibi")
_SCALED_ROPE = ("dynamic", "longrope", "su")  # their frequencies depend on the longest text of the batch
# What a model raises that knows no such mask, positions or cache.
_REFUSALS = (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
# Steps of the data type, in standard deviations of the log-probabilities. Measured: at most 11 in float32,
# 1 in 16 bits, where sums are kept in 32.
_ROUNDING = {4: 64, 2: 1}
_NOISE = 3  # times what another batch changes


@dataclass(frozen=True)
class Ability:
    """Texts up to ``longest`` tokens may share work (0: none); ``note`` says why longer ones may not.

    ``rounding`` is how far log-probabilities of the same text may be apart.
    """

    longest: int
    note: str = ""
    rounding: float = 0.0


def ability(model: Any, parts: Parts, device: Any, max_length: int) -> Ability:
    """Run a small tree of random tokens both ways and compare."""
    import torch

    name, queries = model.config.model_type, _tree(_vocabulary(model))
    longest = longest_shared(model.config)
    if longest == 0:
        return none(model, "its attention goes by places in a row")
    with torch.no_grad():
        alone = [_alone(model, query, device) for query in queries.all]
        noise = _difference(_batched(model, queries.all, device), alone)
        try:
            difference = _difference(_packed(parts, queries, device, model.dtype), alone)
        except _REFUSALS as error:
            reason = (str(error).splitlines() or [""])[0][:100]
            return none(model, f"packed rows fail ({type(error).__name__}: {reason})")
    step = torch.finfo(model.dtype).eps * float(torch.cat(alone).std())
    allowed = _NOISE * noise + _ROUNDING.get(model.dtype.itemsize, 1) * step
    if not difference <= allowed:  # NaN too
        return none(model, f"packed rows change log-probabilities by {difference:.2g}, not {allowed:.2g}")
    if longest is None or longest >= max_length:
        return Ability(max_length, rounding=allowed)
    note = f"{name}: texts of more than {longest} tokens share no work: there its windows or positions change"
    return Ability(longest, note, allowed)


def none(model: Any, reason: str) -> Ability:
    """Nothing may be shared, and why."""
    return Ability(0, f"{model.config.model_type}: requests share no work: {reason}")


def longest_shared(config: Any) -> int | None:
    """The most tokens of a text for which neither a window nor scaled positions matter; ``None``: any."""
    config = config.get_text_config()
    windows = [getattr(config, name, None) for name in _WINDOWS]
    if getattr(config, "use_sliding_window", True) is False:
        windows[0] = None
    rope = getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", rope.get("type")) in _SCALED_ROPE:
        original = rope.get("original_max_position_embeddings")
        original = original or getattr(config, "original_max_position_embeddings", None)
        windows.append(original or config.max_position_embeddings)
    places = (config, getattr(config, "attn_config", None))
    if any(getattr(place, name, None) for place in places for name in _BY_PLACE):
        return 0
    return min((window for window in windows if isinstance(window, int) and window > 0), default=None)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _tree(vocabulary: int) -> Queries:
    """Two documents of one beginning, one of them with two ends; asked are the last two predictions of each.

    So there is a chain, a row that branches, one that does not, and padding.
    """
    import torch

    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    start = some(3)
    documents = [(start + some(length), ends) for length, ends in ((2, 2), (4, 1))]
    texts = [document + some(2) for document, ends in documents for _ in range(ends)]
    return Queries([Query(text, some(2)) for text in texts])


def _alone(model: Any, query: Query, device: Any) -> torch.Tensor:
    import torch

    logits = model(input_ids=torch.tensor([query.tokens], device=device), use_cache=False).logits[0]
    return _logprobs(logits[-len(query.targets) :])


def _batched(model: Any, queries: Any, device: Any) -> list[torch.Tensor]:
    """As ``_alone``, all in one padded batch: how much a number depends on its neighbours anyway."""
    import torch

    width = max(len(query.tokens) for query in queries)
    rows = [query.tokens + [0] * (width - len(query.tokens)) for query in queries]
    logits = model(input_ids=torch.tensor(rows, device=device), use_cache=False).logits
    ends = [(len(query.tokens) - len(query.targets), len(query.tokens)) for query in queries]
    return [_logprobs(row[start:end]) for row, (start, end) in zip(logits, ends, strict=True)]


class _Collected:
    """A readout that keeps whole distributions, by query."""

    def __init__(self, parts: Parts, queries: int) -> None:
        self._parts = parts
        self.rows: list[list[torch.Tensor]] = [[] for _ in range(queries)]

    def add(self, states: torch.Tensor, picks: Picks) -> None:
        for row, owner in zip(_logprobs(self._parts.logits(states[picks.rows])), picks.owners, strict=True):
            self.rows[owner].append(row)


def _packed(parts: Parts, queries: Queries, device: Any, dtype: Any) -> list[torch.Tensor]:
    import torch

    trie = queries.trie
    chain = trie.common(0, len(trie))
    rows = [list(range(*branch)) for branch in trie.branches(0, len(trie))]
    plan = Step(0, len(trie), 0, 0, children=[Step(0, len(trie), 0, chain, rows)])
    collected = _Collected(parts, len(queries.all))
    # Padding of one row to the other is wanted here: a batch of both, whatever it costs.
    Engine(parts, Costs(call=1000), 1000, device, dtype).run(queries, plan, collected)
    return [torch.stack(rows) for rows in collected.rows]


def _logprobs(logits: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.log_softmax(logits, -1, dtype=torch.float32)


def _difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The mean over the vocabulary in the row where it is largest."""
    return max(float((a - b).abs().mean(-1).max()) for a, b in zip(ours, theirs, strict=True))
