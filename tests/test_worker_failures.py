from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest
from fakes import BrokenSource, EndlessSource, counts, tone
from working import ONCE, Instance, before_each_batch, json_below, refusing

from run_transcription import pipeline, storage, worker
from run_transcription.engines import golden
from run_transcription.errors import BrokenOff, ModelNotLoaded, OutOfOrder, TranscriptionError
from run_transcription.journal import Journal
from run_transcription.leases import Keeper
from run_transcription.records import ModelSpec
from run_transcription.sources import FolderSource, SqsSource
from run_transcription.uploads import Upload
from run_transcription.worker import Terms


def test_a_failure_is_tried_again_later(shift, queue, stack, recording, caplog, monkeypatch):
    """An unexpected error hides the message for a while, is logged with its traceback, and leaves no result."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    refusing(shift, ZeroDivisionError("a defect"))
    monkeypatch.setattr(pipeline, "back_off", lambda receives: 4.0 * receives)
    worker.work(shift, queue, ONCE)
    assert shift.given_back == {f"s3://{stack.bucket}/uploads/a.wav"}
    assert counts(stack.queue_url) == (0, 1)
    assert "ZeroDivisionError" in caplog.text
    assert json_below(f"s3://{stack.bucket}/") == {}
    time.sleep(4.1)
    assert counts(stack.queue_url) == (1, 0)


def test_out_of_memory_is_no_fault_of_the_machines(shift, queue, stack, recording, no_pause):
    """A transient failure comes again and goes well; what was done in the end was not given back."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    refusing(shift, MemoryError("too much at once"), times=2)
    worker.work(shift, queue, ONCE)
    assert shift.given_back == set()
    assert shift.breaker.failures == 0
    assert len(json_below(f"s3://{stack.bucket}/results/")) == 1


def test_a_broken_machine_gives_everything_back_and_goes_out_of_service(shift, queue, stack, recording, capsys):
    """A GPU that does not answer costs each message one receipt at most, not the queue; the failure is a metric."""
    for number in range(5):
        storage.upload(recording, f"s3://{stack.bucket}/uploads/{number}.wav")
    instance, heard, batches = Instance(), golden.hear(shift.desk.handle.engine), []

    def break_down(windows):
        batches.append(windows)
        if len(batches) > 1:  # the self-test at the start goes well
            raise RuntimeError("CUDA error: unspecified launch failure")

    before_each_batch(shift, break_down)
    with pytest.raises(OutOfOrder, match="this machine can't transcribe, so all is given back: .*CUDA error"):
        worker.run(shift, queue, Terms(instance=instance, golden=heard))
    assert instance.asked == ["out of service"]
    assert counts(stack.queue_url) == (5, 0)
    received = [SqsSource(stack.queue_url, Keeper(30)).receive().receives for _ in range(5)]
    assert max(received) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(line.get("environment_failures", 0) for line in lines) == 1
    assert sum(line.get("self_test_failures", 0) for line in lines) == 2


def test_a_machine_that_cannot_load_the_model_goes_out_of_service(tmp_path, capsys):
    """CUDA that does not start shows before any self-test can: it counts as one that failed."""
    instance = Instance()
    with pytest.raises(ModelNotLoaded):
        worker.load(ModelSpec(str(tmp_path), home=tmp_path), Journal(), instance)
    assert instance.asked == ["out of service"]
    assert json.loads(capsys.readouterr().out)["self_test_failures"] == 1


def test_a_doubt_is_settled_also_while_nothing_waits_for_the_model(shift, queue, stack, recording):
    """Whoever raises it: the worker tests itself and goes on receiving."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    shift.breaker.failed()
    worker.work(shift, queue, Terms(idle_seconds=3.0))
    assert counts(stack.queue_url) == (0, 0)


@pytest.mark.parametrize("machine", ["stopped", "broken"])
def test_what_is_given_back_is_not_taken_back_by_a_poll_under_way(shift, queue, stack, recording, no_pause, machine):
    """A poll that has begun would bring it right back, and each time counts for the dead-letter queue."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")

    def fail(_windows):
        time.sleep(0.5)  # the next poll begins
        if machine == "broken":
            raise RuntimeError("CUDA error: unspecified launch failure")
        shift.stop.ask("a test", 5.0)
        raise BrokenOff("a test")

    before_each_batch(shift, fail)
    patient = SqsSource(stack.queue_url, Keeper(30), poll_seconds=2)
    if machine == "broken":
        with pytest.raises(OutOfOrder):
            worker.work(shift, patient, Terms())
    else:
        worker.work(shift, patient, Terms())
    assert queue.receive().receives == 2


def test_a_machine_that_hears_something_else_takes_no_work(shift, queue, stack, recording, no_pause):
    """The golden clip is compared by words before anything is received."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    other = replace(golden.hear(shift.desk.handle.engine), words=("other", "words"))
    with pytest.raises(OutOfOrder, match="instead of"):
        worker.run(shift, queue, Terms(once=True, golden=replace(other, tokens=(1,))))
    assert counts(stack.queue_url) == (1, 0)


def test_once_gives_up_on_a_source_where_everything_fails(shift, no_pause, monkeypatch, recording):
    """Without a dead-letter queue a failing message would come for ever; the failures are counted."""
    monkeypatch.setattr(worker, "MOST_FAILURES", 3)
    source = EndlessSource((Upload(str(recording.parent), "tone.wav", storage.version(str(recording))),))
    refusing(shift, ZeroDivisionError(), times=1000)
    with pytest.raises(TranscriptionError, match="3 failures in a row"):
        worker.work(shift, source, ONCE)
    assert set(source.fates) == {"released"}
    assert len(source.fates) == source.received


def test_once_gives_up_on_a_source_that_cannot_be_read(shift, monkeypatch, caplog):
    """Nothing was given back, and yet it must not look as if all were done; each failure is one line."""
    monkeypatch.setattr(worker, "MOST_FAILURES", 2)
    with pytest.raises(TranscriptionError, match="failures in a row"):
        worker.work(shift, BrokenSource(), ONCE)
    assert set(caplog.messages) == {"no route to the queue"}


@pytest.mark.parametrize(("failures", "left"), [(0, []), (2, []), (3, ["a.wav"])])
def test_a_folders_recording_has_three_tries(shift, tmp_path, no_pause, failures, left):
    """A retry that goes well makes up for the failures before it."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    tone(inbox / "a.wav", 1)
    os.utime(inbox / "a.wav", (1, 1))
    shift.desk = replace(shift.desk, output=str(tmp_path))
    refusing(shift, ZeroDivisionError(), failures)
    worker.work(shift, FolderSource(inbox, lambda name: name.endswith(".wav")), ONCE)
    assert shift.given_back == {str(inbox / name) for name in left}
    assert len(list(tmp_path.glob("results/a.wav/*/transcript.json"))) == 1 - len(left)
