from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import BrokenSource, EndlessSource, counts, document, soon, tone

from run_transcription import names, optimized_loader, storage, worker
from run_transcription.demo.emulator import make_stack
from run_transcription.errors import TranscriptionError
from run_transcription.records import Decoding, ModelFacts, ModelSpec
from run_transcription.sources import FolderSource, SqsSource
from run_transcription.uploads import Upload
from run_transcription.worker import Fate, OutOfTime, Stop, work, work_once

ODD = "uploads/a b+ü%20 'x'.wav"


@pytest.fixture
def queue(stack):
    """Fill a queue with one upload."""
    source = SqsSource(stack.queue_url)
    source.receive().finish()  # S3's test event
    storage.store(f"s3://{stack.bucket}/uploads/a.wav", b"sound")
    return source


def fail(_upload):
    """Stand for a defect."""
    raise ZeroDivisionError


def terminate(_upload=None):
    """Send this process the signal that systemd sends."""
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_recording_is_finished_only_once_it_is_processed(queue, stack):
    """While a job runs its message is hidden, not deleted; afterwards it is gone."""
    seen = []
    assert work_once(queue, lambda upload: seen.append((upload.key, counts(stack.queue_url))), Stop()).fate is Fate.DONE
    assert seen == [("uploads/a.wav", (0, 1))]
    assert counts(stack.queue_url) == (0, 0)
    assert work_once(queue, seen.append, Stop()).fate is Fate.EMPTY


def test_a_failure_gives_the_message_back(queue, stack, caplog):
    """An unexpected error makes the message visible again at once, and is logged with its traceback."""
    assert work_once(queue, fail, Stop()).fate is Fate.FAILED
    assert counts(stack.queue_url) == (1, 0)
    assert "uploads/a.wav" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_an_interruption_gives_the_message_back_and_goes_on_up(queue, stack):
    """Ctrl-C must end the worker, and must not hide the message for five minutes."""

    def interrupted(_upload):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_once(queue, interrupted, Stop())
    assert counts(stack.queue_url) == (1, 0)


def test_what_comes_after_the_stop_goes_back(queue, stack):
    """A message that a poll brings after SIGTERM is not begun."""
    assert work_once(queue, fail, Stop(requested=True)).fate is Fate.EMPTY
    assert counts(stack.queue_url) == (1, 0)


def test_a_source_that_cannot_be_read_is_a_failed_turn(caplog):
    """A queue that is gone for a while is one line in the log, and no end of the worker."""
    assert work_once(BrokenSource(), fail, Stop()).fate is Fate.FAILED
    assert caplog.messages == ["no route to the queue"]


def test_sigterm_lets_the_job_in_hand_end(queue, stack):
    """The job ends, its message is deleted, and no other is begun."""
    ended = []

    def process(upload):
        terminate()
        time.sleep(0.2)
        ended.append(upload.key)

    storage.store(f"s3://{stack.bucket}/uploads/b.wav", b"sound")
    with worker.stoppable(30) as stop:
        work(queue, process, stop, once=False)
    assert ended == ["uploads/a.wav"]
    assert counts(stack.queue_url) == (1, 0)


def test_sigterm_gives_back_a_job_that_takes_too_long(queue, stack):
    """After --stop-seconds the job is broken off, and its message is visible at once."""
    began = time.monotonic()
    with worker.stoppable(0.3) as stop:
        work(queue, lambda _upload: (terminate(), time.sleep(30)), stop, once=False)
    assert time.monotonic() - began < 10
    assert counts(stack.queue_url) == (1, 0)


def test_a_second_sigterm_gives_the_job_back_at_once(queue, stack):
    """Who asks twice does not want to wait."""
    began = time.monotonic()
    with worker.stoppable(60) as stop, soon(terminate, 0.5), soon(terminate, 1):
        work(queue, lambda _upload: time.sleep(30), stop, once=False)
    assert time.monotonic() - began < 10
    assert counts(stack.queue_url) == (1, 0)


def test_sigterm_ends_an_idle_worker_within_a_poll(stack):
    """A poll is short, as a signal does not end it."""
    source = SqsSource(stack.queue_url)
    source.receive().finish()
    began = time.monotonic()
    with worker.stoppable(60) as stop, soon(terminate, 0.5):
        work(source, fail, stop, once=False)
    assert time.monotonic() - began < 4


def test_an_output_that_cannot_be_written_costs_no_model(tmp_path):
    """What can't be kept is not begun: found before the model is loaded, in one line."""
    tone(tmp_path / "a.wav", 1)
    (tmp_path / "inbox").mkdir()
    arguments = ["--source", str(tmp_path / "inbox"), "-o", str(tmp_path / "a.wav"), "--model", "none"]
    done = CliRunner().invoke(worker.worker, arguments)
    assert done.exit_code == 1
    assert "cannot write into" in done.output
    assert done.output.count("\n") == 1


def test_signal_handlers_are_put_back():
    """Nothing of the worker's signals stays behind, not even a running alarm."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    with worker.stoppable(60) as stop:
        terminate()
        assert stop.requested
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.fixture
def no_pause(monkeypatch):
    """Let failures follow one another at once."""
    monkeypatch.setattr(worker, "LONGEST_PAUSE", 0.0)


def test_once_gives_up_on_a_source_where_everything_fails(no_pause):
    """Without a dead-letter queue a failing message would come for ever; the failures are counted."""
    source = EndlessSource()
    with pytest.raises(TranscriptionError, match="10 failures in a row"):
        work(source, fail, Stop(), once=True)
    assert source.fates == ["released"] * worker.MOST_FAILURES


def test_once_gives_up_on_a_source_that_cannot_be_read(no_pause):
    """Nothing was given back, and yet it must not look as if all were done."""
    with pytest.raises(TranscriptionError, match="10 failures in a row"):
        work(BrokenSource(), fail, Stop(), once=True)


@pytest.mark.parametrize(("failures", "left"), [(0, []), (1, []), (2, []), (3, ["a.wav"])])
def test_what_was_done_in_the_end_was_not_given_back(tmp_path, no_pause, failures, left):
    """A retry that goes well makes up for the failures before it; a folder's recording has three tries."""
    tone(tmp_path / "a.wav", 1)
    os.utime(tmp_path / "a.wav", (1, 1))
    tries = []

    def process(upload):
        tries.append(upload)
        if len(tries) <= failures:
            raise ZeroDivisionError

    source = FolderSource(tmp_path, lambda name: name.endswith(".wav"))
    assert work(source, process, Stop(), once=True) == {str(tmp_path / name) for name in left}


def test_a_source_that_fails_for_a_moment_is_read_again(tmp_path, no_pause):
    """One failed look at the queue leaves no recording untranscribed."""
    tone(tmp_path / "a.wav", 1)
    os.utime(tmp_path / "a.wav", (1, 1))
    source, broken = FolderSource(tmp_path, lambda name: name.endswith(".wav")), [BrokenSource()]
    seen = []

    class Flickering:
        def receive(self):
            return broken.pop().receive() if broken else source.receive()

    assert work(Flickering(), seen.append, Stop(), once=True) == set()
    assert [upload.key for upload in seen] == ["a.wav"]


def test_any_number_of_failures_has_its_pause():
    """A worker whose queue is away for a night must be there in the morning."""
    worker._pause(5000, Stop(requested=True))


def test_a_failing_worker_waits_before_it_takes_more():
    """Failures in a row slow a worker down, so that a broken one does not empty the queue into the dead letters."""
    source = EndlessSource()
    with worker.stoppable(60) as stop, soon(terminate, 2.0):
        work(source, fail, stop, once=False)
    assert source.received == 2  # at once, after 1 s, and then 2 s later


def test_out_of_time_is_not_swallowed_by_code_that_catches_exceptions():
    """A library's `except Exception` must not keep a worker alive past its time."""
    assert not issubclass(OutOfTime, Exception)


@pytest.mark.parametrize(
    ("output", "trigger"),
    [
        ("s3://bucket/uploads", "uploads/"),
        ("s3://bucket/uploads/texts/", "uploads/"),
        ("s3://bucket", "results/"),
        ("s3://bucket/a", "a"),
        (None, "failed/"),
        (None, ""),
    ],
)
def test_an_output_that_would_trigger_itself_is_refused(output, trigger):
    """Results under the trigger's prefix would each cause the next job, for ever."""
    with pytest.raises(TranscriptionError, match="would be taken for recordings"):
        worker.refuse_loop(output, trigger)


@pytest.mark.parametrize(
    ("output", "trigger"),
    [(None, "uploads/"), ("s3://bucket/texts", "uploads/"), ("s3://other", ""), ("out", ""), ("s3://b/up", "uploads/")],
)
def test_an_output_beside_the_trigger_is_taken(output, trigger):
    """The usual layouts are not refused."""
    worker.refuse_loop(output, trigger)


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


@pytest.fixture(scope="module")
def desk(tmp_path_factory, model):
    """Load a model, with a folder for results."""
    home = tmp_path_factory.mktemp("home")
    handle = optimized_loader.load(ModelSpec(model, device="cpu", dtype="float32", home=home))
    return worker.Desk(handle, Decoding(), ("json", "txt"), None)


def test_a_recording_is_transcribed_once_for_each_content(desk, tmp_path):
    """A duplicate is passed over, and a new version of the same name is not."""
    tone(tmp_path / "a.wav", 1)
    first = Upload(str(tmp_path), "a.wav", "v1")
    assert worker.transcribe(desk, first).status == "COMPLETED"
    assert worker.transcribe(desk, first) is None
    assert worker.transcribe(desk, replace(first, version="v2")).status == "COMPLETED"
    assert len(list(tmp_path.glob("results/a.wav/*/transcript.json"))) == 2


def test_a_failure_is_written_once_too(desk, tmp_path):
    """A duplicate of a recording that can't be transcribed is not tried again."""
    (tmp_path / "a.wav").write_bytes(b"no sound")
    upload = Upload(str(tmp_path), "a.wav", "v1")
    assert worker.transcribe(desk, upload).error.code == "not_audio"
    assert worker.transcribe(desk, upload) is None
    assert len(list(tmp_path.glob("failed/a.wav/*.json"))) == 1


def test_results_below_an_output_with_a_slash_are_no_recordings(desk, tmp_path):
    """With a trigger for all keys the results come back as uploads: `-o s3://bucket/` must not make that a loop."""
    tone(tmp_path / "a.wav", 1)
    desk = replace(desk, output=f"{tmp_path}/")
    result = worker.transcribe(desk, Upload(str(tmp_path), "a.wav", "v1"))
    for file in result.files.values():
        assert worker.transcribe(desk, Upload(str(tmp_path), file.address.removeprefix(f"{tmp_path}/"), "v1")) is None
    assert [path.name for path in tmp_path.glob("results/*")] == ["a.wav"]
    assert not (tmp_path / "failed").exists()


@pytest.mark.parametrize("own", ["results/a.wav", "failed/a.wav", "work/a.wav"])
def test_what_a_worker_wrote_is_no_recording(desk, tmp_path, own):
    """A notification without a prefix announces our own files too: they end there."""
    tone(tmp_path / "a.wav", 1)
    assert worker.transcribe(desk, Upload(str(tmp_path), own, "v1")) is None
    assert not (tmp_path / "results").exists()


def start_worker(*arguments, home, **environment):
    """Start a worker as its own process."""
    command = [sys.executable, "-m", "run_transcription", "worker", *arguments, "--dtype", "float32"]
    environment = os.environ | {"TRANSCRIBE_HOME": str(home), "OMP_NUM_THREADS": "2"} | environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_worker(*arguments, home):
    """Run a worker as its own process until nothing is left."""
    process = start_worker(*arguments, "--once", home=home)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def shift(emulator, model, tmp_path_factory):
    """One run of a real worker process: a good recording with an odd name, a text named .wav, and poison."""
    stack, folder = make_stack("shift"), tmp_path_factory.mktemp("shift")
    root = f"s3://{stack.bucket}"
    storage.upload(tone(folder / "a.wav", 2), f"{root}/{ODD}")
    storage.store(f"{root}/uploads/text.wav", b"this is no sound")
    storage.store(f"{root}/uploads/", b"")
    done = run_worker("--queue-url", stack.queue_url, "--model", model, home=folder / "home")
    return stack, done, json_below(f"{root}/results/"), json_below(f"{root}/failed/")


def json_below(address):
    """Return the json documents below an address, by address."""
    return {found: document(storage.read(found)) for found in storage.listing(address) if found.endswith(".json")}


def test_a_worker_process_empties_the_queue(shift):
    """All messages are done with, the corrupt recording's too, and nothing went to the dead letters."""
    stack, done, _, _ = shift
    assert done.returncode == 0, done.stderr
    assert counts(stack.queue_url) == (0, 0)
    assert counts(stack.dead_letter_url) == (0, 0)
    assert done.stdout == ""


def test_a_result_names_its_files_and_they_are_what_it_says(shift):
    """Who reads the json can trust the files beside it: each has the hash and the size that stand there."""
    stack, _, results, _ = shift
    ((address, said),) = results.items()
    assert address.startswith(f"s3://{stack.bucket}/results/{ODD}/{said['input']['identity']}/")
    assert said["status"] == "COMPLETED"
    assert set(said["files"]) == {"txt", "srt", "vtt"}
    for file in said["files"].values():
        content = storage.read(file["address"])
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file["sha256"], file["size"])


def test_a_result_says_which_recording_it_is_of(shift):
    """The json has the recording's address and version, and its place is its identity's."""
    stack, _, results, _ = shift
    (said,) = results.values()
    recording = f"s3://{stack.bucket}/{ODD}"
    version = storage.version(recording)
    upload = Upload(f"s3://{stack.bucket}", ODD, version, version)
    assert said["input"]["recording"] == recording
    assert said["input"]["version_id"] == version
    model = ModelFacts(**said["model"])
    assert said["input"]["identity"] == names.identity(upload, model, Decoding(), ("json", "txt", "srt", "vtt"))


def test_a_corrupt_recording_has_its_failure_with_a_reason(shift):
    """It is told, by a code and in words, and not tried again."""
    stack, done, _, failed = shift
    ((address, said),) = failed.items()
    assert address.startswith(f"s3://{stack.bucket}/failed/uploads/text.wav/")
    assert said["status"] == "FAILED"
    assert said["error"]["code"] == "not_audio"
    assert "Traceback" not in done.stderr


def test_a_folder_is_emptied_likewise(model, tmp_path):
    """A folder's results stand beside it, in the same layout; a second run has nothing to do, whatever the formats."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    tone(inbox / "a b.wav", 1)
    (inbox / "bad.mp3").write_bytes(b"")
    arguments = ("--source", str(inbox), "--model", model, "-f", "srt")
    done = run_worker(*arguments, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("results/a b.wav/*/transcript.json")
    (failure,) = tmp_path.glob("failed/bad.mp3/*.json")
    assert document(result.read_bytes())["status"] == "COMPLETED"
    assert set(document(result.read_bytes())["files"]) == {"srt"}
    assert document(failure.read_bytes())["error"]["code"] == "empty_file"
    written = result.stat().st_mtime_ns
    assert "done before" in run_worker(*arguments, home=tmp_path / "home").stderr
    assert result.stat().st_mtime_ns == written
    assert sorted(path.name for path in inbox.iterdir()) == ["a b.wav", "bad.mp3"]


def wait_until(condition, process, seconds=120):
    """Wait for something that a process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_process_gives_a_long_job_back(stack, model, tmp_path):
    """SIGTERM in the middle of a long recording: a quick end, the message visible, and no temporary folder left."""
    storage.upload(tone(tmp_path / "long.wav", 1200), f"s3://{stack.bucket}/uploads/long.wav")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    SqsSource(stack.queue_url).receive().finish()  # S3's test event
    arguments = ("--queue-url", stack.queue_url, "--model", model, "--batch-size", "1", "--stop-seconds", "1")
    process = start_worker(*arguments, home=tmp_path / "home", TMPDIR=str(scratch))
    try:
        wait_until(lambda: list(scratch.glob("transcribe-*/recording.wav")), process)
        time.sleep(1)
        assert counts(stack.queue_url) == (0, 1)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - asked < 20
    assert process.returncode == 0, said
    assert "broken off and given back: " in said
    assert "Traceback" not in said
    assert counts(stack.queue_url) == (1, 0)
    assert list(scratch.iterdir()) == []
    assert list(storage.listing(f"s3://{stack.bucket}/results/")) == []


def test_a_stop_without_a_job_in_hand_says_nothing_of_one(caplog):
    """While the model is loaded there is nothing to give back."""
    with caplog.at_level("INFO", "run_transcription"), worker.stoppable(0.1):
        terminate()
        time.sleep(5)
    assert caplog.messages == ["stopped, as the time for it was over"]


def test_a_source_that_is_not_there_costs_no_model(emulator, tmp_path):
    """Mistakes are said in one line, before the model is loaded."""
    for arguments in (["--source", str(tmp_path / "absent")], ["--queue-url", "http://127.0.0.1:1/absent/q"]):
        done = CliRunner().invoke(worker.worker, [*arguments, "--model", str(tmp_path / "no-model")])
        assert done.exit_code == 1
        assert done.output.count("\n") == 1
        assert "absent" in done.output


def test_folder_sources_and_queues_are_one_kind_of_source(tmp_path):
    """The loop needs to know nothing of where deliveries come from."""
    tone(tmp_path / "a.wav", 1)
    os.utime(tmp_path / "a.wav", (1, 1))
    seen = []
    source = FolderSource(Path(tmp_path), lambda name: name.endswith(".wav"))
    assert work(source, seen.append, Stop(), once=True) == set()
    assert [upload.key for upload in seen] == ["a.wav"]


def test_a_wrong_language_is_no_recordings_fault(model, tmp_path):
    """A language that the model doesn't have ends the worker; no recording is declared failed for it."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    tone(inbox / "good.wav", 1.0)
    command = ["worker", "--source", str(inbox), "--once", "--model", str(model), "--language", "klingon"]
    done = subprocess.run(
        [sys.executable, "-m", "run_transcription", *command], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "klingon" in done.stderr
    assert not (tmp_path / "failed").exists()
