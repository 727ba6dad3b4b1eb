"""What a manifest says of its packages, tasks, original and sums, beside what is seen without its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scorecard.claims import Verdict
from scorecard.documents import locate
from scorecard.errors import SourceError
from scorecard.locks import Lock, normalised
from scorecard.manifest import FileEntry, Manifest
from scorecard.plain import plain
from scorecard.store import sha256_file

EMBEDDED = "embedded:tiny-llama"
_LISTED = 20


def packages(manifest: Manifest, lock: Lock) -> Verdict:
    """Whether the pins that are installed are the versions that the manifest names."""
    named = {normalised(name): version.partition("+")[0] for name, version in manifest.packages.items()}
    named = named or dict(lock.pins)
    if "lm-eval" in lock.pins and manifest.lm_eval != named.get("lm-eval", manifest.lm_eval):
        named["lm-eval"] = manifest.lm_eval
    faults = [
        f"{plain(name, 80)}: claimed {plain(named.get(name, 'no version'), 40)}, pinned {plain(version, 40)}"
        for name, version in sorted(lock.pins.items())
        if named.get(name) != version
    ]
    if faults:
        return Verdict("packages", False, _first(faults), tuple(faults[1:_LISTED]))
    bare = sorted(locked.partition("==")[0] for locked in lock.plain.splitlines())
    without = f", {len(bare)} of them without a hash ({plain(', '.join(bare), 80)})" if bare else ""
    return Verdict("packages", True, f"{len(lock.pins)} pins{without}")


def sums(manifest: Manifest) -> Verdict | None:
    """Whether the sums are those of the files that the manifest lists; ``None`` where it has none."""
    code, model = manifest.code_bytes, manifest.model_bytes
    own = {"code_bytes": code, "model_bytes": model, "total_bytes": code + model}
    faults = [
        f"{plain(name, 40)}: claimed {value:,}, its files have {own.get(name, 0):,}"
        for name, value in manifest.sums.items()
        if value != own.get(name)
    ]
    if faults:
        return Verdict("sums", False, _first(faults), tuple(faults[1:]))
    text = f"code {code:,} + model {model:,} = {code + model:,} bytes"
    return Verdict("sums", True, text) if manifest.sums else None


def tasks(manifest: Manifest, here: Mapping[str, Any]) -> Verdict:
    """Whether the tasks are those of the claim; ``here`` is what scorecard.tasks.resolve says of them.

    Other settings under the same lm-eval are a false claim; another lm-eval leaves it open.
    """
    same = here["lm_eval_version"] == manifest.lm_eval
    told = [] if same else [f"lm-eval: claimed {plain(manifest.lm_eval, 40)}, here {here['lm_eval_version']}"]
    for name, claim in manifest.claims.tasks.items():
        mine = here["tasks"].get(name, {})
        pairs = {
            "version": (claim.version, mine.get("version")),
            "settings": (claim.config_sha256, mine.get("config_sha256")),
            "chance": (claim.chance, mine.get("chance")),
        }
        told += [
            f"task {name}: {what}: claimed {plain(claimed, 16)}, here {plain(own, 16)}"
            for what, (claimed, own) in pairs.items()
            if claimed is not None and own is not None and str(claimed) != str(own)
        ]
    if told:
        return Verdict("tasks", False if same else None, _first(told), tuple(told[1:_LISTED]))
    return Verdict("tasks", True, f"{len(manifest.claims.tasks)}, of lm-eval {manifest.lm_eval}")


def other_documents(manifest: Manifest, here: Mapping[str, Any]) -> str | None:
    """The first task whose documents are not those of the claim, in words."""
    for name, claim in manifest.claims.tasks.items():
        own = here["tasks"].get(name, {}).get("documents_sha256")
        if claim.documents_sha256 is not None and own is not None and claim.documents_sha256 != own:
            return f"task {name}: other documents than those of the claim"
    return None


def original_folder(manifest: Manifest, given: Path | None) -> Path:
    """Never a path that the manifest names: it would say what of this machine to show to its code.

    Raises SourceError where the original is not at hand.
    """
    source = manifest.model.get("source")
    if given is not None:
        if not given.is_dir():
            raise SourceError(f"--original {given}: there is no such folder")
        return given.resolve()
    if source == EMBEDDED:
        return locate(EMBEDDED)
    raise SourceError("the original model is not at hand; give its folder with --original")


def original(manifest: Manifest, given: Path | None) -> Verdict | None:
    """Whether the original is the one that the manifest names; ``None`` where it is not at hand."""
    try:
        folder = original_folder(manifest, given)
    except SourceError:
        return None
    wrong = differing(folder, manifest.original)
    if wrong or not manifest.original:
        what = f"{plain(wrong[0])} is not the one that it names" if wrong else "it names no file"
        return Verdict("original", False, what, tuple(map(plain, wrong[1:_LISTED])))
    return Verdict("original", True, f"{len(manifest.original)} files with the hashes of the manifest")


def differing(folder: Path, entries: Mapping[str, FileEntry]) -> list[str]:
    """Files that ``entries`` name and ``folder`` has not, or has otherwise."""
    return [
        name
        for name, entry in entries.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != entry.sha256
    ]


def _first(faults: list[str]) -> str:
    return faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")
