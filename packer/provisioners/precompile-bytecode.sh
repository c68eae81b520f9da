#!/bin/bash
# Compile what the worker may import: its user can't write beside the sources, and a first start has no time for it.
set -euo pipefail

packages=$(/opt/transcribe/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# transformers has hundreds of models, of which a worker imports one, and what all of them share
others='/tests?/|/transformers/models/(?!auto/|encoder_decoder/|whisper/|__init__)'
# -q -q: some packages carry files for other versions of Python, which nobody imports
/opt/transcribe/venv/bin/python -m compileall -q -q -j 0 -x "$others" "$packages" || true
[ -n "$(find "$packages/run_transcription/__pycache__" -name 'worker.*.pyc')" ]
