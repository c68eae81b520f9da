#!/bin/bash
# Install everything that the worker imports, each file by its hash; torch from its own lock, or from a folder.
set -euo pipefail
: "${BROUGHT:?}" "${TORCH_SOURCE:?}"

venv=/opt/transcribe/venv
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input --quiet "$@"; }

# what a kept installation was made from: the same again is left as it is
key=$({ cat "$BROUGHT/worker.lock" "$BROUGHT/torch-cuda.lock"; echo "$TORCH_SOURCE"; } | sha256sum | cut -d' ' -f1)
if [ "$(cat /opt/transcribe/.dependencies 2>/dev/null || true)" = "$key" ]; then
  echo "the locks are those of the image that this one is made from: its packages are kept"
  exit 0
fi
rm -f /opt/transcribe/.dependencies
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

pip install --no-deps --no-compile --require-hashes --only-binary :all: -r "$BROUGHT/worker.lock"
if [ "$TORCH_SOURCE" = lock ]; then
  rm -f "$packages/torch-source.pth"
  pip install --no-deps --no-compile --require-hashes --only-binary :all: -r "$BROUGHT/torch-cuda.lock"
else
  [ -d "$TORCH_SOURCE/torch" ] || { echo "there is no torch in $TORCH_SOURCE" >&2; exit 1; }
  echo "$TORCH_SOURCE" >"$packages/torch-source.pth"
fi
echo "$key" >/opt/transcribe/.dependencies
