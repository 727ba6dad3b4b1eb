"""Whether the decoded layers are those of the original, and whether calibration left a trace in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from scorecard.audit.asked import Methods
from scorecard.audit.finding import Finding, Findings, some
from scorecard.audit.layer import Layer
from scorecard.audit.look import Look

# Measured (docs/measuring.md): in a rounded layer at most 0.0001 of the codes are clearly not what rounding
# gives (0.0046 where scales are stored roughly), in a layer after GPTQ 0.03 or more, after auto-round 0.019.
CALIBRATED = 0.005
MOST_ERROR = 1.0  # a layer of zeros has 1, another layer in its place about 1.4; 2 bits rounded 0.9 at most
MOST_ERROR_UP_TO_SCALES = 0.85  # another layer in its place has 0.96 and more
_STANDS_OUT, _NOTICEABLE = 4, 0.2
# Of layouts whose errors drift, and of GPTQ where its error is larger. Measured with rdq at 2 to 4 bits:
# cosines of 0.37 and more, gains of 0.61 to 1.0; with GPTQ at 2 bits errors of up to 1.03, cosines of 0.66
# and more, gains of 0.78 to 1.02. Another layer in its place has a cosine of 0.08 at most.
LEAST_COSINE, MOST_GAIN = 0.15, 1.5


def check(layers: Sequence[Layer], methods: Methods) -> Findings:
    seen = [layer for layer in layers if layer.look and layer.packed]
    if methods.rotates:
        if seen:
            what = "its method rotates weights, so they are not compared with the original"
            yield Finding("warning", f"{some(seen)}: {what}")
        return
    yield from _errors(layers, feeds_back=methods.beyond_rounding == "GPTQ")
    body = [layer for layer in seen if layer.module.kind == "linear"]
    if methods.beyond_rounding and body:
        yield from _calibration(body, methods.beyond_rounding)


def _errors(layers: Sequence[Layer], *, feeds_back: bool) -> Findings:
    errors = {layer.name: layer.look.relative_error for layer in layers if layer.look}
    wrong = [layer for layer in layers if layer.look and _is_other(layer, layer.look, feeds_back)]
    if wrong:
        worst = max(errors[layer.name] for layer in wrong)
        what = f"decodes to other weights than the original's (relative error {worst:.2f})"
        yield Finding("error", f"{some(wrong)}: {what}; layers are swapped, permuted or mis-scaled")
    usual = _usual(layers, errors)
    odd = [
        layer
        for layer in layers
        if layer.look
        and layer not in wrong
        and not _drifts(layer)
        and errors[layer.name] > max(_NOTICEABLE, _STANDS_OUT * usual.get(_alike(layer), 1))
    ]
    if odd:
        what = (
            f"relative error {errors[odd[0].name]:.2f}, usual for such layers is {usual[_alike(odd[0])]:.2f}"
        )
        yield Finding("warning", f"{some(odd)}: {what}")


def _is_other(layer: Layer, look: Look, feeds_back: bool) -> bool:
    """Whether the weights are not the original's with the errors of a compression."""
    elsewhere = look.gain > MOST_GAIN or (look.cosine < LEAST_COSINE and look.zeros < 1)
    if _drifts(layer):
        return elsewhere
    if look.rescaled:
        return look.relative_error > MOST_ERROR_UP_TO_SCALES
    return look.relative_error > MOST_ERROR and (elsewhere or not feeds_back)


def _drifts(layer: Layer) -> bool:
    return layer.packed is not None and layer.packed.drifts


def _alike(layer: Layer) -> tuple[str, float | None, str]:
    layout = layer.layout
    return (layer.module.kind, layout.bits, layout.format) if layout else (layer.module.kind, None, "")


def _usual(
    layers: Sequence[Layer], errors: Mapping[str, float]
) -> dict[tuple[str, float | None, str], float]:
    groups: dict[tuple[str, float | None, str], list[float]] = {}
    for layer in layers:
        if layer.look and layer.packed:
            groups.setdefault(_alike(layer), []).append(errors[layer.name])
    return {key: median(values) for key, values in groups.items() if len(values) > 2}


def _calibration(body: Sequence[Layer], method: str) -> Findings:
    shares = {layer.name: layer.look.rounding_difference or 0.0 for layer in body if layer.look}
    rounded = [layer for layer in body if shares[layer.name] < CALIBRATED]
    if len(rounded) == len(body):
        what = f"its codes are those of plain rounding (at most {max(shares.values()):.2%} differ)"
        instead = f"{method} changed nothing; check that it sees the calibration text and these layers"
        yield Finding("error", f"{some(body)}: {what}: {instead}")
    elif rounded and method == "GPTQ":
        what = "its codes are those of plain rounding, unlike those of other layers"
        yield Finding("warning", f"{some(rounded)}: {what}")
