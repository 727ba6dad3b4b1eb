#!/usr/bin/env bash
# Builds the image and tags it scorecard:latest. Arguments are passed on to `docker build`.
#   NO_CACHE=1    build every layer again
#   BASE=IMAGE    start from another base: Debian or Ubuntu with Python 3.11+, its venv module and pip
#   ENGINE=NAME   a command that takes docker's arguments (default: docker)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

args=(build --file docker/Dockerfile --tag scorecard:latest)
case "${NO_CACHE:-0}" in 0 | "") ;; *) args+=(--no-cache) ;; esac
if [ -n "${BASE:-}" ]; then args+=(--build-arg "BASE=$BASE"); fi
exec "${ENGINE:-docker}" "${args[@]}" "$@" .
