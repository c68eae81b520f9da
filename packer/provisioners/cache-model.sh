#!/bin/bash
# Fetch the model at its revision. The only script that gets the token; it never stands on a command line.
set -euo pipefail
: "${BROUGHT:?}" "${MODEL:?}"

export HF_HUB_CACHE=/opt/transcribe/models TRANSCRIBE_HOME=/opt/transcribe HF_HUB_DISABLE_TELEMETRY=1
# an image that this one is made from may hold another model
find /opt/transcribe/models -mindepth 1 -maxdepth 1 ! -name "models--${MODEL//\//--}" -exec rm -rf {} +
find /opt/transcribe/gpu_state -mindepth 1 -maxdepth 1 ! -name lost+found -exec rm -rf {} +
if [ -z "${HF_TOKEN:-}" ]; then unset HF_TOKEN; fi
/opt/transcribe/venv/bin/python -B "$BROUGHT/provisioners/cache_model.py"
