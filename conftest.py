"""The scorecard is a pytest plugin; this makes it known to every run in this checkout."""

pytest_plugins = ["scorecard.plugin"]
