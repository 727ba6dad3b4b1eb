"""Which files belong to a model, and whether they are what their names say: safetensors, never a pickle.

Loading a pickle runs whatever code its author put into it; the header of a safetensors file is JSON
(https://github.com/huggingface/safetensors, "Format"). Model cards and licences are left out: they
change without the model changing, and must not change its hash.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from scorecard.errors import VerificationError
from scorecard.spec import ModelSpec

WEIGHTS = ("*.safetensors",)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
# *.model: sentencepiece; *.txt: merges and vocabularies; *.jinja: chat templates
SIDE_FILES = ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja")
CODE = ("*.py",)

_SECOND_COPIES = ("original", "onnx", "openvino", "coreml", "metal", "checkpoint-*")
_DOCUMENTS = ("readme*", "license*", "licence*", "notice*", "use_policy*", "requirements*")
_NOT_NEEDED = ("training_args.bin", "optimizer*", "scheduler*", "rng_state*", "consolidated*")
_PICKLE_INDEX = tuple(f"{p}.index.json" for p in PICKLES)

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_GIT_LFS = b"version https://git-lfs"


def allowed(model: ModelSpec, *, pickles: bool = False) -> tuple[str, ...]:
    """Patterns (fnmatch; ``*`` crosses folders) of the files to take."""
    code = CODE if model.trust_remote_code else ()
    return WEIGHTS + SIDE_FILES + code + (PICKLES if pickles else ())


def ignored(*, pickles: bool = False) -> tuple[str, ...]:
    """Patterns of what is left out even where ``allowed`` takes it."""
    names = _NOT_NEEDED + (() if pickles else _PICKLE_INDEX) + (".*",)
    names += tuple(write(n) for n in _DOCUMENTS for write in (str.lower, str.upper, str.capitalize))
    folders = (*_SECOND_COPIES, ".*", "__*")
    return (*names, *(f"*/{n}" for n in names), *(f"{f}/*" for f in folders), *(f"*/{f}/*" for f in folders))


def _matching(names: Iterable[str], model: ModelSpec, *, pickles: bool) -> list[str]:
    take, leave = allowed(model, pickles=pickles), ignored(pickles=pickles)
    return [n for n in names if _matches(n, take) and not _matches(n, leave)]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def select(names: Iterable[str], model: ModelSpec) -> list[str]:
    """The files of ``names`` that make up the model, sorted.

    Pickles are taken only where there are no safetensors and the entry allows them.
    Raises VerificationError where there are no weights, or only pickles that are not allowed.
    """
    names = sorted(names)
    chosen = _matching(names, model, pickles=False)
    if not any(_matches(n, WEIGHTS) for n in chosen):
        chosen = _matching(names, model, pickles=True)
        found = [n for n in chosen if _matches(n, PICKLES)]
        if not found:
            raise VerificationError(
                f"{model.id}: the source holds no weights; it needs at least one *.safetensors file"
            )
        if not model.allow_pickle:
            raise VerificationError(
                f"{model.id}: has only pickles ({found[0]}), which can run code; use safetensors, "
                "or, if you trust the author, write 'allow_pickle: true'"
            )
    for name in chosen:
        check_name(name, model.id)
    return chosen


def check_name(name: str, where: str) -> None:
    """Raises VerificationError unless ``name`` is a plain relative path that stays in its folder."""
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and ":" not in name and str(path) == name
    if not plain or path.is_absolute() or ".." in path.parts or name in ("", "."):
        raise VerificationError(f"{where}: unsafe file name {name!r}; rename it at the source")


def check_contents(folder: Path, names: Iterable[str], model: ModelSpec) -> None:
    """Raises VerificationError for a broken safetensors file, a hidden pickle or a missing shard."""
    for name in names:
        where = f"{model.id}: {name}"
        if name.endswith(".safetensors"):
            check_safetensors(folder / name, where)
        elif name.endswith(".safetensors.index.json"):
            _check_shards(folder / name, where)
        elif not model.allow_pickle and _is_pickle(folder / name):
            raise VerificationError(f"{where}: is a pickle, whatever its name; remove it at the source")


def check_safetensors(path: Path, where: str) -> None:
    """Compare what the header promises with the size of the file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if head and _GIT_LFS.startswith(head):
            raise VerificationError(f"{where}: is a git-lfs pointer; run 'git lfs pull' first")
        if len(head) < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise VerificationError(f"{where}: is not a safetensors file, or is cut short; fetch it again")
        data_bytes = _data_bytes(stream.read(length), where)
    expected = 8 + length + data_bytes
    if size != expected:
        raise VerificationError(
            f"{where}: has {size} bytes, its header promises {expected}; it is cut short: fetch it again"
        )


def _data_bytes(raw: bytes, where: str) -> int:
    try:
        header: dict[str, Any] = json.loads(raw)
        spans = sorted(tuple(t["data_offsets"]) for n, t in header.items() if n != "__metadata__")
        starts = [0, *(end for _, end in spans)]
        contiguous = all(begin == at <= end for (begin, end), at in zip(spans, starts, strict=False))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        contiguous = False
    if not contiguous:
        raise VerificationError(f"{where}: its header is not that of a safetensors file; convert it again")
    return int(starts[-1])


def _check_shards(path: Path, where: str) -> None:
    try:
        shards = {str(name) for name in json.loads(path.read_bytes())["weight_map"].values()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise VerificationError(f"{where}: is not an index of shards; export the model again") from None
    absent = sorted(n for n in shards if not (path.parent / n).is_file())
    if absent:
        raise VerificationError(
            f"{where}: names {len(absent)} files that are not there ({absent[0]}); complete the source"
        )


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(4)
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return True
    if head != b"PK\3\4":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(n.rpartition("/")[2] == "data.pkl" for n in archive.namelist())
    except zipfile.BadZipFile:
        return True
