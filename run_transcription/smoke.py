"""Try an image: an instance of it loads the model as a worker would, says so on its console, and ends itself."""

from __future__ import annotations

import time

from run_transcription import aws
from run_transcription.errors import TranscriptionError
from run_transcription.images import ROLE

PASSED, FAILED = "TRANSCRIBE-SMOKE passed", "TRANSCRIBE-SMOKE failed"
LOOK_SECONDS = 10.0
# as the worker's user and with its environment; no network is needed, and no role
SCRIPT = f"""#!/bin/bash
set -a; . /etc/transcribe.env; set +a
export HOME=/opt/transcribe/cache HF_HUB_OFFLINE=1
if runuser -u transcribe -- /opt/transcribe/venv/bin/run-transcription load --require gpu_state; then
  echo '{PASSED}' >/dev/console
else
  echo '{FAILED}' >/dev/console
fi
sleep 60
poweroff
"""


def test(region: str, image_id: str, instance_type: str, limit: float) -> None:
    """Run the smoke test; raises TranscriptionError unless it passes within `limit` seconds. The instance is ended."""
    with aws.plainly(f"try {image_id}"):
        ec2 = aws.client("ec2", region)
        started = ec2.run_instances(
            ImageId=image_id,
            InstanceType=instance_type,
            MinCount=1,
            MaxCount=1,
            UserData=SCRIPT,
            InstanceInitiatedShutdownBehavior="terminate",
            MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": ROLE, "Value": "builder"}]}],
        )
        instance = started["Instances"][0]["InstanceId"]
        try:
            said = _console(ec2, instance, limit)
        finally:
            ec2.terminate_instances(InstanceIds=[instance])
    if PASSED not in said:
        raise TranscriptionError(f"{image_id} fails its smoke test: {said}; `latest` stays what it was")


def _console(ec2: object, instance: str, limit: float) -> str:
    """Wait for the script's own line on the console; return it, or that none came."""
    until = time.monotonic() + limit
    while True:
        answer = ec2.get_console_output(InstanceId=instance, Latest=True)  # type: ignore[attr-defined]
        text = answer.get("Output", "")
        if found := next((mark for mark in (PASSED, FAILED) if mark in text), None):
            return found
        if time.monotonic() > until:
            return f"its console said nothing of it within {limit:.0f} s"
        time.sleep(LOOK_SECONDS)
