#!/bin/sh
# The same as `run-transcription bake` and `make ami`, with the checkout's own environment where there is one.
set -eu
cd "$(dirname "$0")/.."
if [ -x .venv/bin/run-transcription ]; then
  exec .venv/bin/run-transcription bake "$@"
fi
command -v run-transcription >/dev/null || { echo "run-transcription is not installed: run make setup in $PWD" >&2; exit 1; }
exec run-transcription bake "$@"
