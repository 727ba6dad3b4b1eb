"""The layers of a model as a compressor sees them, and the checks of options against them that many share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scorecard.errors import SpecError
from scorecard.spec import Case

Size = tuple[int, int]  # (out_features, in_features)


@dataclass(frozen=True)
class Shapes:
    """The Linear layers of a model by name: those of the body, and the output head (none where it is none).

    ``tied`` says that the head and the input embeddings are one tensor.
    """

    body: Mapping[str, Size]
    lm_head: Mapping[str, Size]
    tied: bool

    def layers(self, *, lm_head: bool) -> dict[str, Size]:
        """The layers that are compressed, with or without the head."""
        return {**self.body, **(self.lm_head if lm_head else {})}


def check_untied(case: Case, shapes: Shapes, *, lm_head: bool) -> None:
    """Raises SpecError for a head that would no longer be the embeddings."""
    if lm_head and shapes.tied:
        where = f"configs.{case.config.name}.lm_head"
        raise SpecError(f"{where}: tied to the embeddings of this model; write lm_head: false")


def check_group_size(case: Case, layers: Mapping[str, Size], group_size: int | None) -> None:
    """Raises SpecError naming the first layer whose input width is no multiple of the group size.

    -1, 0 and ``None`` stand for one group in each row.
    """
    if group_size in (-1, 0, None):
        return
    assert group_size is not None
    for name, (_, width) in layers.items():
        if group_size < 1 or width % group_size:
            raise SpecError(
                f"configs.{case.config.name}.group_size: {group_size} does not divide the {width} input "
                f"features of {name}; write a divisor of {width} or -1"
            )


def check_multiples(case: Case, layers: Mapping[str, Size], multiples: Size, who: str, instead: str) -> None:
    """Raises SpecError naming the first layer that is no multiple of ``multiples`` (out x in)."""
    for name, (out, width) in layers.items():
        if out % multiples[0] or width % multiples[1]:
            raise SpecError(
                f"configs.{case.config.name}.runner: {name} is {out} x {width} (out x in), which {who} "
                f"cannot store (multiples of {multiples[0]} x {multiples[1]}); {instead}"
            )
