#!/bin/bash
# Copy rootfs/ into place, name the model in the worker's environment, and let the units start at boot.
set -euo pipefail
: "${BROUGHT:?}" "${MODEL:?}"

cp -R --no-preserve=ownership,timestamps "$BROUGHT/rootfs/." /
chown root:transcribe /etc/transcribe.env
chmod 0640 /etc/transcribe.env
chmod 0644 /etc/systemd/system/transcribe-*.service
{
  echo "TRANSCRIBE_MODEL=$MODEL"
  if [ -n "${MODEL_REVISION:-}" ]; then echo "TRANSCRIBE_REVISION=$MODEL_REVISION"; fi
} >>/etc/transcribe.env
systemctl --root=/ enable transcribe-prefetch.service transcribe-worker.service
systemd-analyze verify --man=no /etc/systemd/system/transcribe-prefetch.service /etc/systemd/system/transcribe-worker.service
