from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tiny_whisper
from fakes import tone
from hypothesis import given
from hypothesis import strategies as st

from run_transcription.demo import command, score
from run_transcription.demo.emulator import clean_environment, environment
from run_transcription.demo.processes import running
from run_transcription.errors import TranscriptionError

ROOT = Path(__file__).parent.parent


def demo(*arguments, scratch, **how):
    """Start the demo as its own process, with a temporary folder that tells its children from all others."""
    scratch.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "run_transcription", "demo", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "2", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def left_behind(scratch):
    """Return the processes that were started with a temporary folder, and what lies in there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(scratch).encode() in (process / "environ").read_bytes():
                found.append((process.name, (process / "cmdline").read_bytes()))
        except (OSError, PermissionError):
            continue
    return found, list(scratch.iterdir())


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory):
    """Make a model that writes nonsense."""
    return tiny_whisper.make(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def one(tmp_path):
    """Make a folder with one recording that nobody could understand."""
    folder = tmp_path / "one [recording]"
    folder.mkdir()
    tone(folder / "tone.wav", 1)
    (folder / "manifest.json").write_text(json.dumps([{"file": "tone.wav", "reference": "hello, world"}]))
    return folder


def test_the_demo_transcribes_its_recordings_word_for_word(tmp_path):
    """The main job, as a newcomer sees it: every transcript equals its reference, and nothing is left behind."""
    process = demo(scratch=tmp_path / "scratch")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err + out
    for sample in command.samples_in(command.RECORDINGS):
        said = " ".join(out.split()).lower()
        assert " ".join(score.words(sample.reference)) in said
        assert f"s3://{command.STACK}-000000000000-us-east-1/results/{sample.key}/" in out
    assert out.count("word error rate 0.00 %") == len(command.samples_in(command.RECORDINGS))
    assert re.search(r"decode +features +encode +generate +upload +wall +RTFx", out)
    assert left_behind(tmp_path / "scratch") == ([], [])


def test_a_wrong_transcript_fails_the_demo(nonsense, one, tmp_path):
    """A model that hears something else is shown with its errors, and ends with status 1."""
    process = demo("--model", nonsense, "--recordings", one, scratch=tmp_path / "scratch")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert err.endswith("Error: not every transcript equals its reference\n")
    assert "0 of 1 transcripts equal their reference" in out
    assert left_behind(tmp_path / "scratch") == ([], [])


def test_a_worker_that_cannot_start_ends_the_demo(one, tmp_path):
    """Instead of waiting for ever it says in one line what the worker said last."""
    process = demo("--model", tmp_path / "no-model", "--recordings", one, scratch=tmp_path / "scratch")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.search(r"Error: the worker ended with status 1: .*no-model", err)
    assert "Traceback" not in err
    assert left_behind(tmp_path / "scratch") == ([], [])


@pytest.mark.parametrize(
    ("number", "status", "moment"),
    [(signal.SIGINT, 130, "starting S3"), (signal.SIGTERM, 143, "loads its model"), (signal.SIGHUP, 129, "loads its")],
)
def test_an_interrupted_demo_leaves_nothing(nonsense, one, tmp_path, *, number, status, moment):
    """Ctrl-C, kill and a closed terminal end the emulator and the worker too, and remove the temporary folder."""
    process = demo("--model", nonsense, "--recordings", one, scratch=tmp_path / "scratch")
    for line in process.stderr:
        if moment in line:
            break
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert left_behind(tmp_path / "scratch") == ([], [])


def test_only_this_machine_reaches_the_emulator(emulator):
    """It listens on 127.0.0.1 alone: another address of the same machine is refused."""
    port = urlsplit(os.environ["AWS_ENDPOINT_URL"]).port
    socket.create_connection(("127.0.0.1", port), timeout=2).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=2)


def test_nothing_of_a_real_account_reaches_the_emulated_one(monkeypatch):
    """A user's profile, endpoints and options must neither be used nor changed by the demo."""
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.com")
    monkeypatch.setenv("TRANSCRIBE_QUEUE_URL", "https://sqs.example.com/q")
    with environment(clean_environment()):
        assert not [name for name in os.environ if name.startswith(("AWS_", "TRANSCRIBE_"))]
    assert os.environ["AWS_PROFILE"] == "production"


def test_a_program_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    """A child that hangs does not outlive the block."""
    monkeypatch.setattr("run_transcription.demo.processes.STOP_SECONDS", 0.3)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    with running([sys.executable, "-c", stubborn], os.environ, log) as process:
        while "up" not in log.read_text():
            time.sleep(0.02)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_moment_of_starting_leaves_no_child(tmp_path, monkeypatch, number):
    """Between the start of a child and the moment that it is known a signal must wait, and then count."""
    children, popen = [], subprocess.Popen

    def start(*arguments, **settings):
        children.append(popen(*arguments, **settings))
        signal.raise_signal(number)
        return children[0]

    monkeypatch.setattr("run_transcription.demo.processes.subprocess.Popen", start)
    handler = signal.getsignal(number)
    with (
        pytest.raises((KeyboardInterrupt, SystemExit)),
        command.clean_exit(),
        running([sys.executable, "-c", "import time; time.sleep(60)"], os.environ, tmp_path / "log"),
    ):
        time.sleep(60)
    (child,) = children
    ended = child.returncode
    child.kill()
    assert ended == -signal.SIGTERM
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize("manifest", [None, "{", "[]", "[7]", '[{"file": "absent.wav", "reference": ""}]', '{"a": 1}'])
def test_a_bad_manifest_is_one_line(tmp_path, manifest):
    """Whatever is wrong with a folder of recordings is said by name."""
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(TranscriptionError, match=r"manifest\.json"):
        command.samples_in(tmp_path)


def test_every_recording_has_its_reference_beside_it():
    """The text that a person reads and the manifest that the demo reads say the same."""
    for sample in command.samples_in(command.RECORDINGS):
        assert score.words(sample.path.with_suffix(".txt").read_text(encoding="utf-8")) == score.words(sample.reference)


def test_words_are_compared_without_case_and_punctuation():
    """Only what is spoken counts; umlauts do."""
    assert score.words(" Fünf,  ZULU — two. ") == ["fünf", "zulu", "two"]


@pytest.mark.parametrize(
    ("reference", "heard", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a x c", 1),
        ("a b c", "a c", 1),
        ("a b", "a b b", 1),
        ("a b c", "", 3),
        ("", "a", 1),
    ],
)
def test_word_errors_are_replacements_losses_and_inventions(reference, heard, errors):
    """Each kind of error counts once."""
    assert score.word_errors(reference.split(), heard.split()) == errors


WORDS = st.lists(st.sampled_from("abc"), max_size=7)


@given(WORDS, WORDS, WORDS)
def test_word_errors_are_a_distance(one, two, three):
    """Nothing is far from itself, there and back is as far, and a way around is no shorter."""
    assert score.word_errors(one, one) == 0
    assert score.word_errors(one, two) == score.word_errors(two, one)
    assert score.word_errors(one, three) <= score.word_errors(one, two) + score.word_errors(two, three)


@given(WORDS, WORDS)
def test_words_are_aligned_in_order(one, two):
    """Each word of both sides is in one pair, in its order, and no pair is empty."""
    pairs = score.aligned(one, two)
    assert [i for i, _ in pairs if i is not None] == list(range(len(one)))
    assert [j for _, j in pairs if j is not None] == list(range(len(two)))
    assert (None, None) not in pairs


def test_a_lost_and_an_invented_word_have_no_other():
    """Words that are alike are paired, so what was lost or invented is left alone."""
    assert score.aligned("abc", "ac") == [(0, 0), (1, None), (2, 1)]
    assert score.aligned("ac", "abc") == [(0, 0), (None, 1), (1, 2)]


def test_invention_in_silence_is_an_error():
    """Words where there are none must not divide by nothing, nor look right."""
    assert score.word_error_rate("", "thank you") == 2.0
    assert score.word_error_rate("one two three four", "one two three five") == 0.25
