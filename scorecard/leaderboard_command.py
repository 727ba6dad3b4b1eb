"""``scorecard leaderboard FOLDER``: verify all zips of a folder, and write one table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scorecard import leaderboard, leaderboard_html
from scorecard.store import write_atomic_text
from scorecard.verify_command import add_common_arguments, verify_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds the zips")
    parser.add_argument(
        "--output", type=Path, default=Path("leaderboard"), metavar="FOLDER", help="[%(default)s]"
    )
    parser.add_argument("--title", default="Leaderboard", help="of the page [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print leaderboard.json instead of the table")
    add_common_arguments(parser)


def main(options: argparse.Namespace) -> int:
    """Write leaderboard.html and leaderboard.json; 0 whatever the verdicts are. Raises ScorecardError."""
    entries = leaderboard.leaderboard(options.folder, verify_options(options))
    as_json = json.dumps(leaderboard.as_json(entries), indent=1, ensure_ascii=False)
    options.output.mkdir(parents=True, exist_ok=True)
    page = leaderboard_html.render(entries, options.title)
    write_atomic_text(options.output / "leaderboard.html", page)
    write_atomic_text(options.output / "leaderboard.json", f"{as_json}\n")
    print(as_json if options.json else leaderboard.text(entries))
    return 0
