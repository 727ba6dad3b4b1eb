"""The case: in a frozen folder its settings stand here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

CASE: Any = SimpleNamespace()
