"""Data sets of the Hugging Face hub, fetched by ``datasets`` or taken from its cache."""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runners._documents import Row, table
from scorecard.calibration_sets import HubSet
from scorecard.errors import DataUnavailable
from scorecard.spec import CalibrationSpec


def fetch(chosen: HubSet, spec: CalibrationSpec, *, offline: bool) -> tuple[Iterator[Row], str]:
    """The records of a data set of the hub in the order of the seed, and its commit.

    With ``offline``, or ``HF_HUB_OFFLINE=1`` in the environment, they come from the cache. A token is taken
    from the environment (``HF_TOKEN``) by the library. Raises DataUnavailable.
    """
    import datasets

    if offline:
        _go_offline()
    read = _hub_file if chosen.file else _hub_split
    try:
        return read(chosen, spec)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".;")
        where = f"calibration.data: {chosen.repository} cannot be had: {said}"
        if datasets.config.HF_HUB_OFFLINE:
            cure = f"run once with the network on, or copy it into {datasets.config.HF_DATASETS_CACHE}"
        else:
            cure = "check its name, config, split and revision, the network and your token"
        raise DataUnavailable(f"{where}; {cure}") from None


def _go_offline() -> None:
    """Switch the hub off, also for libraries that read the environment when they were imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            vars(sys.modules[name])["HF_HUB_OFFLINE"] = True


def _hub_split(chosen: HubSet, spec: CalibrationSpec) -> tuple[Iterator[Row], str]:
    import datasets

    builder = datasets.load_dataset_builder(chosen.repository, chosen.config, revision=spec.revision)
    commit = str(builder.hash)
    # The cache gives whatever commit it has.
    if spec.revision and re.fullmatch("[0-9a-f]{40}", spec.revision) and commit != spec.revision:
        raise ValueError(f"commit {spec.revision} is not in the cache, {commit} is")
    builder.download_and_prepare()
    found = builder.as_dataset(split=chosen.split)
    pictures = [name for name, kind in found.features.items() if isinstance(kind, datasets.Image)]
    for name in pictures:
        found = found.cast_column(name, datasets.Image(decode=False))
    return in_order(found, spec), commit


def in_order(found: Any, spec: CalibrationSpec) -> Iterator[Row]:
    """The items of a sequence in the order of the seed; those that nobody asks for are not read."""
    order = list(range(len(found)))
    if spec.shuffle:
        random.Random(spec.seed).shuffle(order)
    return (found[i] for i in order)


def _hub_file(chosen: HubSet, spec: CalibrationSpec) -> tuple[Iterator[Row], str]:
    from huggingface_hub import hf_hub_download

    download: Callable[..., str] = hf_hub_download
    path = Path(download(chosen.repository, str(chosen.file), repo_type="dataset", revision=spec.revision))
    return in_order(list(table(path)), spec), path.parts[path.parts.index("snapshots") + 1]
