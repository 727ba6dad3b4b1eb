"""Where a model lies in the models folder, and whether what lies there can be used as it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from scorecard.errors import SpecError, VerificationError
from scorecard.sources.contents import check_contents
from scorecard.sources.local import state
from scorecard.sources.manifest import (
    Manifest,
    canonical_sha256,
    hash_file,
    hash_folder,
    read_manifest,
    walk,
    write_manifest,
)
from scorecard.spec import ModelSpec


@dataclass(frozen=True)
class ModelFolder:
    """The paths of one model below ``models_dir``.

    ``path`` appears by one rename, complete. The manifest is kept outside of it, so that a model folder
    holds the model and nothing else. It is written before the rename: the folder is never there without
    it, and a manifest without its folder means nothing.
    """

    models_dir: Path
    model: ModelSpec

    def __post_init__(self) -> None:
        for part in (self.model.set, self.model.name, self.model.version):
            if not re.fullmatch(r"[A-Za-z0-9_][\w.+-]*", part, flags=re.ASCII):
                raise SpecError(f"{self.model.id}: '{part}' is no folder name; use letters, digits, . _ + -")

    @property
    def _leaf(self) -> str:
        return f"{self.model.name}@{self.model.version}"

    @property
    def path(self) -> Path:
        return self.models_dir / self.model.set / self._leaf

    @property
    def manifest(self) -> Path:
        return self.models_dir / ".manifests" / self.model.set / f"{self._leaf}.json"

    @property
    def lock(self) -> Path:
        return self.models_dir / ".partial" / self.model.set / f"{self._leaf}.lock"

    @property
    def partial(self) -> Path:
        """Unfinished work of this very request: one for another source never mixes with it."""
        return self.lock.with_name(f"{self._leaf}-{self.request[:12]}")

    @property
    def request(self) -> str:
        model = self.model
        asked = json.dumps([model.source, model.allow_pickle, model.trust_remote_code])
        return hashlib.sha256(asked.encode()).hexdigest()

    @property
    def promised(self) -> str | None:
        return self.model.sha256.lower() if self.model.sha256 else None

    def published(self, origin: Path | None, *, verify: bool) -> Manifest | None:
        """The manifest of a folder that answers the entry and is unchanged, else None.

        Sizes and times are compared; where only times differ (the folder was copied here), or with
        ``verify``, the files are hashed.
        """
        manifest = read_manifest(self.manifest)
        if manifest is None or manifest.request != self.request or not self._is_promised(manifest):
            return None
        return manifest if self._is_whole(manifest, verify) and self._is_current(manifest, origin) else None

    def _is_promised(self, manifest: Manifest) -> bool:
        return self.promised in (None, manifest.download_sha256 or manifest.sha256)

    def _is_whole(self, manifest: Manifest, verify: bool) -> bool:
        if not self.path.is_dir() or list(walk(self.path)) != sorted(manifest.files):
            return False
        for name, entry in manifest.files.items():
            stat = (self.path / name).lstat()
            if stat.st_size != entry.size_bytes:
                return False
            changed = verify or stat.st_mtime_ns != entry.mtime_ns
            if changed and hash_file(self.path / name).sha256 != entry.sha256:
                return False
        return True

    def _is_current(self, manifest: Manifest, origin: Path | None) -> bool:
        if origin is None or manifest.origin_files is None:
            return True
        if not origin.exists():  # it was moved; a pinned hash still proves what we hold
            return self.model.sha256 is not None
        return state(origin, self.model) == manifest.origin_files

    def adopt(self) -> Manifest | None:
        """Take a folder that was copied here by hand, if the entry's sha256 proves it.

        Raises VerificationError for a folder of unknown content: it is neither used nor deleted.
        """
        if not self.path.exists() or read_manifest(self.manifest) is not None:
            return None
        files = hash_folder(self.path)
        found = canonical_sha256(files)
        if found != self.promised:
            raise VerificationError(
                f"{self.model.id}: {self.path} was not fetched by this program and has sha256 {found}; "
                "write that into the entry if it is right, or remove the folder"
            )
        check_contents(self.path, files, self.model)
        manifest = Manifest(self.request, found, files)
        write_manifest(self.manifest, manifest)
        return manifest

    def publish(self, staged: Path, manifest: Manifest) -> None:
        """Give ``staged`` its final name; an outdated folder of that name goes away."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            outdated = self.partial / "outdated"
            shutil.rmtree(outdated, ignore_errors=True)
            self.path.rename(outdated)
        write_manifest(self.manifest, manifest)
        staged.rename(self.path)
        _sync(self.path)
        _sync(self.path.parent)
        for leftover in self.partial.parent.glob(f"{self._leaf}-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def refresh(self, manifest: Manifest) -> Manifest:
        """The manifest with the times that its files have now; they were found to be the same."""
        times = {name: (self.path / name).stat().st_mtime_ns for name in manifest.files}
        files = {name: replace(entry, mtime_ns=times[name]) for name, entry in manifest.files.items()}
        fresh = replace(manifest, files=files)
        if fresh != manifest:
            write_manifest(self.manifest, fresh)
        return fresh


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
