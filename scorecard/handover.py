"""``python3 -m scorecard`` and ``python3 runners/cli.py`` work with any Python: where packages are missing,
the same command is handed to ``local.py``, which has them or sets them up. Standard library only."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

LOCAL = Path(__file__).resolve().parents[1] / "local.py"


def hand_over(command: Sequence[str], needed: str = "lm_eval") -> None:
    """Replace this process by ``local.py python COMMAND`` if this Python lacks the package ``needed``."""
    if importlib.util.find_spec(needed) is None and LOCAL.is_file():
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, str(LOCAL), "python", *command])
