#!/usr/bin/env bash
# A shell, or the command in the arguments, in the image that docker/build.sh made last (built now if there is
# none), with the GPUs if there are any. What is mounted, who runs and how the token comes in: docker/README.md.
#   ENGINE=podman   instead of docker
exec python3 "$(dirname "${BASH_SOURCE[0]}")/../local.py" --engine "${ENGINE:-docker}" --image latest -- "$@"
