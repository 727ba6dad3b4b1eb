"""Text of strangers, made fit to be shown: one line, no control characters, not too long."""

from __future__ import annotations


def plain(text: object, most: int = 300) -> str:
    """Escape whatever a terminal could take for more than a letter."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return line if len(line) <= most else f"{line[:most]}…"
