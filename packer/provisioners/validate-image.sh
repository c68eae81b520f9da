#!/bin/bash
# Prove that this image transcribes, is what its locks say, and keeps no secret. Whatever is wrong ends the bake.
set -euo pipefail
: "${BROUGHT:?}" "${MODEL:?}"

scratch=$(mktemp -d /var/tmp/validate.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
export HOME=$scratch TMPDIR=$scratch HF_HUB_OFFLINE=1 TRANSCRIBE_HOME=/opt/transcribe PYTHONDONTWRITEBYTECODE=1
bin=/opt/transcribe/venv/bin

"$bin/python" "$BROUGHT/provisioners/check_image.py" "$BROUGHT"
# every way to load the model hears the same in the golden clip, and the state is the one that wins
"$bin/run-transcription" load --require gpu_state --json --model "$MODEL" \
  ${MODEL_REVISION:+--revision "$MODEL_REVISION"} >"$scratch/load.json"
"$bin/python" "$BROUGHT/provisioners/check_loading.py" "$scratch/load.json"
# and a recording goes all the way, in a process of its own, with nothing given but what the image brings
(cd /opt/transcribe/run_transcription &&
  "$bin/python" fast_transcribe.py demo/recordings/call-signs.mp3 -o "$scratch/out" -f json)
"$bin/python" "$BROUGHT/provisioners/check_result.py" "$scratch"/out/*.json
cp "$scratch/load.json" "$BROUGHT/load.json"
