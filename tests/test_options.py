"""Every option on every path: it arrives, and it changes what comes out, or it is refused by its name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_whisper
from click.testing import CliRunner
from fakes import document, tone

from run_transcription import (
    asked,
    aws,
    combinations,
    decoding_table,
    direct_transcribe,
    fast_transcribe,
    optimized_loader,
    storage,
    subtitles,
    worker,
)
from run_transcription.audio import open_recording
from run_transcription.demo.command import RECORDINGS
from run_transcription.errands import Desk, Shift
from run_transcription.errors import Rejected, TranscriptionError
from run_transcription.interruption import Stop
from run_transcription.leases import Heart, Keeper
from run_transcription.records import SAMPLE_RATE, Decoding, ModelSpec
from run_transcription.sources import SqsSource

BEAMS, TIMED, HOT = {"beam-size": "2"}, {"word-timestamps": "true"}, {"temperature": "0.4"}
LINES = TIMED | {"max-line-width": "30"}
EXAMPLES = {  # value as text, the field that it makes, and what has to be given with it
    "language": ("German", "de", {}),
    "languages": ("en, German", ("en", "de"), {}),
    "language-detection-threshold": ("0.25", 0.25, {}),
    "task": ("translate", "translate", {}),
    "channels": ("split", "split", {}),
    "clip-timestamps": ("0,0.5,0.75", (0.0, 0.5, 0.75), {}),
    "chunk-length": ("12.5", 12.5, {}),
    "batch-size": ("3", 3, {}),
    "short-windows": ("true", True, {}),
    "vad": ("false", False, {}),
    "vad-threshold": ("0.75", 0.75, {"vad": "true"}),
    "initial-prompt": ("Jörg, „Groß-Gerau“ <x> & 100 %", "Jörg, „Groß-Gerau“ <x> & 100 %", {}),
    "hotwords": ("alpha bravo", "alpha bravo", {}),
    "condition-on-previous-text": ("true", True, {}),
    "suppress-tokens": ("-1,7", (-1, 7), {}),
    "temperature": ("0.4", 0.4, {}),
    "temperature-increment-on-fallback": ("0.5", 0.5, {}),
    "best-of": ("3", 3, HOT),
    "beam-size": ("2", 2, {}),
    "patience": ("2.0", 2.0, BEAMS),
    "length-penalty": ("0.5", 0.5, {"best-of": "3"}),
    "compression-ratio-threshold": ("3.5", 3.5, {}),
    "logprob-threshold": ("-2.5", -2.5, {}),
    "no-speech-threshold": ("0.25", 0.25, {}),
    "sequential": ("true", True, {}),
    "word-timestamps": ("true", True, {}),
    "max-line-width": ("30", 30, TIMED),
    "max-line-count": ("2", 2, LINES),
    "max-words-per-line": ("4", 4, TIMED),
    "highlight-words": ("true", True, TIMED),
    "captions": ("true", True, {}),
}
SETS = {  # options that go together, so that few recordings have them all
    "beams": ["languages", "language-detection-threshold", "vad-threshold", "beam-size", "patience", "captions"],
    "sequential": ["sequential", "max-words-per-line"],
}
SETS["chance"] = [
    name for name in EXAMPLES if name != "batch-size" and not any(name in others for others in SETS.values())
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The demo model, with what a worker is told: a tone is loud, but no speech."""
    handle = optimized_loader.load(ModelSpec("demo", dtype="float32", device="cpu"))
    return Desk(handle, handle.engine.check(Decoding(vad=False)), ("json", "srt"))


@pytest.fixture(scope="module")
def demo(desk):
    """The demo model's engine."""
    return desk.handle.engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model with random weights, whose text changes with everything."""
    folder = tiny_whisper.make(tmp_path_factory.mktemp("options") / "tiny", seed=1)
    home = tmp_path_factory.mktemp("home")
    return optimized_loader.load(ModelSpec(str(folder), device="cpu", dtype="float32", home=home)).engine


@pytest.fixture
def talk(tmp_path):
    """A second of a tone."""
    return tone(tmp_path / "talk.wav", 1)


def field_of(name):
    """Return the name of an option's field."""
    return name.replace("-", "_")


def seen(value):
    """Return a value as it is read back from json."""
    return json.loads(json.dumps(value))


def test_every_field_has_its_option_and_its_example():
    """None can be added without being tried on every path here."""
    fields = {field.name for field in dataclasses.fields(Decoding)}
    assert {*decoding_table.options()} | decoding_table.WORKERS_OWN == fields
    assert {field_of(name) for name in EXAMPLES} == fields


def together(names):
    """Return options with what each of them needs beside it."""
    given = {field: text for name in names for field, text in EXAMPLES[name][2].items()}
    return given | {name: EXAMPLES[name][0] for name in names}


def on_the_command_line(given):
    """Return options as words of a command line."""
    for name, text in given.items():
        if text in {"true", "false"}:
            yield f"--{'no-' if text == 'false' else ''}{name}"
        else:
            yield from (f"--{name}", text)


@pytest.fixture
def loaded(desk, monkeypatch):
    """Let the command find its model loaded."""
    monkeypatch.setattr(fast_transcribe.optimized_loader, "load", lambda *_, **__: desk.handle)
    monkeypatch.setattr(fast_transcribe, "Timeline", lambda: SimpleNamespace(watch=lambda handle: handle, mark=print))


def transcribe(recordings, given):
    """Call the command with options beside a recording, and return what its json says."""
    out = recordings.parent / "out"
    words = [recordings, "-o", out, "-f", "json", "-f", "srt"]
    done = CliRunner().invoke(fast_transcribe.transcribe, [*map(str, words), *on_the_command_line(given)])
    assert done.exit_code == 0, done.stderr
    return document((out / "talk.json").read_bytes())["options"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_options_of_the_command_line_arrive(loaded, talk, name):
    """Each option stands in the result of a file as it was given."""
    text, value, more = EXAMPLES[name]
    options = transcribe(talk, {"vad": "false"} | more | {name: text})
    assert options[field_of(name)] == seen(value)


@pytest.mark.parametrize("names", SETS.values(), ids=SETS)
def test_options_of_a_folder_arrive(loaded, tmp_path, names):
    """So does each in the result of a folder's recording."""
    folder = tmp_path / "talks"
    folder.mkdir()
    tone(folder / "talk.wav", 1)
    options = transcribe(folder, together(names))
    assert {name: options[field_of(name)] for name in names} == {name: seen(EXAMPLES[name][1]) for name in names}


@pytest.mark.parametrize("way", ["job", "metadata"])
def test_options_of_a_recording_arrive(desk, stack, talk, tmp_path, way):
    """In a job and in an object's metadata: each recording has its own, and its result says what was asked."""
    (tmp_path / "scratch").mkdir()
    shift = Shift(replace(desk, buckets=frozenset({stack.bucket})), tmp_path / "scratch", Stop(), Heart())
    queue = SqsSource(stack.queue_url, Keeper(30), poll_seconds=0)
    queue.receive().finish()  # S3's test event
    asked_for = {}
    for number, names in SETS.items():
        given = together(names)
        key = f"{'uploads' if way == 'metadata' else 'elsewhere'}/{number}.wav"
        asked_for[f"s3://{stack.bucket}/{key}"] = names
        metadata = asked.as_metadata(asked.from_job(given)) if way == "metadata" else {}
        storage.upload(talk, f"s3://{stack.bucket}/{key}", metadata=metadata)
        if way == "job":
            body = {"bucket": stack.bucket, "key": key, "options": given}
            aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=json.dumps(body))
    worker.work(shift, queue, worker.Terms(once=True))
    results = [address for address in storage.listing(f"s3://{stack.bucket}/results/") if address.endswith("json")]
    found = {said["input"]["recording"]: said for said in map(document, map(storage.read, results))}
    assert found.keys() == asked_for.keys(), [*storage.listing(f"s3://{stack.bucket}/failed/")]
    for address, names in asked_for.items():
        for name in names:
            assert found[address]["options"][field_of(name)] == seen(EXAMPLES[name][1])
            assert found[address]["input"]["options"][name] == EXAMPLES[name][0]


@pytest.mark.parametrize("way", ["job", "metadata"])
def test_what_is_not_known_or_not_valid_is_refused_by_name(desk, stack, talk, tmp_path, way):
    """The recording has a failure that names the option, and the message is done with; nothing is a crash."""
    wrong = {
        "volume": "11",
        "batch-size": "1000000",
        "language": "klingon",
        "task": "sing",
        "temperature": "nan",
        "beam-size": "1e9",
        "clip-timestamps": "5,4",
        "suppress-tokens": "999999",
        "initial-prompt": "<|endoftext|>",
        "formats": "json,doc",
        "max-line-width": "20",
        "vad": "perhaps",
    }
    (tmp_path / "scratch").mkdir()
    shift = Shift(replace(desk, buckets=frozenset({stack.bucket})), tmp_path / "scratch", Stop(), Heart())
    queue = SqsSource(stack.queue_url, Keeper(30), poll_seconds=0)
    queue.receive().finish()
    for name, text in wrong.items():
        key = f"{'uploads' if way == 'metadata' else 'elsewhere'}/{name}.wav"
        metadata = asked.as_metadata(((name, text),)) if way == "metadata" else {}
        storage.upload(talk, f"s3://{stack.bucket}/{key}", metadata=metadata)
        if way == "job":
            body = json.dumps({"bucket": stack.bucket, "key": key, "options": {name: text}})
            aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=body)
    if way == "job":
        odd = {"hotwords": {"a": [1]}, "initial_prompt": "\ud800"}
        for name, value in odd.items():
            body = json.dumps({"bucket": stack.bucket, "key": "elsewhere/volume.wav", "options": {name: value}})
            aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=body)
            wrong |= {f"{name}": "odd"}
    worker.work(shift, queue, worker.Terms(once=True))
    assert not [*storage.listing(f"s3://{stack.bucket}/results/")]
    failures = [document(storage.read(address)) for address in storage.listing(f"s3://{stack.bucket}/failed/")]
    said = [failure["error"] for failure in failures]
    assert {error["code"] for error in said} == {"unsupported_option"}
    names = {"language": "klingon", "formats": "doc", "suppress-tokens": "999999"}
    for name in wrong:
        assert [error for error in said if names.get(name, name.replace("_", "-")) in error["message"]], name
    assert len(said) == len(wrong)


def test_metadata_are_ascii_and_small():
    """Any text comes back as it was; what S3 would not keep is said, with the option to shorten."""
    given = asked.from_job({"initial_prompt": "Jörg – 東京, 100 %\n„x“", "language": "de", "clip_timestamps": [1, 2.5]})
    metadata = asked.as_metadata(given)
    assert all(text.isascii() and text.isprintable() for text in metadata.values())
    assert asked.from_metadata({name.upper(): text for name, text in metadata.items()} | {"other": "x"}) == given
    assert dict(given)["clip-timestamps"] == "1,2.5"
    with pytest.raises(TranscriptionError, match="shorten --initial-prompt"):
        asked.as_metadata(asked.from_job({"initial_prompt": "東" * 300, "language": "ja"}))
    broken = asked.from_metadata({"transcribe-hotwords": "%ff"})
    with pytest.raises(Rejected, match="hotwords"):
        decoding_table.with_given(Decoding(), broken)


# what an option changes: a recording, options, and what is to be seen of it, beside the transcript without
REFUSED = (  # by --sequential
    *("chunk_length", "batch_size", "short_windows", "best_of", "beam_size", "patience", "length_penalty"),
    "compression_ratio_threshold",
)


def heard(name, seconds):
    """Return the beginning of one of the demo's recordings."""
    with open_recording(RECORDINGS / name) as reader:
        return next(reader.blocks())[: round(seconds * SAMPLE_RATE)]


def noise(seconds):
    """Return noise, in which a model with random weights hears something."""
    return (np.random.default_rng(5).standard_normal(seconds * SAMPLE_RATE) * 0.1).astype(np.float32)


SOUNDS = {
    "english": lambda: heard("call-signs.mp3", 9.6),
    "german": lambda: heard("ziffern.m4a", 9.6),
    "tone": lambda: (0.3 * np.sin(np.arange(3 * SAMPLE_RATE) / 5)).astype(np.float32),
    "noise": lambda: noise(7),
    "longer noise": lambda: noise(33),  # more than a chunk
}
QUIET = {"temperature_increment_on_fallback": 0.0}  # one attempt
LOUD = QUIET | {"vad": False, "language": "en"}
SAID = [  # option, its value, the sound, what else is set, and what it changes: with it, and without it
    ("language", "de", "english", {}, lambda on, off: (on.language, off.language) == ("de", "en")),
    ("languages", ("de",), "english", {}, lambda on, off: (on.language, off.language) == ("de", "en")),
    (
        "language_detection_threshold",
        1.0,
        "english",
        {},
        lambda on, off: "language_in_doubt" in {*on.quality.reasons} - {*off.quality.reasons},
    ),
    ("task", "translate", "german", {}, lambda on, off: (on.task, on.text != off.text) == ("translate", True)),
    (
        "clip_timestamps",
        (2.0, 4.0),
        "english",
        {},
        lambda on, off: on.segments[-1].end <= 4.1 < off.segments[-1].end,
    ),
    ("chunk_length", 4.0, "english", {}, lambda on, off: len(seeks(on)) > len(seeks(off))),
    ("short_windows", True, "noise", LOUD, lambda on, off: on.text != off.text),
    ("vad", False, "tone", {}, lambda on, off: on.quality.coverage is not None and off.quality.coverage is None),
    ("vad_threshold", 1.0, "english", {}, lambda on, off: on.quality.coverage is None is not off.quality.coverage),
    ("initial_prompt", "something else", "noise", LOUD, lambda on, off: on.text != off.text),
    ("hotwords", "something", "noise", LOUD, lambda on, off: on.text != off.text),
    ("condition_on_previous_text", True, "longer noise", LOUD, lambda on, off: on.text != off.text),
    ("suppress_tokens", (-1, *range(100)), "noise", LOUD, lambda on, off: on.text != off.text),
    ("temperature", 0.9, "noise", LOUD, lambda on, off: on.text != off.text),
    (
        "temperature_increment_on_fallback",
        0.5,
        "noise",
        LOUD | {"logprob_threshold": -0.001},
        lambda on, off: on.text != off.text or on.quality.retried_rows > off.quality.retried_rows,
    ),
    ("best_of", 4, "noise", LOUD | {"temperature": 0.9}, lambda on, off: on.text != off.text),
    ("beam_size", 3, "noise", LOUD, lambda on, off: on.text != off.text),
    (
        "compression_ratio_threshold",
        0.0,
        "english",
        {"temperature_increment_on_fallback": 1.0},
        lambda on, off: on.quality.retried_rows > off.quality.retried_rows,
    ),
    (
        "logprob_threshold",
        -0.001,
        "noise",
        LOUD | {"temperature_increment_on_fallback": 1.0, "logprob_threshold": -10.0},
        lambda on, off: on.text != off.text or "logprob" in {*on.quality.reasons} - {*off.quality.reasons},
    ),
    (
        "no_speech_threshold",
        0.0,
        "noise",
        LOUD | {"logprob_threshold": 0.0},
        lambda on, off: (on.text, off.text != "") == ("", True),
    ),
    ("word_timestamps", True, "english", {}, lambda on, off: on.segments[0].words and not off.segments[0].words),
    ("captions", True, "english", {}, lambda on, off: cues(on, captions=True) != cues(off)),
]
SUBTITLES = [
    ("max_line_width", 12, {}),
    ("max_line_count", 1, {"max_line_width": 12}),
    ("max_words_per_line", 2, {}),
    ("highlight_words", True, {}),
]


def seeks(transcript):
    """Return where the chunks of a transcript begin."""
    return {segment.seek for segment in transcript.segments}


def cues(transcript, **options):
    """Return the cues of a transcript's subtitles."""
    return [*subtitles.cues(transcript.segments, Decoding(**options))]


_without = {}


def transcribed(engine, sound, options):
    """Return a transcript; each is made once."""
    key = (id(engine), sound, json.dumps(options, sort_keys=True))
    if key not in _without:
        _without[key] = direct_transcribe.transcribe([SOUNDS[sound]()], engine, Decoding(**options))[0]
    return _without[key]


@pytest.mark.parametrize("sequential", [False, True], ids=["batches", "sequential"])
@pytest.mark.parametrize(("name", "value", "sound", "more", "changes"), SAID, ids=[row[0] for row in SAID])
def test_no_option_is_left_unused(demo, tiny, name, value, sound, more, changes, sequential):
    """In batches and in the long form each option shows in the transcript, or is refused by its name."""
    engine = tiny if "noise" in sound else demo
    base = more | ({"sequential": True} if sequential else {})
    if sequential and name in REFUSED:
        with pytest.raises(Rejected, match=f"--{name.replace('_', '-')} has no use with --sequential"):
            engine.check(Decoding(**base | {name: value}))
        return
    assert changes(transcribed(engine, sound, base | {name: value}), transcribed(engine, sound, base))


@pytest.mark.parametrize(("name", "value", "more"), SUBTITLES)
def test_no_layout_is_left_unused(demo, name, value, more):
    """Each option of subtitles changes their cues."""
    found = transcribed(demo, "english", {"word_timestamps": True})
    assert cues(found, **more, **{name: value}) != cues(found, **more)


def test_the_batch_size_is_that_of_the_engines_calls(tiny):
    """Chunks are decoded so many at a time."""
    sizes = []

    class Watching:
        facts, tokenizer, check = tiny.facts, tiny.tokenizer, staticmethod(tiny.check)

        def transcribe(self, windows, decoding):
            sizes.append(len(windows))
            return tiny.transcribe(windows, decoding)

    direct_transcribe.transcribe([SOUNDS["noise"]()], Watching(), Decoding(**LOUD, batch_size=3, chunk_length=2))
    assert max(sizes) == 3


def test_what_is_tried_elsewhere_is_all_the_rest():
    """Every field has its effect shown: here, in test_beam.py (patience, length_penalty) or test_channels.py."""
    here = {row[0] for row in SAID} | {row[0] for row in SUBTITLES} | {"batch_size", "sequential"}
    assert {field.name for field in dataclasses.fields(Decoding)} - here == {"patience", "length_penalty", "channels"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patience": 2.0}, "--patience has no use without --beam-size"),
        ({"length_penalty": 1.0}, "--length-penalty has no use without"),
        ({"beam_size": 2, "temperature": 0.5}, "--beam-size has no use with a --temperature above 0"),
        ({"best_of": 2, "temperature_increment_on_fallback": 0.0}, "--best-of has no use"),
        ({"max_line_width": 20}, "--max-line-width has no use without --word-timestamps"),
        ({"word_timestamps": True, "max_line_count": 2}, "--max-line-count has no use without --max-line-width"),
        ({"captions": True, "highlight_words": True}, "--highlight-words has no use with --captions"),
        ({"word_timestamps": True, "max_line_width": 9, "max_words_per_line": 2}, "--max-words-per-line has no use"),
        ({"vad": False, "vad_threshold": 0.7}, "--vad-threshold has no use with --no-vad"),
        ({"sequential": True, "condition_on_previous_text": True, "hotwords": "x"}, "--hotwords has no use"),
    ],
)
def test_what_would_change_nothing_is_refused(options, said):
    """In combination with others, an option without effect is named; so are options of files that nobody writes."""
    with pytest.raises(Rejected, match=said) as caught:
        combinations.refuse_unused(Decoding(**options))
    assert caught.value.code == "unsupported_option"
    combinations.refuse_unused(Decoding())


def test_layouts_of_files_that_nobody_writes_are_refused():
    """The worker and the command line know the formats."""
    timed = replace(Decoding(), word_timestamps=True)
    for layout in ({"max_words_per_line": 3}, {"highlight_words": True}):
        combinations.refuse_unused(replace(timed, **layout), ("json", "vtt"))
        with pytest.raises(Rejected, match="has no use without srt or vtt"):
            combinations.refuse_unused(replace(timed, **layout), ("json", "txt"))
