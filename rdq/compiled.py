"""numba where it is installed: the same functions compiled, else as they are.

`RDQ_NUMBA=0` in the environment turns it off, which the tests use to show that both ways give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

try:
    if os.environ.get("RDQ_NUMBA") == "0":
        raise ImportError("turned off by RDQ_NUMBA")
    import numba
except ImportError:
    numba = None

COMPILED: bool = numba is not None
"""Whether functions are compiled; the numpy kernels are used if they are not."""


def compiled(function: F) -> F:
    """The function, compiled at its first call, without the interpreter's lock, and kept on disk.

    No fast-math: sums and products keep their order and rounding.
    """
    if numba is None:
        return function
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # nowhere to keep it: neither beside the file nor in the user's cache folder
        return numba.njit(**options)(function)  # type: ignore[no-any-return]
