#!/bin/bash
# Make the model's state with preload_gpu_model(), which reads it back and lets it hear the golden clip.
set -euo pipefail
: "${MODEL:?}" "${DTYPE:?}"

# offline from here on: what the image lacks must not come from the network
export HF_HUB_OFFLINE=1 TRANSCRIBE_HOME=/opt/transcribe PYTHONDONTWRITEBYTECODE=1
/opt/transcribe/venv/bin/run-transcription preload --model "$MODEL" \
  ${MODEL_REVISION:+--revision "$MODEL_REVISION"} --dtype "$DTYPE"
