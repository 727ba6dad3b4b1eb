"""Whether the layers were compressed at all, and as narrowly as was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scorecard.audit.asked import Asked, Methods, by_claims, by_config, leaves_out, overridden
from scorecard.audit.finding import Finding, Findings, some
from scorecard.audit.grid import Stored
from scorecard.audit.layer import Layer
from scorecard.audit.look import Look

_SPARSE = 0.1  # share of zeros that no dense weight has
_ALL_ALIKE = 0.9
_NUMBERED_THROUGH = ("bitsandbytes", "hqq", "quanto", "modelopt")  # their groups may span rows
# Options that ask for layers outside of the body.
_OUTER = (
    ("lm_head", "lm_head"),
    ("embedding", "embeddings"),
    ("lm_head", "outer_bits"),
    ("embedding", "outer_bits"),
)
_ROOMY = 1.2  # HQQ's 3 bits take 3.2, and a little more in small layers


def check(
    layers: Sequence[Layer], claims: Mapping[str, Any], config: Mapping[str, Any], methods: Methods
) -> Findings:
    body = [layer for layer in layers if layer.module.kind == "linear" and layer.stored]
    outer = [
        (layer, option)
        for kind, option in _OUTER
        for layer in layers
        if layer.module.kind == kind and layer.stored and claims.get(option)
    ]
    yield from _uncompressed(body, methods)
    for option in ("lm_head", "embeddings", "outer_bits"):
        left = [layer for layer, asked in outer if asked == option and layer.uncompressed]
        if left:
            said = f"{option}: {_say(claims[option])}"
            yield Finding("error", f"{some(left)}: stored at its original width although '{said}'")
    heads = [layer for layer, option in outer if option == "lm_head" and not claims.get("lm_head_bits")]
    yield from _as_asked([*body, *heads], claims, config)
    yield from _wider_than_claimed(body, by_claims(claims).bits, leaves_out=leaves_out(claims))
    yield from _held_wider([*body, *(layer for layer, _ in outer)])
    yield from _unseen(body)


def _uncompressed(body: Sequence[Layer], methods: Methods) -> Findings:
    """Layers at the original's width: untouched, on a grid, sparse, or changed otherwise."""
    whole = [layer for layer in body if layer.uncompressed]
    grid = [layer for layer in whole if layer.look and layer.look.levels]
    sparse = [layer for layer in whole if layer not in grid and layer.look and _is_sparse(layer.look)]
    rest = [layer for layer in whole if layer not in grid and layer not in sparse]
    if grid:
        levels = max(layer.look.levels or 0 for layer in grid if layer.look)
        what = f"only {levels} values in a group, but stored in {', '.join(_dtypes(grid))}"
        yield Finding("error", f"{some(grid)}: {what}: quantized without saving a byte; save packed codes")
    if sparse:
        share = sum(layer.look.zeros for layer in sparse if layer.look) / len(sparse)
        what = f"{share:.0%} of the weights are zero, in a dense file"
        text = f"{some(sparse)}: {what}: no byte is saved; store them sparse, or quantize too"
        yield Finding("warning" if methods.sparse else "error", text)
    if not rest:
        return
    untouched = all(layer.look and layer.look.same for layer in rest)
    if len(rest) == len(body):
        how = "as they were in the original" if untouched else "at their original width"
        what = f"nothing was compressed: all {len(body)} Linear layers are stored {how}"
        yield Finding("error", f"artifact: {what}; check the recipe's targets")
    else:
        what = "as in the original" if untouched else "changed, but at the original width"
        yield Finding("warning", f"{some(rest)}: left uncompressed among compressed layers ({what})")


def _is_sparse(look: Look) -> bool:
    return look.zeros >= _SPARSE and look.zeros > 2 * look.original_zeros


@dataclass(frozen=True)
class _Question:
    """One property of how a layer is stored; ``None`` from either side is no answer."""

    found: Callable[[Stored], float | bool | None]
    asked: Callable[[Asked, Layer], float | bool | None]
    text: str  # what is stored, with {} for the value


def _group_size(asked: Asked, layer: Layer) -> int | None:
    """-1 and 0 are the whole row, and no group is longer, except where weights are numbered through."""
    size = asked.group_size
    if size is None or not layer.width:
        return None
    through = layer.packed is not None and layer.packed.format.startswith(_NUMBERED_THROUGH)
    return layer.width if size <= 0 else size if through else min(size, layer.width)


_QUESTIONS = (
    _Question(lambda stored: stored.bits, lambda asked, _: asked.bits, "codes of {} bits are stored"),
    _Question(lambda stored: stored.group_size, _group_size, "groups of {} input features are stored"),
    _Question(lambda stored: stored.symmetric, lambda asked, _: asked.symmetric, "symmetric: {} is stored"),
)


def _as_asked(layers: Sequence[Layer], claims: Mapping[str, Any], config: Mapping[str, Any]) -> Findings:
    """Bits, group size and symmetry of what is stored, against the claims and against its own config.json."""
    claimed = by_claims(claims)
    sides: tuple[tuple[str, Callable[[Layer], Asked]], ...] = (
        ("claimed", lambda layer: Asked() if overridden(config, layer.name) else claimed),
        ("said by its config.json", lambda layer: by_config(config, layer.name)),
    )
    for question in _QUESTIONS:
        for who, side in sides:
            wrong = [layer for layer in layers if _differs(layer, question, side(layer))]
            if wrong and wrong[0].packed:
                want = _say(question.asked(side(wrong[0]), wrong[0]))
                what = question.text.format(_say(question.found(wrong[0].packed)))
                text = f"{some(wrong)}: {what}, {want} {who}; compress again, or correct the option"
                yield Finding("error", text)
                break


def _differs(layer: Layer, question: _Question, asked: Asked) -> bool:
    found = question.found(layer.packed) if layer.packed else None
    want = question.asked(asked, layer)
    return found is not None and want is not None and found != want


def _say(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _wider_than_claimed(body: Sequence[Layer], bits: float | None, *, leaves_out: bool) -> Findings:
    """More than ``1.6 bits + 1`` per weight: room for scales of small groups, not for the next wider type.

    Where the layout has codes of a known width they were compared already; what counts here is what lies
    beside them. Entropy-coded layers share a budget: their mean counts.
    """
    if bits is None or not body:
        return
    most = 1.6 * bits + 1
    unknown = [layer for layer in body if not layer.plain and not layer.packed]
    wide = [layer for layer in unknown if (layer.bits_per_weight or 0) > most]
    if wide:
        found = max(layer.bits_per_weight or 0 for layer in wide)
        yield Finding("error", f"{some(wide)}: {found:.1f} bits per weight are stored, {bits:g} claimed")
    twice = [layer for layer in body if layer.packed and any(_whole_float(layer))]
    if twice:
        yield Finding("error", f"{some(twice)}: stored twice, as codes and as floats; drop the floats")
    if wide or twice or leaves_out or all(layer.uncompressed for layer in body):
        return
    unsure = [layer for layer in body if not layer.packed or layer.packed.bits is None]
    mean = 8 * sum(layer.stored_bytes for layer in body) / sum(layer.module.parameters for layer in body)
    if unsure and mean > most:
        yield Finding("error", f"artifact: the body takes {mean:.1f} bits per weight, {bits:g} claimed")


def _whole_float(layer: Layer) -> Iterator[bool]:
    count = max((t.count for t in layer.module.tensors), default=0)
    for tensor in layer.codes:
        yield tensor.dtype in ("F16", "BF16", "F32", "F64") and tensor.count >= _ALL_ALIKE * count > 0


def _held_wider(layers: Sequence[Layer]) -> Findings:
    """Codes in more room than they need: the format's own doing, and no error."""
    wide = [layer for layer in layers if layer.packed and _wastes(layer)]
    if wide and wide[0].packed:
        layout = wide[0].packed
        what = f"{layout.format} holds each code of {layout.bits:g} bits in {layout.held_in_bits:g}"
        yield Finding("warning", f"{some(wide)}: {what}: the file is that much larger than the bits say")


def _wastes(layer: Layer) -> bool:
    layout = layer.packed
    if layout is None or layout.bits is None or layout.held_in_bits is None:
        return False
    return layout.held_in_bits > _ROOMY * layout.bits


def _unseen(body: Sequence[Layer]) -> Findings:
    """Known to be stored in some way of its own: bytes count, nothing else can be checked."""
    unseen = [layer for layer in body if not layer.plain and not (layer.layout and layer.layout.read)]
    if unseen:
        parts = sorted({tensor.name.rpartition(".")[2] for tensor in unseen[0].stored})
        what = f"cannot see inside ({', '.join(parts)}): its bytes are counted, its values are not compared"
        yield Finding("warning", f"{some(unseen)}: {what}")


def _dtypes(layers: Sequence[Layer]) -> list[str]:
    return sorted({tensor.dtype for layer in layers for tensor in layer.codes})
