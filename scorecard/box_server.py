"""The server of ``scorecard.lm_server`` for a submission, inside its box: nothing else of us is there.

Two more methods:

    load_user   folder, arguments, seed   the facts about ``UserLM(**arguments)`` of FOLDER/user.py
    documents   path, most                columns of a documents.parquet, at most ``most`` rows
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scorecard.lm_server import FACTS, Server, main
from scorecard.user_class import taken

COLUMNS = ("task", "doc", "metric", "value")


class BoxServer(Server):
    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(send)
        for name in ("load", "heldout"):
            del self._methods[name]
        self._methods |= {"load_user": self.load_user, "documents": self.documents}

    def load_user(self, folder: str, arguments: dict[str, Any], seed: int) -> dict[str, Any]:
        """Import user.py from its folder and make its model."""
        sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location("user", Path(folder, "user.py"))
        if spec is None or spec.loader is None:
            raise ImportError("user.py cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules["user"] = module
        spec.loader.exec_module(module)
        found = getattr(module, "UserLM", None) or _registered()
        if found is None:
            raise ImportError("user.py has no class UserLM and registers no lm-eval model 'user'")
        lm = found(**taken(found, arguments))
        _seed(seed)
        self._lm = lm
        return {name: value for name in FACTS if (value := _fact(lm, name)) is not None}

    def documents(self, path: str, most: int) -> dict[str, list[Any]]:
        """Read here, because a reader of a binary format is code that a file can attack."""
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        if file.metadata.num_rows > most:
            raise ValueError(f"more than {most:,} rows")
        table = file.read(columns=list(COLUMNS))
        return {name: table.column(name).to_pylist() for name in COLUMNS}


def _fact(lm: Any, name: str) -> Any:
    """``None`` where the model has it not; lm-eval's base class raises for what only chats need."""
    try:
        return getattr(lm, name, None)
    except NotImplementedError:
        return None


def _registered() -> Any:
    """What user.py registered with lm-eval."""
    registry = sys.modules.get("lm_eval.api.registry")
    return registry.model_registry.get("user", None) if registry else None


def _seed(value: int) -> None:
    """The generators of Python, and of numpy and torch where user.py uses them."""
    random.seed(value)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(value)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(value)


if __name__ == "__main__":
    sys.exit(main(BoxServer))
