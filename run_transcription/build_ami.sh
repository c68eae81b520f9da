#!/bin/sh
# The same as `run-transcription bake` and `make ami`, with the checkout's own environment where there is one.
set -eu
script=$0
while [ -L "$script" ]; do # it may be called by a link from elsewhere
  target=$(readlink "$script")
  case $target in /*) script=$target ;; *) script=$(dirname "$script")/$target ;; esac
done
root=$(CDPATH='' cd -- "$(dirname "$script")/.." && pwd -P)
# paths on the command line are the caller's: it stays in its folder
if [ -x "$root/.venv/bin/run-transcription" ]; then
  exec "$root/.venv/bin/run-transcription" bake "$@"
fi
command -v run-transcription >/dev/null || { echo "run-transcription is not installed: run make setup in $root" >&2; exit 1; }
exec run-transcription bake "$@"
