"""rdq: rate–distortion quantized weights, entropy-coded: the fewest bytes on disk for the same behaviour.

The package stands by itself. It needs numpy, torch, safetensors and transformers, and numba for speed; to
import it loads none of them. The file format is described in `docs/rdq-format.md`.
"""

from rdq.errors import RdqError

__all__ = ["RdqError"]
