from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from fakes import BrokenSource, EndlessSource, counts, document, soon, tone
from faults import speech
from faults.imds import metadata

from run_transcription import aws, names, optimized_loader, pipeline, service, storage, worker
from run_transcription.demo.emulator import make_stack
from run_transcription.engines import golden
from run_transcription.errands import Desk, Shift
from run_transcription.errors import BrokenOff, ModelNotLoaded, OutOfOrder, TranscriptionError
from run_transcription.fast_transcribe import transcribe_file
from run_transcription.interruption import Stop, stoppable
from run_transcription.journal import Journal
from run_transcription.leases import Heart, Keeper
from run_transcription.records import Decoding, Job, ModelFacts, ModelSpec
from run_transcription.resume import load
from run_transcription.sources import FolderSource, SqsSource
from run_transcription.uploads import Upload
from run_transcription.worker import Terms

ODD = "uploads/a b+ü%20 'x'.wav"
ONCE = Terms(once=True)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, model):
    """Load a model."""
    home = tmp_path_factory.mktemp("home")
    handle = optimized_loader.load(ModelSpec(model, device="cpu", dtype="float32", home=home))
    return Desk(handle, handle.engine.check(Decoding(vad=False)), ("json", "txt"))  # a tone is loud, but no speech


@pytest.fixture
def shift(desk, tmp_path):
    """Make what the threads of a worker share, with a folder for its temporary files."""
    (tmp_path / "scratch").mkdir()
    return Shift(desk, tmp_path / "scratch", Stop(), Heart())


@pytest.fixture
def queue(stack, shift):
    """Take recordings of the stack's bucket from its queue."""
    shift.desk = replace(shift.desk, buckets=frozenset({stack.bucket}))
    source = SqsSource(stack.queue_url, Keeper(30), poll_seconds=0)
    source.receive().finish()  # S3's test event
    return source


@pytest.fixture
def recording(tmp_path):
    """Make a second of a tone."""
    return tone(tmp_path / "tone.wav", 1)


@pytest.fixture
def no_pause(monkeypatch):
    """Let failures follow one another at once."""
    monkeypatch.setattr(service, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(pipeline, "back_off", lambda _receives: 0.0)


@dataclass
class Refusing:
    """An engine that fails in a way of its own, so many times, and then works."""

    engine: object
    error: Exception
    times: int = 1

    def __getattr__(self, name):
        """Be the engine in all else."""
        return getattr(self.engine, name)

    def transcribe(self, windows, decoding):
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return self.engine.transcribe(windows, decoding)


class Instance:
    """What a worker does with its instance; it may leave its group at the second time that it asks."""

    def __init__(self):
        self.asked = []

    def end(self, *, smaller):
        self.asked.append(f"end, smaller: {smaller}")
        return len(self.asked) == 2

    def out_of_service(self):
        self.asked.append("out of service")

    def let_go(self):
        self.asked.append("let go")


def refusing(shift, error, times=1):
    """Let a worker's engine fail."""
    engine = Refusing(shift.desk.handle.engine, error, times)
    shift.desk = replace(shift.desk, handle=replace(shift.desk.handle, engine=engine))


def terminate():
    """Send this process the signal that systemd sends."""
    os.kill(os.getpid(), signal.SIGTERM)


def journal_of(capsys):
    """Return the lines of the journal, jobs only."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if "status" in line]


def test_a_message_is_deleted_only_once_its_result_is_there(shift, queue, stack, recording, capsys):
    """The result lies in the bucket, the message is gone, no temporary file is left, and the journal has its line."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    worker.work(shift, queue, ONCE)
    (address,) = json_below(f"s3://{stack.bucket}/results/")
    assert "/uploads/a.wav/" in address
    assert counts(stack.queue_url) == (0, 0)
    assert list(shift.folder.iterdir()) == []
    (line,) = journal_of(capsys)
    assert (line["status"], line["retries"], line["audio_seconds"]) == ("COMPLETED", 0, 1.0)


def test_a_failure_is_tried_again_later(shift, queue, stack, recording, caplog, monkeypatch):
    """An unexpected error hides the message for a while, is logged with its traceback, and leaves no result."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    refusing(shift, ZeroDivisionError("a defect"))
    monkeypatch.setattr(pipeline, "back_off", lambda receives: 8.0 * receives)
    worker.work(shift, queue, ONCE)
    assert shift.given_back == {f"s3://{stack.bucket}/uploads/a.wav"}
    assert counts(stack.queue_url) == (0, 1)
    assert "ZeroDivisionError" in caplog.text
    assert json_below(f"s3://{stack.bucket}/") == {}
    time.sleep(8.1)
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

    instance, heard = Instance(), golden.hear(shift.desk.handle.engine)

    class OnceWell(Refusing):
        def transcribe(self, windows, decoding):
            self.times += 1
            if self.times > 1:  # the self-test at the start goes well
                raise self.error
            return self.engine.transcribe(windows, decoding)

    engine = OnceWell(shift.desk.handle.engine, RuntimeError("CUDA error: unspecified launch failure"), 0)
    shift.desk = replace(shift.desk, handle=replace(shift.desk.handle, engine=engine))
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

    class Failing(Refusing):
        def transcribe(self, windows, decoding):
            time.sleep(0.5)  # the next poll begins
            if machine == "stopped":
                shift.stop.ask("a test", 5.0)
            raise self.error

    error = BrokenOff("a test") if machine == "stopped" else RuntimeError("CUDA error: unspecified launch failure")
    engine = Failing(shift.desk.handle.engine, error)
    shift.desk = replace(shift.desk, handle=replace(shift.desk.handle, engine=engine))
    patient = SqsSource(stack.queue_url, Keeper(30), poll_seconds=3)
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
    instance = Instance()

    class Outdating(Refusing):
        def transcribe(self, windows, decoding):
            if self.times > 0:  # after the self-test
                shift.stop.outdated = True
                shift.stop.ask("there is a newer image", None)
            self.times += 1
            return self.engine.transcribe(windows, decoding)

    engine = Outdating(shift.desk.handle.engine, ZeroDivisionError(), 0)
    shift.desk = replace(shift.desk, handle=replace(shift.desk.handle, engine=engine))
    worker.run(shift, queue, Terms(instance=instance))
    assert instance.asked == ["end, smaller: False", "let go"]
    assert len(json_below(f"s3://{stack.bucket}/results/")) == 1


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


def test_a_duplicate_is_done_once(shift, queue, stack, recording, capsys):
    """The same event three times, also right behind itself, gives one result, heard and written once."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    for _ in range(2):
        body = json.dumps({"bucket": stack.bucket, "key": "uploads/a.wav"})
        aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=body)
    heard = []

    class Counting(Refusing):
        def transcribe(self, windows, decoding):
            heard.append(len(windows))
            return self.engine.transcribe(windows, decoding)

    engine = Counting(shift.desk.handle.engine, ZeroDivisionError())
    shift.desk = replace(shift.desk, handle=replace(shift.desk.handle, engine=engine))
    worker.work(shift, queue, ONCE)
    assert heard == [1]
    assert sorted(line["status"] for line in journal_of(capsys)) == ["COMPLETED", "DONE_BEFORE", "DONE_BEFORE"]
    assert counts(stack.queue_url) == (0, 0)
    assert len(json_below(f"s3://{stack.bucket}/results/")) == 1


def test_who_is_overtaken_leaves_the_other_result_and_tells_nobody(shift, queue, stack, recording, capsys):
    """A recording is counted and announced by the worker whose result stays."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    told = []
    shift.journal.notify = told.append

    class Overtaken(Refusing):
        def transcribe(self, windows, decoding):
            storage.store(f"{shift.current.known_job.results}.json", b'{"another": "worker"}')
            return self.engine.transcribe(windows, decoding)

    engine = Overtaken(shift.desk.handle.engine, ZeroDivisionError())
    shift.desk = replace(shift.desk, handle=replace(shift.desk.handle, engine=engine))
    worker.work(shift, queue, ONCE)
    assert [line["status"] for line in journal_of(capsys)] == ["DONE_BEFORE"]
    assert told == []
    (address,) = [each for each in storage.listing(f"s3://{stack.bucket}/results/") if each.endswith(".json")]
    assert storage.read(address) == b'{"another": "worker"}'
    assert counts(stack.queue_url) == (0, 0)


def test_a_message_with_several_recordings_ends_with_its_last(shift, queue, stack, recording, no_pause):
    """One of them fails at first: the message comes again, and the other one is not done twice."""
    for name in ("a", "b"):
        storage.upload(recording, f"s3://{stack.bucket}/elsewhere/{name}.wav")
    found = [{"key": f"elsewhere/{name}.wav", "size": 9} for name in ("a", "b")]
    for each in found:
        each["versionId"] = storage.version(f"s3://{stack.bucket}/{each['key']}")
    records = [
        {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": stack.bucket}, "object": each}} for each in found
    ]
    aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=json.dumps({"Records": records}))
    refusing(shift, ZeroDivisionError())
    worker.work(shift, queue, ONCE)
    assert counts(stack.queue_url) == (0, 0)
    assert len(json_below(f"s3://{stack.bucket}/results/")) == 2


def test_three_uploads_of_one_key_have_three_results(shift, queue, stack, tmp_path):
    """However fast they follow one another, each content is transcribed as what it is."""
    sound = speech.samples()
    words = {}
    for number in range(3):
        path = speech.write(tmp_path / f"{number}.wav", sound[number * 160_000 : number * 160_000 + 128_000])
        storage.upload(path, f"s3://{stack.bucket}/uploads/a.wav")
        words[storage.version(f"s3://{stack.bucket}/uploads/a.wav")] = path
    worker.work(shift, queue, ONCE)
    found = json_below(f"s3://{stack.bucket}/results/").values()
    assert len(found) == len({said["input"]["identity"] for said in found}) == 3
    for said in found:
        job = names.job_for(Upload(str(tmp_path), "x", "1"), str(tmp_path), "0" * 16)
        path = words[said["input"]["version"]]
        alone = pipeline.fast_transcribe.transcribe_file(path, job, shift.desk.handle, shift.desk.decoding)
        assert said["text"] == alone.transcript.text
    assert len({said["text"] for said in found}) == 3


@pytest.mark.parametrize("fate", ["removed", "replaced"])
def test_a_recording_that_is_gone_by_now_is_done_with(shift, emulator, recording, capsys, fate):
    """Without versions another content may lie in its place: it has its own event, and never the old identity."""
    stack = make_stack(f"gone-{fate}", versioned=False)
    shift.desk = replace(shift.desk, buckets=frozenset({stack.bucket}))
    address = f"s3://{stack.bucket}/uploads/a.wav"
    storage.store(address, b"the first content")
    source = SqsSource(stack.queue_url, Keeper(30), poll_seconds=0)
    source.receive().finish()
    if fate == "removed":
        storage.remove(address)
    else:
        storage.upload(recording, address)
    worker.work(shift, source, ONCE)
    lines = journal_of(capsys)
    assert [line["status"] for line in lines] == ["GONE", "COMPLETED"][: 1 + (fate == "replaced")]
    assert len({line["identity"] for line in lines}) == len(lines)
    assert list(storage.listing(f"s3://{stack.bucket}/failed/")) == []
    assert counts(stack.queue_url) == (0, 0)


def test_a_job_may_ask_for_its_own_options(shift, queue, stack, recording):
    """Language and formats of one job are part of its identity; what the model can't do is its failure."""
    storage.upload(recording, f"s3://{stack.bucket}/elsewhere/a.wav")
    for options in ({"language": "german", "formats": ["vtt"]}, {"language": "klingon"}, {"formats": ["doc"]}):
        body = json.dumps({"bucket": stack.bucket, "key": "elsewhere/a.wav", "options": options})
        aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=body)
    worker.work(shift, queue, ONCE)
    (said,) = json_below(f"s3://{stack.bucket}/results/").values()
    assert (said["options"]["language"], set(said["files"])) == ("de", {"vtt"})
    failed = json_below(f"s3://{stack.bucket}/failed/").values()
    assert [one["error"]["code"] for one in failed] == ["unsupported_option"] * 2


@pytest.mark.parametrize("key", ["uploads/../../x", "uploads/-rf"])
def test_a_key_that_is_made_to_harm_is_refused(shift, queue, stack, key):
    """It is never fetched; its failure says why, under a name that leads nowhere."""
    body = json.dumps({"bucket": stack.bucket, "key": key, "version_id": "v1"})
    aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=body)
    worker.work(shift, queue, ONCE)
    ((address, said),) = json_below(f"s3://{stack.bucket}/failed/").items()
    assert said["error"]["code"] == "refused_key"
    assert ".." not in address


def test_a_bucket_that_the_worker_was_not_told_is_refused(shift, queue, stack):
    """Whoever may send a message must not choose what the worker's role reads."""
    aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody='{"bucket": "another-bucket", "key": "secret"}')
    worker.work(shift, queue, ONCE)
    assert counts(stack.queue_url) == (0, 0)
    assert counts(stack.dead_letter_url) == (1, 0)


@pytest.mark.parametrize("own", ["results/a.wav", "failed/a.wav", "work/a.wav"])
def test_what_a_worker_wrote_is_no_recording(shift, queue, stack, recording, own):
    """A notification without a prefix announces our own files too: they end there."""
    storage.upload(recording, f"s3://{stack.bucket}/{own}")
    aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=json.dumps({"bucket": stack.bucket, "key": own}))
    worker.work(shift, queue, ONCE)
    assert counts(stack.queue_url) == (0, 0)
    assert json_below(f"s3://{stack.bucket}/") == {}


def test_the_next_recording_is_decoded_while_the_model_works(shift, queue, stack, tmp_path):
    """When the model comes to a recording, the sound is there already."""
    for number in range(3):
        storage.upload(tone(tmp_path / "a.wav", 1 + number), f"s3://{stack.bucket}/uploads/{number}.wav")
    waiting = []

    class Slow(Refusing):
        def transcribe(self, windows, decoding):
            time.sleep(1.0)
            waiting.append(sorted(path.name for path in shift.folder.rglob("*.wav")))
            return self.engine.transcribe(windows, decoding)

    engine = Slow(shift.desk.handle.engine, ZeroDivisionError(), 0)
    shift.desk = replace(shift.desk, handle=replace(shift.desk.handle, engine=engine))
    worker.work(shift, queue, ONCE)
    assert len(waiting[0]) == 3


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


def queue_of(stack):
    """Return the arguments by which a worker serves a stack."""
    return ("--queue-url", stack.queue_url, "--bucket", stack.bucket)


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
def served(emulator, model, tmp_path_factory):
    """One run of a real worker process: a good recording with an odd name, a text named .wav, and poison."""
    stack, folder = make_stack("shift"), tmp_path_factory.mktemp("shift")
    root = f"s3://{stack.bucket}"
    storage.upload(tone(folder / "a.wav", 2), f"{root}/{ODD}")
    storage.store(f"{root}/uploads/text.wav", b"this is no sound")
    storage.store(f"{root}/uploads/", b"")
    done = run_worker(*queue_of(stack), "--model", model, home=folder / "home")
    return stack, done, json_below(f"{root}/results/"), json_below(f"{root}/failed/")


def json_below(address):
    """Return the json documents below an address, by address."""
    return {found: document(storage.read(found)) for found in storage.listing(address) if found.endswith(".json")}


def test_a_worker_process_empties_the_queue(served):
    """All messages are done with, the corrupt recording's too, and nothing went to the dead letters."""
    stack, done, _, _ = served
    assert done.returncode == 0, done.stderr
    assert counts(stack.queue_url) == (0, 0)
    assert counts(stack.dead_letter_url) == (0, 0)
    assert sorted(json.loads(line)["status"] for line in done.stdout.splitlines()) == ["COMPLETED", "FAILED"]


def test_a_result_names_its_files_and_they_are_what_it_says(served):
    """Who reads the json can trust the files beside it: each has the hash and the size that stand there."""
    stack, _, results, _ = served
    ((address, said),) = results.items()
    assert address.startswith(f"s3://{stack.bucket}/results/{ODD}/{said['input']['identity']}/")
    assert said["status"] == "COMPLETED"
    assert set(said["files"]) == {"txt", "srt", "vtt"}
    for file in said["files"].values():
        content = storage.read(file["address"])
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file["sha256"], file["size"])


def test_a_result_says_which_recording_it_is_of(served):
    """The json has the recording's address and version, and its place is its identity's."""
    stack, _, results, _ = served
    (said,) = results.values()
    recording = f"s3://{stack.bucket}/{ODD}"
    version = storage.version(recording)
    upload = Upload(f"s3://{stack.bucket}", ODD, version, version)
    assert said["input"]["recording"] == recording
    assert said["input"]["version_id"] == version
    model = ModelFacts(**said["model"])
    assert said["input"]["identity"] == names.identity(upload, model, Decoding(), ("json", "txt", "srt", "vtt"))


def test_a_corrupt_recording_has_its_failure_with_a_reason(served):
    """It is told, by a code and in words, and not tried again."""
    stack, done, _, failed = served
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


@pytest.fixture(scope="module")
def half_an_hour(tmp_path_factory, desk):
    """Make a recording of 30 minutes with something said every minute, and transcribe it undisturbed."""
    import numpy as np
    import torch

    sound, long = speech.samples(), np.zeros(1800 * 16_000, "<i2")
    for second in range(0, 1800, 60):
        start = second * 1000 % (len(sound) - 10 * 16_000)
        long[second * 16_000 : (second + 10) * 16_000] = sound[start : start + 10 * 16_000]
    path = speech.write(tmp_path_factory.mktemp("long") / "long.wav", long)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have
    try:
        alone = transcribe_file(path, Job(str(path), "nowhere"), desk.handle, Decoding(batch_size=2))
    finally:
        torch.set_num_threads(threads)
    return path, alone.transcript.text


def test_a_long_recording_goes_on_where_a_worker_left_it(emulator, half_an_hour, model, tmp_path):
    """One is told to stop, the next is killed: no time more than a batch is done twice, and the words are right."""
    path, wanted = half_an_hour
    stack = make_stack("resume", 6)
    root = f"s3://{stack.bucket}"
    storage.upload(path, f"{root}/uploads/long.wav")
    (tmp_path / "scratch").mkdir()
    arguments = (*queue_of(stack), "--model", model, "--visibility-timeout", "6", "--save-seconds", "0")
    arguments += ("--batch-size", "2", "--stop-seconds", "2", "-f", "txt")  # too short for what is left
    settings = {"home": tmp_path / "home", "TMPDIR": str(tmp_path / "scratch"), "OMP_NUM_THREADS": "1"}

    stopped = strike(start_worker(*arguments, **settings), signal.SIGTERM, root, rows=8)
    assert stopped.returncode == 0, stopped.stderr
    assert counts(stack.queue_url) == (1, 0)
    assert list((tmp_path / "scratch").iterdir()) == []
    kept = rows_of(root)
    killed = strike(start_worker(*arguments, **settings), signal.SIGKILL, root, rows=kept + 8)
    assert killed.returncode == -signal.SIGKILL
    assert killed.fewest >= kept  # it went on, and has not begun anew
    kept = rows_of(root)
    assert json_below(f"{root}/results/") == {}
    time.sleep(6.5)
    last = start_worker(*arguments, "--once", **settings)
    out, said = last.communicate(timeout=120)
    assert last.returncode == 0, said
    ((_, found),) = json_below(f"{root}/results/").items()
    assert found["text"] == wanted
    (line,) = [line for line in map(json.loads, out.splitlines()) if line.get("status") == "COMPLETED"]
    assert line["retries"] == 2
    assert 60 * (kept - 3) <= line["resumed"] <= 60 * kept  # each minute has one row
    assert list(storage.listing(f"{root}/work/")) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def strike(process, number, root, rows):
    """Send a worker a signal once so many rows are saved; also tell how few rows there ever were meanwhile."""
    seen = []
    try:
        wait_until(lambda: seen.append(rows_of(root)) or seen[-1] >= rows, process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return SimpleNamespace(returncode=process.returncode, stderr=said, fewest=min(seen))


def test_a_folders_recording_goes_on_where_the_last_worker_left_it(shift, desk, tmp_path, capsys):
    """A new process counts its tries anew, and the work is kept nevertheless."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    tone(inbox / "a.wav", 100)
    os.utime(inbox / "a.wav", (1, 1))
    # a language that is told: to find it out ten windows are decoded at once
    shift.desk = replace(desk, output=str(tmp_path), decoding=replace(desk.decoding, batch_size=1, language="en"))

    class Stopping(Refusing):
        def transcribe(self, windows, decoding):
            shift.stop.ask("a test", 0.0)
            return self.engine.transcribe(windows, decoding)

    engine = Stopping(desk.handle.engine, ZeroDivisionError())
    shift.desk = replace(shift.desk, handle=replace(desk.handle, engine=engine))
    worker.work(shift, FolderSource(inbox, lambda _: True), Terms())
    again = replace(shift, desk=replace(shift.desk, handle=desk.handle), stop=Stop(), open=0)
    worker.work(again, FolderSource(inbox, lambda _: True), ONCE)
    broken_off, done = journal_of(capsys)
    assert (broken_off["status"], broken_off["reason"], broken_off["given_back"]) == ("AGAIN", "broken_off", 1)
    assert (done["status"], done["retries"]) == ("COMPLETED", 0)
    assert 20 < done["resumed"] < 40
    assert list(tmp_path.glob("work/*/*")) == []


def rows_of(root):
    """Return how many finished rows lie below a bucket's work/."""
    return max((len(load(address).rows) for address in storage.listing(f"{root}/work/")), default=0)


@pytest.fixture
def manager(tmp_path):
    """Listen as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(0)
        yield listener


def told(manager):
    """Return what the service manager was told."""
    said = []
    while True:
        try:
            said.append(manager.recv(100))
        except BlockingIOError:
            return said


def test_a_spot_notice_ends_a_worker_and_gives_its_messages_back(stack, model, tmp_path, recording, manager):
    """Receiving stops; what can't end in time is visible again at once. systemd hears of all that."""
    storage.upload(tone(tmp_path / "long.wav", 3000), f"s3://{stack.bucket}/uploads/long.wav")
    with metadata() as server:
        said = {"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 16))}
        variables = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.endpoint}
        arguments = (*queue_of(stack), "--model", model, "--batch-size", "1", "--save-seconds", "0")
        arguments += ("--no-vad",)  # a tone is no speech
        process = start_worker(*arguments, home=tmp_path / "home", NOTIFY_SOCKET=manager.getsockname(), **variables)
        try:
            wait_until(lambda: rows_of(f"s3://{stack.bucket}") > 0, process)
            server.facts["spot/instance-action"] = json.dumps(said)
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert "a spot notice: terminate" in log
    assert counts(stack.queue_url) == (1, 0)
    said = told(manager)
    assert {b"READY=1", b"WATCHDOG=1"} <= set(said)
    assert said[-1] == b"STOPPING=1"


def test_a_job_that_hangs_is_given_back_and_the_worker_ends(stack, model, tmp_path, recording):
    """A model that never answers hears no signal: the watching thread ends the process, and nothing is hidden."""
    SqsSource(stack.queue_url).receive().finish()  # S3's test event
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    program = (
        "import time\nfrom run_transcription.engines import torch_engine\nfrom run_transcription.__main__ import main\n"
        "hear = torch_engine.TorchEngine.transcribe\n"
        "def hang(self, windows, decoding):\n"
        "    if len(windows[0]) == 16000: time.sleep(600)\n"
        "    return hear(self, windows, decoding)\n"
        "torch_engine.TorchEngine.transcribe = hang\nmain()\n"
    )
    arguments = ["worker", *queue_of(stack), "--model", model, "--stall-seconds", "10", "--no-vad"]
    environment = os.environ | {"TRANSCRIBE_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "no progress for 10 s: the job hangs" in done.stderr
    assert counts(stack.queue_url) == (1, 0)
    assert list(tmp_path.glob("transcribe-worker-*")) == []


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
