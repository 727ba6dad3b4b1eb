"""Entropy-coded weights of our own compressor: docs/rdq-format.md, read by the package ``rdq`` itself.

Codes have no place of their own in the file, so the whole matrix is decoded, one at a time, to look at some
rows of it: 3 bytes a weight while it lasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scorecard.audit.grid import Grid, Stored
from scorecard.audit.parts import Parts, metadata
from scorecard.errors import ArtifactError

if TYPE_CHECKING:
    from rdq.coded import CodedMatrix
    from rdq.container import Container
    from scorecard.audit.numbers import Ints
    from scorecard.safetensors_header import Tensor

SUFFIX = "_rdq"  # of the name of a tensor that is coded


def rdq(parts: Parts) -> Stored | None:
    """NAME_rdq uint8 [bytes]: ``weight = u(k) * step * row factor * column factor``, the index k of any
    length in the file: no width, no groups.

    Raises ArtifactError for a payload that is damaged.
    """
    found = [tensor for name, tensor in parts.tensors.items() if name.endswith(SUFFIX)]
    if len(found) != 1 or found[0].dtype != "U8" or "rdq" not in metadata(found[0].path):
        return None
    (tensor,) = found
    with _opened(tensor) as container:
        *outer, inner = container.shape(_name(tensor))
    if (math.prod(outer), inner) != parts.shape:
        return Stored("rdq")

    def read(rows: Ints) -> Grid:
        with _opened(tensor) as container:
            header = container.header(_name(tensor))
            matrix = container.read_matrix(_name(tensor))
        return _grid(matrix, *_places(rows, matrix.shape, header.stack, transposed=header.transposed))

    return Stored("rdq", symmetric=True, read=read, drifts=True)


def _name(tensor: Tensor) -> str:
    return tensor.name.removesuffix(SUFFIX)


@contextmanager
def _opened(tensor: Tensor) -> Iterator[Container]:
    """The tensor's file. What rdq has to say against it is said as ArtifactError."""
    from rdq.container import open_container
    from rdq.errors import RdqError

    try:
        with open_container(tensor.path) as container:
            yield container
    except RdqError as error:
        raise ArtifactError(str(error)) from None


def _places(rows: Ints, shape: tuple[int, int], stack: int, *, transposed: bool) -> tuple[Ints, Ints]:
    """Where the weights of some rows, as the model has them, are in the coded matrix: row and column of each,
    arrays that broadcast to [rows, width]."""
    import numpy as np

    count, columns = shape
    if not transposed:
        return rows[:, None], np.arange(columns)[None, :]
    each = count // stack
    block, column = np.divmod(rows, columns)
    return each * block[:, None] + np.arange(each), column[:, None]


def _grid(matrix: CodedMatrix, row: Ints, column: Ints) -> Grid:
    import numpy as np

    from rdq.coded import MAX_CODE, quantizers, reconstructions, scales

    points = reconstructions(matrix.centroids, matrix.states)
    levels = points[quantizers(matrix)[row, column], matrix.codes[row, column].astype(np.int64) + MAX_CODE]
    factors = np.float32(matrix.step) * scales(matrix.row_scale)
    scale = factors[row] * scales(matrix.column_scale)[column]
    return Grid(levels, scale, np.zeros_like(levels), np.unique(points))
