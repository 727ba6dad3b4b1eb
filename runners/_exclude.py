"""The layers of a model that a config compresses: all of the body but those it excludes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from runners._shapes import Shapes, Size
from scorecard.errors import SpecError
from scorecard.spec import Case

DOC = "layers to leave as they are: their names, with * for any text"


def chosen(case: Case, shapes: Shapes, *, lm_head: bool, exclude: Sequence[str] | None) -> dict[str, Size]:
    """Name -> size of the layers to compress. Raises SpecError for a pattern that no layer matches."""
    layers = shapes.layers(lm_head=lm_head)
    patterns = exclude or ()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            where, example = f"configs.{case.config.name}.exclude", next(iter(layers), "*")
            raise SpecError(f"{where}: no layer is called '{pattern}'; write a name such as {example}")
    return {n: size for n, size in layers.items() if not any(fnmatchcase(n, p) for p in patterns)}
