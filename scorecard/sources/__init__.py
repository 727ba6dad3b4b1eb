"""A model reference becomes a folder of verified local files: ``fetch(model, models_dir)``.

    errors, spec -> manifest | contents | transfer | placement -> archive
                 -> local | hub | s3 | https (one file per scheme) -> folder -> fetching

A scheme fills a hidden folder; what follows is the same for all of them: the kinds of files are
checked, every file is hashed, and the folder appears under its final name by one rename.
"""

from scorecard.sources.fetching import Fetched, default_models_dir, fetch
from scorecard.sources.manifest import FileEntry, manifest_sha256

__all__ = ["Fetched", "FileEntry", "default_models_dir", "fetch", "manifest_sha256"]
