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
    submit,
    subtitles,
    worker,
)
from run_transcription.audio import open_recording
from run_transcription.demo.command import RECORDINGS
from run_transcription.errands import Desk, Shift
from run_transcription.errors import Rejected, TranscriptionError
from run_transcription.interruption import Stop
from run_transcription.leases import Heart, Keeper
from run_transcription.records import ENGINES, SAMPLE_RATE, Decoding, ModelSpec
from run_transcription.sources import SqsSource

BEAMS, TIMED, HOT = {"beam-size": "2"}, {"word-timestamps": "true"}, {"temperature": "0.4"}
LINES = TIMED | {"max-line-width": "30"}
BATCH = 4  # what the worker was told
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
    return Desk(handle, handle.engine.check(Decoding(vad=False, batch_size=BATCH)), ("json", "srt"))


@pytest.fixture(scope="module")
def demo(desk):
    """The demo model's engine."""
    return desk.handle.engine


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A model whose text changes with everything."""
    return str(tiny_whisper.make(tmp_path_factory.mktemp("options") / "tiny", seed=1))


@pytest.fixture(scope="module")
def engine_of(random_weights, desk, tmp_path_factory):
    """Return a function that loads the demo model, or the one with random weights, on an engine, once."""
    home = tmp_path_factory.mktemp("home")
    loaded = {("torch", "demo"): desk.handle.engine}

    def load(engine, model):
        if (engine, model) not in loaded:
            spec = ModelSpec(model, device="cpu", dtype="float32", engine=engine, home=home)
            loaded[engine, model] = optimized_loader.load(spec).engine
        return loaded[engine, model]

    return load


@pytest.fixture(scope="module")
def tiny(engine_of, random_weights):
    """The model with random weights."""
    return engine_of("torch", random_weights)


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


@pytest.fixture
def work(desk, stack, tmp_path):
    """A worker for the stack's bucket: called, it does all that waits there."""
    (tmp_path / "scratch").mkdir()
    shift = Shift(replace(desk, buckets=frozenset({stack.bucket})), tmp_path / "scratch", Stop(), Heart())
    queue = SqsSource(stack.queue_url, Keeper(30), poll_seconds=0)
    queue.receive().finish()  # S3's test event
    return lambda: worker.work(shift, queue, worker.Terms(once=True))


def hand_over(stack, talk, way, name, given):
    """Give a recording with options to the worker, in a job or in its metadata; return its address."""
    address = f"s3://{stack.bucket}/{'uploads' if way == 'metadata' else 'elsewhere'}/{name}.wav"
    storage.upload(talk, address, metadata=asked.as_metadata(asked.from_job(given)) if way == "metadata" else {})
    if way == "job":
        body = {"bucket": stack.bucket, "key": storage.split(address)[1], "options": given}
        aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=json.dumps(body))
    return address


@pytest.mark.parametrize("way", ["job", "metadata"])
def test_options_of_a_recording_arrive(work, stack, talk, way):
    """In a job and in an object's metadata: each recording has its own, and its result says what was asked.

    What the worker itself was told gives way to them: its --batch-size refuses no --sequential.
    """
    asked_for = {hand_over(stack, talk, way, kind, together(names)): names for kind, names in SETS.items()}
    work()
    results = [address for address in storage.listing(f"s3://{stack.bucket}/results/") if address.endswith("json")]
    found = {said["input"]["recording"]: said for said in map(document, map(storage.read, results))}
    assert found.keys() == asked_for.keys(), [*storage.listing(f"s3://{stack.bucket}/failed/")]
    for address, names in asked_for.items():
        for name in names:
            assert found[address]["options"][field_of(name)] == seen(EXAMPLES[name][1])
            assert found[address]["input"]["options"][name] == EXAMPLES[name][0]
    assert {said["options"]["batch_size"] for said in found.values()} == {BATCH, Decoding().batch_size}


def test_submit_sends_what_is_given(work, stack, talk):
    """What its command line says goes with the recording, letter by letter; all the rest is the worker's choice."""
    given = {"initial-prompt": " Jörg ", "temperature": "0.4", "formats": "srt"}
    words = ["--initial-prompt", " Jörg ", "--temperature", "0.4", "-f", "srt"]
    done = CliRunner().invoke(submit.submit, [str(talk), "--bucket", stack.bucket, *words])
    assert done.exit_code == 0, done.stderr
    work()
    results = storage.listing(f"s3://{stack.bucket}/results/")
    (said,) = [document(storage.read(address)) for address in results if address.endswith("json")]
    assert said["input"]["options"] == given
    assert {*said["files"]} == {"srt"}
    assert (said["options"]["initial_prompt"], said["options"]["batch_size"]) == (" Jörg ", BATCH)
    shown = {option.name for option in submit.submit.params if getattr(option, "show_default", False) is not False}
    assert not shown & {*decoding_table.options()}, "its help names a default that it does not send"


WRONG = {  # what a recording may ask for in vain: the option, its value, and what the refusal names
    "volume": ("11", "volume"),
    "batch-size": ("1000000", "batch-size"),
    "language": ("klingon", "klingon"),
    "task": ("sing", "task"),
    "temperature": ("nan", "temperature"),
    "beam-size": ("1e9", "beam-size"),
    "clip-timestamps": ("5,4", "clip-timestamps"),
    "suppress-tokens": ("999999", "999999"),
    "initial-prompt": ("<|endoftext|>", "initial-prompt"),
    "formats": ("json,doc", "doc"),
    "max-line-width": ("20", "max-line-width"),
    "vad": ("perhaps", "vad"),
}
ODD = {"hotwords": ({"a": [1]}, "hotwords"), "initial_prompt": ("\ud800", "initial-prompt")}  # only JSON can say it


@pytest.mark.parametrize(("way", "wrong"), [("job", WRONG | ODD), ("metadata", WRONG)], ids=["job", "metadata"])
def test_what_is_not_known_or_not_valid_is_refused_by_name(work, stack, talk, way, wrong):
    """The recording has a failure that names the option, and the message is done with; nothing is a crash."""
    named = {hand_over(stack, talk, way, name, {name: value}): word for name, (value, word) in wrong.items()}
    work()
    assert not [*storage.listing(f"s3://{stack.bucket}/results/")]
    failures = [document(storage.read(address)) for address in storage.listing(f"s3://{stack.bucket}/failed/")]
    said = {failure["input"]["recording"]: failure["error"] for failure in failures}
    assert said.keys() == named.keys()
    assert {error["code"] for error in said.values()} == {"unsupported_option"}
    assert [address for address, word in named.items() if word not in said[address]["message"]] == []


def test_metadata_are_ascii_and_small():
    """Any text comes back as it was; what S3 would not keep is said, with the option to shorten."""
    given = asked.from_job(
        {"initial_prompt": " Jörg – 東京,  100 %\n„x“ ", "language": "de", "clip_timestamps": [1, 2.5]}
    )
    metadata = asked.as_metadata(given)
    assert all(text.isascii() and text.isprintable() and " " not in text for text in metadata.values())
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


WAYS = {"sequential": ("torch", True)} | {engine: (engine, False) for engine in ENGINES}


@pytest.mark.parametrize(("kind", "sequential"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("name", "value", "sound", "more", "changes"), SAID, ids=[row[0] for row in SAID])
def test_no_option_is_left_unused(engine_of, random_weights, name, value, sound, more, changes, kind, sequential):
    """On each engine, and in the long form, each option shows in the transcript, or is refused by its name."""
    engine = engine_of(kind, random_weights if "noise" in sound else "demo")
    base = more | ({"sequential": True} if sequential else {})
    if sequential and name in REFUSED:
        with pytest.raises(Rejected, match=f"--{name.replace('_', '-')} has no use with --sequential"):
            direct_transcribe.transcribe([], engine, Decoding(**base | {name: value}))
        return
    if kind != "torch" and name == "short_windows":
        with pytest.raises(Rejected, match="--short-windows is of --engine torch"):
            engine.check(Decoding(**base | {name: value}))
        return
    assert changes(transcribed(engine, sound, base | {name: value}), transcribed(engine, sound, base))


def test_text_of_beams_that_fails_is_drawn_by_chance_next(tiny):
    """Beams are for temperature 0: a row that fails there is decoded again at the next one, as any other."""
    options = LOUD | {"beam_size": 2, "temperature_increment_on_fallback": 1.0, "logprob_threshold": -0.001}
    assert transcribed(tiny, "noise", options).quality.retried_rows > 0


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
        ({"temperature": 0.6, "temperature_increment_on_fallback": 0.5}, "on-fallback 0.5 leads above 1"),
        ({"max_line_width": 20}, "--max-line-width has no use without --word-timestamps"),
        ({"word_timestamps": True, "max_line_count": 2}, "--max-line-count has no use without --max-line-width"),
        ({"captions": True, "highlight_words": True}, "--highlight-words has no use with --captions"),
        ({"word_timestamps": True, "max_line_width": 9, "max_words_per_line": 2}, "--max-words-per-line has no use"),
        ({"vad": False, "vad_threshold": 0.7}, "--vad-threshold has no use with --no-vad"),
        ({"language": "de", "language_detection_threshold": 0.7}, "--language-detection-threshold has no use with"),
        ({"condition_on_previous_text": True, "batch_size": 2}, "--batch-size has no use with --condition-on"),
        ({"sequential": True, "condition_on_previous_text": True, "hotwords": "x"}, "--hotwords has no use"),
    ],
)
def test_what_would_change_nothing_is_refused(options, said):
    """In combination with others, an option without effect is named; so are options of files that nobody writes."""
    with pytest.raises(Rejected, match=said) as caught:
        combinations.refuse_unused(Decoding(**options))
    assert caught.value.code == "unsupported_option"
    combinations.refuse_unused(Decoding())


@pytest.mark.parametrize(
    ("option", "written", "others"),
    [
        ({"max_words_per_line": 3}, ("json", "vtt"), ("json", "txt")),
        ({"highlight_words": True}, ("srt",), ("html",)),
        ({}, ("html",), ("txt", "tsv", "png")),
    ],
)
def test_words_and_layouts_of_files_that_nobody_writes_are_refused(option, written, others):
    """The worker and the command line know the formats: the times of words don't show in the text alone."""
    wanted = Decoding(word_timestamps=True, **option)
    combinations.refuse_unused(wanted, written)
    with pytest.raises(Rejected, match=f"--{[*option, 'word_timestamps'][0].replace('_', '-')} has no use without srt"):
        combinations.refuse_unused(wanted, others)


@pytest.mark.parametrize(
    ("workers", "given", "left"),
    [
        ({"batch_size": 4}, {"sequential": True}, {}),
        ({"beam_size": 5, "patience": 2.0}, {"temperature": 0.4}, {}),
        ({"language_detection_threshold": 0.3}, {"language": "de"}, {}),
        ({"captions": True, "word_timestamps": True}, {"max_words_per_line": 4, "captions": False}, "word_timestamps"),
        ({"word_timestamps": True, "highlight_words": True}, {"captions": True}, "word_timestamps"),
    ],
)
def test_a_workers_own_options_give_way(workers, given, left):
    """An option of the worker's own that the recording's leave no use for is as if it was not given."""
    found = combinations.fitted(Decoding(**workers | given), given, ("json", "srt"))
    assert found == Decoding(**given | ({left: True} if left else {}))
    combinations.refuse_unused(found, ("json", "srt"))


def test_what_a_recording_asks_for_in_vain_is_refused():
    """It is not for the recording's own options to give way, nor for those that don't disturb."""
    with pytest.raises(Rejected, match="--max-line-width has no use with --captions"):
        combinations.fitted(Decoding(captions=True, max_line_width=20), {"max_line_width"}, ("json", "srt"))
    assert combinations.fitted(Decoding(captions=True), {"formats"}, ("json",)) == Decoding()
    assert combinations.fitted(Decoding(beam_size=5), {"language"}, ("json",)) == Decoding(beam_size=5)
