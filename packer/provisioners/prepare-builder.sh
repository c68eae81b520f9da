#!/bin/bash
# Make ready what the other scripts expect: a machine at rest, the worker's user and the folders.
set -euo pipefail
: "${BROUGHT:?}"

if command -v cloud-init >/dev/null; then
  cloud-init status --wait >/dev/null || echo "cloud-init did not end well; its log says why" >&2
fi

# an image that this one is made from was complete; this one is not, until it is proved
rm -f /opt/transcribe/.setup_complete /opt/transcribe/manifest.json

getent group transcribe >/dev/null || groupadd --system transcribe
getent passwd transcribe >/dev/null ||
  useradd --system --gid transcribe --home-dir /opt/transcribe/cache --no-create-home --shell /usr/sbin/nologin transcribe
for group in video render; do # they own the GPU's devices, where they exist
  if getent group "$group" >/dev/null; then usermod --append --groups "$group" transcribe; fi
done

install -d -m 0755 /opt/transcribe /opt/transcribe/models /opt/transcribe/gpu_state
install -d -m 0750 -o transcribe -g transcribe /opt/transcribe/cache
