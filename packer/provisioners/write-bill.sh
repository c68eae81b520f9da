#!/bin/bash
# Write down what is inside, and only then call the image complete. Reached only when everything before it went well.
set -euo pipefail
: "${BROUGHT:?}"

TRANSCRIBE_HOME=/opt/transcribe /opt/transcribe/venv/bin/python -B "$BROUGHT/provisioners/write_bill.py" "$BROUGHT"
chmod 0644 /opt/transcribe/manifest.json
rm -rf "$BROUGHT"
touch /opt/transcribe/.setup_complete
sync
