#!/usr/bin/env bash
# Builds the image. Arguments are passed on to `docker build`.
#   TAG=NAME              its name (default: scorecard:latest)
#   NO_CACHE=1            build every layer again
#   CPU=1                 start from a plain Python image instead of CUDA's
#   BASE=IMAGE            start from another one: Debian or Ubuntu, whose Python, if it has one, is 3.11 or newer
#   ENGINE=NAME           a command that takes docker's arguments (default: docker)
#   PIP_CONFIG_FILE=FILE  pip's settings, given to the steps that run pip as a secret: may hold passwords
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
plain=python:3.11-slim-bookworm

refuse() {
    printf 'build.sh: %s\n' "$1" >&2
    exit 4
}

# What docker keeps in the image's history, and `ps` shows to everybody. The value is not repeated here.
before=
shopt -s nocasematch
for word in "$@"; do
    if [ "$before" = --build-arg ] || [[ $word == --build-arg=* ]]; then
        name=${word#--build-arg=}
        name=${name%%=*}
        if [[ $name =~ token|secret|passw|key ]]; then
            refuse "--build-arg $name: stays in the image; the build needs no token, running takes one from HF_TOKEN"
        elif [[ $word =~ ://[^/]*@ ]]; then
            refuse "--build-arg $name: an address with a password stays in the image; set PIP_CONFIG_FILE instead"
        fi
    fi
    before=$word
done
shopt -u nocasematch

args=(build --file docker/Dockerfile --tag "${TAG:-scorecard:latest}")
case "${NO_CACHE:-0}" in 0 | "") ;; *) args+=(--no-cache) ;; esac
case "${CPU:-0}" in 0 | "") ;; *) BASE=${BASE:-$plain} ;; esac
if [ -n "${BASE:-}" ]; then args+=(--build-arg "BASE=$BASE"); fi
if [ -f "${PIP_CONFIG_FILE:-}" ]; then args+=(--secret "id=pip_conf,src=$PIP_CONFIG_FILE"); fi
export DOCKER_BUILDKIT=1 # before Docker 23 the default builder has no secrets
exec "${ENGINE:-docker}" "${args[@]}" "$@" .
