from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner
from fakes import counts, document, soon, tone
from working import ONCE, Instance, before_each_batch, journal_of, json_below, refusing, terminate

from run_transcription import storage, worker
from run_transcription.errors import TranscriptionError
from run_transcription.interruption import Stop, stoppable
from run_transcription.sources import FolderSource, SqsSource
from run_transcription.worker import Terms


def test_an_interruption_gives_the_message_back_and_goes_on_up(shift, queue, stack, recording):
    """Ctrl-C must end the worker, and must not hide the message for five minutes."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    refusing(shift, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        worker.work(shift, queue, ONCE)
    assert counts(stack.queue_url) == (1, 0)


def test_what_comes_after_the_stop_goes_back(shift, queue, stack, recording):
    """A worker that ends begins nothing, and leaves nothing hidden."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    shift.stop.ask("a test", None)
    worker.work(shift, queue, Terms())
    assert counts(stack.queue_url) == (1, 0)


def test_an_idle_worker_ends(shift, queue):
    """After --idle-seconds without work, and on SIGTERM within a poll."""
    began = time.monotonic()
    worker.work(shift, queue, Terms(idle_seconds=1.0))
    assert 1.0 <= time.monotonic() - began < 6
    began = time.monotonic()
    with stoppable(60) as shift.stop, soon(terminate, 0.5):
        worker.work(shift, SqsSource(queue.queue_url), Terms())
    assert time.monotonic() - began < 4


def test_an_idle_worker_ends_its_instance_where_the_group_may_shrink(shift, queue):
    """At the minimum it stays, and asks again after as long a time; at the end it holds nothing back."""
    instance = Instance()
    worker.run(shift, queue, Terms(idle_seconds=0.5, instance=instance))
    assert instance.asked == ["end, smaller: True", "end, smaller: True", "let go"]


def test_a_worker_of_an_older_image_ends_its_instance_after_its_job(shift, queue, stack, recording):
    """The group puts one with the new image in its place: it does not shrink."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    instance, batches = Instance(), []

    def outdate(windows):
        batches.append(windows)
        if len(batches) > 1:  # after the self-test
            shift.stop.outdated = True
            shift.stop.ask("there is a newer image", None)

    before_each_batch(shift, outdate)
    worker.run(shift, queue, Terms(instance=instance))
    assert instance.asked == ["end, smaller: False", "let go"]
    assert len(json_below(f"s3://{stack.bucket}/results/")) == 1


def test_a_folders_recording_goes_on_where_the_last_worker_left_it(shift, desk, tmp_path, capsys):
    """A worker that is told to end in the middle keeps what is done; the next one counts its tries anew."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    tone(inbox / "a.wav", 100)
    os.utime(inbox / "a.wav", (1, 1))
    # a language that is told: to find it out ten windows are decoded at once
    shift.desk = replace(desk, output=str(tmp_path), decoding=replace(desk.decoding, batch_size=1, language="en"))
    before_each_batch(shift, lambda _windows: terminate())
    with stoppable(0.0) as shift.stop:
        worker.work(shift, FolderSource(inbox, lambda _: True), Terms())
    again = replace(shift, desk=replace(shift.desk, handle=desk.handle), stop=Stop(), open=0)
    worker.work(again, FolderSource(inbox, lambda _: True), ONCE)
    broken_off, done = journal_of(capsys)
    assert (broken_off["status"], broken_off["reason"], broken_off["given_back"]) == ("AGAIN", "broken_off", 1)
    assert (done["status"], done["retries"]) == ("COMPLETED", 0)
    assert 20 < done["resumed"] < 40
    assert list(tmp_path.glob("work/*/*")) == []


@pytest.fixture
def called(model, tmp_path, monkeypatch):
    """Call the command in this process."""
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def call(*arguments):
        return CliRunner().invoke(worker.worker, [*arguments, "--model", model, "--dtype", "float32", "--once"])

    return call


def test_a_folder_is_emptied_likewise(called, tmp_path):
    """A folder's results stand beside it, in the same layout; a second run has nothing to do, whatever the formats."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    tone(inbox / "a b.wav", 1)
    (inbox / "bad.mp3").write_bytes(b"")
    done = called("--source", str(inbox), "-f", "srt")
    assert done.exit_code == 0, done.stderr
    (result,) = tmp_path.glob("results/a b.wav/*/transcript.json")
    (failure,) = tmp_path.glob("failed/bad.mp3/*.json")
    assert document(result.read_bytes())["status"] == "COMPLETED"
    assert set(document(result.read_bytes())["files"]) == {"srt"}
    assert document(failure.read_bytes())["error"]["code"] == "empty_file"
    written = result.stat().st_mtime_ns
    assert "DONE_BEFORE" in called("--source", str(inbox), "-f", "srt").stdout
    assert result.stat().st_mtime_ns == written
    assert sorted(path.name for path in inbox.iterdir()) == ["a b.wav", "bad.mp3"]


def test_a_wrong_language_is_no_recordings_fault(called, tmp_path):
    """A language that the model doesn't have ends the worker; no recording is declared failed for it."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    tone(inbox / "good.wav", 1.0)
    done = called("--source", str(inbox), "--language", "klingon")
    assert done.exit_code == 1
    assert "klingon" in done.stderr
    assert not (tmp_path / "failed").exists()


def test_a_source_that_is_not_there_costs_no_model(stack, tmp_path):
    """Mistakes are said in one line, before the model is loaded; with a wrong bucket all messages would be poison."""
    for arguments in (
        ["--source", str(tmp_path / "absent")],
        ["--queue-url", "http://127.0.0.1:1/absent/q", "--bucket", stack.bucket],
        ["--queue-url", stack.queue_url, "--bucket", "absent"],
    ):
        done = CliRunner().invoke(worker.worker, [*arguments, "--model", str(tmp_path / "no-model")])
        assert done.exit_code == 1
        assert done.output.count("\n") == 1
        assert "absent" in done.output


def test_an_output_that_cannot_be_written_costs_no_model(tmp_path):
    """What can't be kept is not begun: found before the model is loaded, in one line."""
    tone(tmp_path / "a.wav", 1)
    (tmp_path / "inbox").mkdir()
    arguments = ["--source", str(tmp_path / "inbox"), "-o", str(tmp_path / "a.wav"), "--model", "none"]
    done = CliRunner().invoke(worker.worker, arguments)
    assert done.exit_code == 1
    assert "cannot write into" in done.output
    assert done.output.count("\n") == 1


@pytest.mark.parametrize(
    ("output", "trigger"),
    [
        ("s3://bucket/uploads", "uploads/"),
        ("s3://bucket/uploads/texts/", "uploads/"),
        ("s3://bucket", "results/"),
        ("s3://bucket/a", "a"),
        ("s3://bucket", ""),
        (None, "failed/"),
        (None, ""),
    ],
)
def test_an_output_that_would_trigger_itself_is_refused(output, trigger):
    """Results under the trigger's prefix would each cause the next job, for ever."""
    with pytest.raises(TranscriptionError, match="would be taken for recordings"):
        worker.refuse_loop(output, trigger, None, ("another", "bucket"))


@pytest.mark.parametrize(
    ("output", "trigger"),
    [
        (None, "uploads/"),
        ("s3://bucket/texts", "uploads/"),
        ("s3://bucket/up", "uploads/"),
        ("s3://other", ""),
        ("s3://other/uploads", "uploads/"),
        ("out", ""),
    ],
)
def test_an_output_beside_the_trigger_is_taken(output, trigger):
    """The usual layouts are not refused, nor is another bucket than those of the recordings."""
    worker.refuse_loop(output, trigger, None, ("bucket",))


def test_a_folder_with_its_own_results_in_it_is_refused(tmp_path):
    """The same loop, in a folder: also by a way around, and by a folder that is called as our own are."""
    (tmp_path / "results").mkdir()
    for folder, output in (
        (tmp_path, str(tmp_path)),
        (tmp_path, str(tmp_path / "x" / "..")),
        (tmp_path / "results", None),
    ):
        with pytest.raises(TranscriptionError, match="would be taken for recordings"):
            worker.refuse_loop(output, "uploads/", folder)
    worker.refuse_loop(None, "uploads/", tmp_path)
    worker.refuse_loop("s3://bucket/uploads", "uploads/", tmp_path)


@pytest.mark.parametrize(
    "arguments", [[], ["--queue-url", "http://127.0.0.1:1/q", "--source", "."]], ids=["neither", "both"]
)
def test_a_worker_has_exactly_one_source(arguments):
    """A worker without work, or with two kinds of it, is a mistake of usage."""
    outcome = CliRunner().invoke(worker.worker, arguments)
    assert outcome.exit_code == 2
    assert "Give either --queue-url or --source" in outcome.output


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--visibility-timeout", "3600"),
        ("--idle-seconds", "nan"),
        ("--price-per-hour", "nan"),
        ("--stall-seconds", "0"),
    ],
)
def test_a_number_that_would_fail_later_is_refused(option, value):
    """SQS hides a message for 12 h in all, so renewals for an hour would end in a lost one; nan is no number."""
    outcome = CliRunner().invoke(worker.worker, ["--source", ".", option, value])
    assert outcome.exit_code == 2
    assert option in outcome.output
    assert outcome.output.count("\n") == 1


def test_a_worker_of_a_queue_is_told_its_buckets():
    """Whoever may send messages would else choose what the worker's role reads."""
    outcome = CliRunner().invoke(worker.worker, ["--queue-url", "http://127.0.0.1:1/q"])
    assert outcome.exit_code == 2
    assert "with --bucket or TRANSCRIBE_BUCKET" in outcome.output


def test_a_bucket_that_was_removed_stops_nobody(stack, caplog):
    """Of several buckets one may be gone by now, and that is logged; with none of them left no worker begins."""
    worker.require_some((stack.bucket, "gone-by-now"))
    assert "gone-by-now" in caplog.text
    assert stack.bucket not in caplog.text
    with pytest.raises(TranscriptionError, match="gone-by-now"):
        worker.require_some(("gone-by-now", "gone-too"))
