"""Whether texts to score were seen in calibration: overlap of word n-grams.

A text overlaps when it shares ``NGRAM`` consecutive words with a calibration text, as in GPT-3's analysis of
contamination (Brown et al. 2020, arXiv:2005.14165, appendix C: words in lower case, 13 at a time). A shorter
text overlaps when the whole of it, as consecutive words, is in a calibration text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]  # a number for each word of all texts, one text after the other

NGRAM = 13
EXAMPLES = 5
_WORD = re.compile(r"\w+")
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that multiplying loses nothing: 2^64 over the golden ratio


def overlap(
    calibration_texts: Iterable[str], evaluation_texts: Iterable[str], ngram: int = NGRAM
) -> dict[str, Any]:
    """``{"documents", "of", "ngram", "shorter", "examples"}``.

    ``documents`` of the ``of`` evaluation texts overlap; ``shorter`` of them have fewer than ``ngram`` words;
    ``examples`` are the indices of the first ones that overlap. Texts without a word never do.
    """
    import numpy as np

    known: dict[str, int] = {}
    seen, seen_lengths = _numbered(calibration_texts, known, grow=True)
    words, lengths = _numbered(evaluation_texts, known, grow=False)
    found = np.zeros(len(lengths), dtype=bool)
    starts = np.cumsum(lengths) - lengths
    for width in np.unique(np.minimum(lengths[lengths > 0], ngram)).tolist():
        at = _matches(seen, seen_lengths, words, lengths, width)
        owners = np.searchsorted(starts, at, side="right") - 1
        # Empty texts start where the next one does; the last of equal starts is the one with words.
        owners = owners[(lengths[owners] >= ngram) if width == ngram else (lengths[owners] == width)]
        found[owners] = True
    return {
        "documents": int(found.sum()),
        "of": len(lengths),
        "ngram": ngram,
        "shorter": int((lengths < ngram).sum()),
        "examples": np.flatnonzero(found)[:EXAMPLES].tolist(),
    }


def _numbered(texts: Iterable[str], known: dict[str, int], *, grow: bool) -> tuple[Numbers, Numbers]:
    """The words of all texts as numbers (-1: not known), and how many each text has."""
    import numpy as np

    numbers: list[int] = []
    lengths: list[int] = []
    for text in texts:
        words = _WORD.findall(text.lower())
        if grow:
            numbers.extend(known.setdefault(word, len(known)) for word in words)
        else:
            numbers.extend(map(_unknown(known), words))
        lengths.append(len(words))
    return np.asarray(numbers, dtype=np.int64), np.asarray(lengths, dtype=np.int64)


def _unknown(known: Mapping[str, int]) -> Any:
    get = known.get
    return lambda word: get(word, -1)


def _matches(seen: Numbers, seen_lengths: Numbers, words: Numbers, lengths: Numbers, width: int) -> Numbers:
    """Where in ``words`` a window begins that is also in ``seen``; a window lies within one text."""
    import numpy as np

    theirs, ours = _windows(seen_lengths, width), _windows(lengths, width)
    # A window with an unknown word cannot match.
    unknown = np.concatenate(([0], np.cumsum(words < 0)))
    ours = ours[unknown[ours + width] == unknown[ours]]
    hashes = _hashes(seen, theirs, width)
    candidates: Numbers = ours[np.isin(_hashes(words, ours, width), hashes)]
    if not len(candidates):
        return candidates
    # Equal hashes are compared word by word.
    spelled = {words[i : i + width].tobytes() for i in candidates.tolist()}
    likely = theirs[np.isin(hashes, _hashes(words, candidates, width))]
    real = spelled & {seen[i : i + width].tobytes() for i in likely.tolist()}
    kept = [i for i in candidates.tolist() if words[i : i + width].tobytes() in real]
    return np.asarray(kept, dtype=np.int64)


def _windows(lengths: Numbers, width: int) -> Numbers:
    """Where windows of ``width`` words begin that lie within one text."""
    import numpy as np

    ends = np.repeat(np.cumsum(lengths), lengths)
    positions = np.arange(len(ends))
    return positions[positions + width <= ends]


def _hashes(words: Numbers, starts: Numbers, width: int) -> NDArray[np.uint64]:
    """A 64-bit polynomial of the words of each window."""
    import numpy as np

    total: NDArray[np.uint64] = np.zeros(len(starts), dtype=np.uint64)
    for shift in range(width):
        total = total * np.uint64(_FACTOR) + words[starts + shift].astype(np.uint64) + np.uint64(1)
    return total
