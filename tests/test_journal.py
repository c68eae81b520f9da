from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import replace

import pytest

from run_transcription import aws
from run_transcription.journal import UNITS, Entry, Journal
from run_transcription.records import Timing

DONE = Entry(
    recording="s3://bucket/uploads/a b.wav",
    identity="0123456789abcdef",
    status="COMPLETED",
    receives=3,
    queue_lag=1.5,
    download=0.25,
    timing=Timing(decode=0.5, features=0.1, encode=0.2, generate=1.0, upload=0.3, wall=2.0),
    busy=1.8,
    audio_seconds=36.0,
    strategy="gpu_state",
    result="s3://bucket/results/uploads/a b.wav/0123456789abcdef/transcript.json",
)


def written(capsys):
    """Return the line that was written."""
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_a_job_is_one_line_with_its_stages_and_cost(capsys):
    """What a job took and cost can be added up from the log alone."""
    Journal(price_per_hour=1.0).job(DONE)
    said = written(capsys)
    stages = ("queue_lag", "download", "decode", "features", "encode", "generate", "upload")
    assert [said[name] for name in stages] == [1.5, 0.25, 0.5, 0.1, 0.2, 1.0, 0.3]
    assert (said["audio_seconds"], said["rtfx"], said["retries"], said["strategy"]) == (36.0, 20.0, 2, "gpu_state")
    assert said["cost"] == pytest.approx(1.8 / 3600, abs=1e-6)


def test_the_speed_of_a_resumed_recording_is_that_of_its_rest(capsys):
    """Seconds that an earlier try had done are no merit of this one."""
    Journal().job(replace(DONE, resumed=18.0))
    assert written(capsys)["rtfx"] == 10.0


def test_a_log_that_cannot_be_written_costs_the_line_alone(monkeypatch, caplog):
    """The disk under it may be full, or its reader gone: what becomes of the job is settled without it."""
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    monkeypatch.setattr(sys, "stdout", full)
    Journal().job(DONE)
    assert "the journal can't be written" in caplog.text
    with contextlib.suppress(OSError):
        full.close()


def test_a_price_that_nobody_named_makes_no_cost(capsys):
    """Unknown is null, never zero, and no metric."""
    Journal().job(DONE)
    said = written(capsys)
    assert said["cost"] is None
    assert "cost" not in [metric["Name"] for metric in said["_aws"]["CloudWatchMetrics"][0]["Metrics"]]


def test_every_line_is_in_the_embedded_metric_format(capsys):
    """Each metric that a line names is a number in it, with a unit; there is a time in milliseconds."""
    Journal().count(self_test_failures=1)
    said = written(capsys)
    (directive,) = said["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "Transcribe"
    assert directive["Dimensions"] == [[]]
    assert directive["Metrics"] == [{"Name": "self_test_failures", "Unit": "Count"}]
    assert said["self_test_failures"] == 1
    assert isinstance(said["_aws"]["Timestamp"], int)
    assert set(UNITS.values()) <= {"Seconds", "Count", "None"}


def test_a_topic_hears_of_a_finished_recording(stack):
    """One message for each: key, identity, status and where the result is."""
    topic = aws.client("sns").create_topic(Name="done")["TopicArn"]
    url = aws.sqs().create_queue(QueueName=f"{stack.bucket}-heard")["QueueUrl"]
    arn = aws.sqs().get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    aws.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    Journal(topic=topic).notify(DONE)
    (message,) = aws.sqs().receive_message(QueueUrl=url, WaitTimeSeconds=5)["Messages"]
    assert json.loads(json.loads(message["Body"])["Message"]) == {
        "recording": DONE.recording,
        "key": "uploads/a b.wav",
        "identity": DONE.identity,
        "status": "COMPLETED",
        "result": DONE.result,
    }


def test_a_topic_that_is_not_there_costs_one_line(emulator, caplog):
    """A notice is a courtesy: the job is done whoever hears of it."""
    Journal(topic="arn:aws:sns:us-east-1:000000000000:absent").notify(DONE)
    assert "cannot tell arn:aws:sns:us-east-1:000000000000:absent" in caplog.text
