#!/bin/bash
# Install the worker's own wheel, and show its modules where people look for them.
set -euo pipefail
: "${BROUGHT:?}"

python=/opt/transcribe/venv/bin/python
"$python" -m pip --disable-pip-version-check --no-input --quiet install --no-deps --no-index --no-compile \
  --force-reinstall "$BROUGHT"/run_transcription-*.whl
"$python" -m pip --disable-pip-version-check check >&2
package=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/run_transcription
ln -sfn "$package" /opt/transcribe/run_transcription
