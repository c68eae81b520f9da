#!/bin/sh
# The same as `run-transcription bake` and `make ami`, with the checkout's own environment where there is one.
set -eu
cd "$(dirname "$0")/.."
if [ -x .venv/bin/run-transcription ]; then
  exec .venv/bin/run-transcription bake "$@"
fi
exec run-transcription bake "$@"
