"""One JSON line for each job on standard output, which is a metric too, and a notice for whoever wants to hear of it.

The lines are in CloudWatch's embedded metric format: the agent that ships the log makes metrics of the numbers that
`_aws` names. No line holds a word of a recording.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from run_transcription import aws
from run_transcription.errors import TranscriptionError
from run_transcription.records import Timing

NAMESPACE = "Transcribe"
UNITS = {
    "queue_lag": "Seconds",
    "download": "Seconds",
    "decode": "Seconds",
    "features": "Seconds",
    "encode": "Seconds",
    "generate": "Seconds",
    "upload": "Seconds",
    "busy": "Seconds",
    "audio_seconds": "Seconds",
    "rtfx": "None",
    "retries": "Count",
    "cost": "None",
    "finished": "Count",
    "failed": "Count",
    "environment_failures": "Count",
    "self_test_failures": "Count",
    "given_back": "Count",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one job."""

    recording: str
    identity: str | None
    status: str  # COMPLETED, FAILED, DONE_BEFORE, GONE or AGAIN
    receives: int
    reason: str | None = None  # a code, or a kind of failure
    queue_lag: float | None = None
    download: float = 0.0
    timing: Timing = Timing()  # noqa: RUF009 - it is frozen
    busy: float = 0.0  # seconds of the model's thread
    audio_seconds: float = 0.0
    resumed: float = 0.0  # seconds of it that an earlier try had done
    strategy: str | None = None
    result: str | None = None  # the address of its json


class Journal:
    """Writes the lines, from any thread."""

    def __init__(self, price_per_hour: float | None = None, topic: str | None = None) -> None:
        """Reckon cost by the instance's price, and tell an SNS topic of finished and failed recordings."""
        self.price_per_hour = price_per_hour
        self.topic = topic
        self._lock = threading.Lock()

    def job(self, entry: Entry) -> None:
        """Write what became of a job."""
        price = self.price_per_hour
        stages = asdict(entry.timing)
        stages.pop("wall")
        done = entry.status == "COMPLETED"
        self._write(
            recording=entry.recording,
            identity=entry.identity,
            status=entry.status,
            reason=entry.reason,
            queue_lag=entry.queue_lag,
            download=entry.download,
            **stages,
            busy=entry.busy,
            audio_seconds=entry.audio_seconds,
            resumed=entry.resumed,
            rtfx=(entry.audio_seconds - entry.resumed) / entry.busy if done and entry.busy else None,
            strategy=entry.strategy,
            retries=entry.receives - 1,
            cost=None if price is None else entry.busy * price / 3600,
            finished=int(done),
            failed=int(entry.status == "FAILED"),
            given_back=int(entry.status == "AGAIN"),
        )

    def count(self, **counted: int) -> None:
        """Write numbers that are no job's, by names of UNITS."""
        self._write(**counted)

    def notify(self, entry: Entry) -> None:
        """Tell the topic of a recording that is finished or failed; a notice that can't be sent is only said."""
        if self.topic is None:
            return
        said = {name: getattr(entry, name) for name in ("recording", "identity", "status", "result")}
        said["key"] = entry.recording.removeprefix("s3://").partition("/")[2] or entry.recording
        region = self.topic.split(":")[3] if self.topic.count(":") >= 5 else None  # noqa: PLR2004 - an ARN's parts
        try:
            with aws.plainly(f"tell {self.topic}"):
                aws.client("sns", region).publish(TopicArn=self.topic, Message=json.dumps(said))
        except TranscriptionError as error:
            log.warning("%s", error)

    def _write(self, **fields: Any) -> None:
        numbers = [name for name, value in fields.items() if name in UNITS and value is not None]
        metrics = [{"Name": name, "Unit": UNITS[name]} for name in numbers]
        directive = {"Namespace": NAMESPACE, "Dimensions": [[]], "Metrics": metrics}
        about = {"Timestamp": round(time.time() * 1000), "CloudWatchMetrics": [directive]}
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}
        line = json.dumps({"_aws": about, **rounded})
        try:
            with self._lock:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
        except OSError as error:  # a full disk under the log, a reader that has gone: the job is done for all that
            log.warning("the journal can't be written: %s", error)
