"""rdq: rate–distortion quantized weights, entropy-coded: the fewest bytes on disk for the same behaviour.

The package stands by itself. It needs numpy, torch, safetensors and transformers, and numba for speed; to
import it loads none of them. The file format is described in `docs/rdq-format.md`.

`import rdq` also lets `AutoModelForCausalLM.from_pretrained` read compressed folders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rdq.errors import RdqError
from rdq.late import when_imported

if TYPE_CHECKING:
    from rdq.modeling import load

__all__ = ["RdqError", "load"]


def _register() -> None:
    try:
        from rdq.plugin import register
    except ImportError:  # a transformers before 5, which cannot be taught: it says so where it meets a folder
        return
    register()


when_imported("transformers.modeling_utils", _register)


def __getattr__(name: str) -> Any:
    """`rdq.load`, whose module is imported when it is first asked for."""
    if name == "load":
        from rdq.modeling import load

        return load
    raise AttributeError(f"module 'rdq' has no attribute {name!r}")
