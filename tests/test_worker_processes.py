from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from fakes import counts, tone
from faults import speech
from faults.imds import metadata
from working import json_below, queue_of, rows_of, start_worker, wait_until

from run_transcription import ec2, names, storage
from run_transcription.demo.emulator import make_stack
from run_transcription.fast_transcribe import transcribe_file
from run_transcription.records import Decoding, Job, ModelFacts
from run_transcription.sources import SqsSource
from run_transcription.uploads import Upload

ODD = "uploads/a b+ü%20 'x'.wav"


@pytest.fixture(scope="module")
def served(emulator, model, tmp_path_factory):
    """One run of a real worker process: a good recording with an odd name, a text named .wav, and poison."""
    stack, folder = make_stack("shift"), tmp_path_factory.mktemp("shift")
    root = f"s3://{stack.bucket}"
    storage.upload(tone(folder / "a.wav", 2), f"{root}/{ODD}")
    storage.store(f"{root}/uploads/text.wav", b"this is no sound")
    storage.store(f"{root}/uploads/", b"")
    process = start_worker(*queue_of(stack), "--model", model, "--once", home=folder / "home")
    out, err = process.communicate(timeout=300)
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    return stack, done, json_below(f"{root}/results/"), json_below(f"{root}/failed/")


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


def test_a_long_recording_goes_on_where_a_killed_worker_left_it(emulator, half_an_hour, model, tmp_path):
    """No more than a batch is done twice, the words are those of an undisturbed run, and nothing is left behind."""
    path, wanted = half_an_hour
    stack = make_stack("resume", 6)
    root, scratch = f"s3://{stack.bucket}", tmp_path / "scratch"
    storage.upload(path, f"{root}/uploads/long.wav")
    scratch.mkdir()
    arguments = (*queue_of(stack), "--model", model, "--visibility-timeout", "6", "--save-seconds", "0")
    arguments += ("--batch-size", "2", "-f", "txt")
    settings = {"home": tmp_path / "home", "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    killed = start_worker(*arguments, **settings)
    try:
        wait_until(lambda: rows_of(root) >= 16, killed)
    finally:
        killed.kill()
        killed.communicate()
    kept = rows_of(root)
    assert json_below(f"{root}/results/") == {}
    last = start_worker(*arguments, **settings)
    try:
        wait_until(lambda: json_below(f"{root}/results/") and counts(stack.queue_url) == (0, 0), last)
        last.terminate()
        out, said = last.communicate(timeout=60)
    finally:
        last.kill()
    assert last.returncode == 0, said
    ((_, found),) = json_below(f"{root}/results/").items()
    assert found["text"] == wanted
    (line,) = [line for line in map(json.loads, out.splitlines()) if line.get("status") == "COMPLETED"]
    assert line["retries"] == 1
    assert 60 * (kept - 3) <= line["resumed"] <= 60 * kept  # each minute has one row
    assert list(storage.listing(f"{root}/work/")) == []
    assert list(scratch.iterdir()) == []


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
    heard = []
    storage.upload(tone(tmp_path / "long.wav", 3000), f"s3://{stack.bucket}/uploads/long.wav")
    with metadata() as server:
        variables = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.endpoint}
        arguments = (*queue_of(stack), "--model", model, "--batch-size", "1", "--save-seconds", "0")
        arguments += ("--no-vad",)  # a tone is no speech
        process = start_worker(*arguments, home=tmp_path / "home", NOTIFY_SOCKET=manager.getsockname(), **variables)
        try:
            wait_until(lambda: heard.extend(told(manager)) or rows_of(f"s3://{stack.bucket}") > 0, process)
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + ec2.MARGIN + 1))
            server.facts["spot/instance-action"] = json.dumps({"action": "terminate", "time": at})
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert "a spot notice: terminate" in log
    assert counts(stack.queue_url) == (1, 0)
    heard += told(manager)
    assert {b"READY=1", b"WATCHDOG=1"} <= set(heard)
    assert heard[-1] == b"STOPPING=1"


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
    arguments = ["worker", *queue_of(stack), "--model", model, "--stall-seconds", "5", "--no-vad"]
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
    assert "no progress for 5 s: the job hangs" in done.stderr
    assert counts(stack.queue_url) == (1, 0)
    assert list(tmp_path.glob("transcribe-worker-*")) == []
