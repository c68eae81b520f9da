"""Try an image: an instance of it loads the model as a worker would, says so on its console, and ends itself."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

from run_transcription import aws
from run_transcription.errors import TranscriptionError
from run_transcription.images import ROLE, Place

PASSED, FAILED = "TRANSCRIBE-SMOKE passed", "TRANSCRIBE-SMOKE failed"
LOOK_SECONDS = 10.0
NOT_TO_BE_HAD = ("InsufficientInstanceCapacity", "Unsupported")  # EC2 has none left, or no such type in this zone
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

log = logging.getLogger(__name__)


def test(region: str, image_id: str, types: Sequence[str], places: Sequence[Place], limit: float) -> None:
    """Run the smoke test on the first type and place that has an instance to give, and end that instance.

    Raises TranscriptionError unless it passes within `limit` seconds.
    """
    with aws.plainly(f"try {image_id}"):
        ec2 = aws.client("ec2", region)
        instance = _start(ec2, image_id, list(itertools.product(types, places)))
        try:
            ec2.get_waiter("instance_exists").wait(InstanceIds=[instance])  # EC2 may not know it yet
            said = _console(ec2, instance, limit)
        finally:
            ec2.terminate_instances(InstanceIds=[instance])
    if PASSED not in said:
        raise TranscriptionError(f"{image_id} fails its smoke test: {said}; `latest` stays what it was")


def _start(ec2: Any, image_id: str, attempts: list[tuple[str, Place]]) -> str:
    """Return the first instance to be had; an error other than a lack of them is EC2's own."""
    from botocore.exceptions import ClientError

    for instance_type, place in attempts:
        where = {"SubnetId": place.subnet} if place.subnet else {"Placement": {"AvailabilityZone": place.zone}}
        try:
            started = ec2.run_instances(
                ImageId=image_id,
                InstanceType=instance_type,
                MinCount=1,
                MaxCount=1,
                UserData=SCRIPT,
                InstanceInitiatedShutdownBehavior="terminate",
                MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
                TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": ROLE, "Value": "builder"}]}],
                **where,
            )
        except ClientError as error:
            if error.response["Error"]["Code"] not in NOT_TO_BE_HAD:
                raise
            log.warning("there is no %s in %s to be had: %s", instance_type, place.zone, error)
        else:
            log.info("the smoke test of %s runs on a %s in %s", image_id, instance_type, place.zone)
            return str(started["Instances"][0]["InstanceId"])
    raise TranscriptionError("no type and zone has an instance to give: try other ones, or later")


def _console(ec2: Any, instance: str, limit: float) -> str:
    """Wait for the script's own line on the console; return it, or that none came."""
    until = time.monotonic() + limit
    while True:
        answer = ec2.get_console_output(InstanceId=instance, Latest=True)
        text = answer.get("Output", "")
        if found := next((mark for mark in (PASSED, FAILED) if mark in text), None):
            return found
        if time.monotonic() > until:
            return f"its console said nothing of it within {limit:.0f} s"
        time.sleep(LOOK_SECONDS)
