"""writers and schema: each format has the bytes that its readers expect, and the json keeps its promises."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import soundfile
import srt
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from run_transcription import schema, writers
from run_transcription.records import (
    AudioFacts,
    Decoding,
    Failure,
    Job,
    LoadReport,
    ModelFacts,
    Result,
    Segment,
    Skipped,
    StoredFile,
    Timing,
    Transcript,
    Word,
)

GOLDEN = Path(__file__).parent / "golden"
PUBLISHED = Path(__file__).parents[1] / "docs" / "result.schema.json"
NOWHERE = Path("no-recording-is-read.wav")
VALIDATOR = jsonschema.Draft202012Validator(schema.schema())


def segment(text: str, start: float = 0.0, end: float = 1.0, **changes: Any) -> Segment:
    """Return a segment with plausible values."""
    given = Segment(start, end, text, (11, 12, 13), 0, 0.0, -0.25, 1.1, 0.01, "en", 0.7788)
    return replace(given, **changes)


def completed(*segments: Segment) -> Result:
    """Return the result of a recording with these segments."""
    duration = segments[-1].end if segments else 1.0
    return Result(
        status="COMPLETED",
        job=Job("s3://bucket/uploads/a b.mp3", "s3://bucket/results/a b.mp3/1f/transcript", identity="1f"),
        options=Decoding(),
        model=ModelFacts("demo", "abc", "cpu", "float32", "sdpa"),
        load=LoadReport("mmap", 0.5, (Skipped("gpu_state", "no GPU"),)),
        transcript=Transcript("en", 0.98, "transcribe", duration, segments),
        audio=AudioFacts(duration, "mp3", "mp3float", 44_100, 2, 1000, warnings=("a damaged packet was passed over",)),
        timing=Timing(decode=0.1, wall=0.5),
        files={"srt": StoredFile("s3://bucket/results/x.srt", "0" * 64, 10)},
    )


def failed() -> Result:
    """Return the result of a recording that could not be opened."""
    error = Failure("not_audio", "the file is not audio that can be decoded")
    return replace(completed(), status="FAILED", transcript=None, audio=None, timing=Timing(), files={}, error=error)


def written(name: str, result: Result) -> bytes:
    """Return the bytes of a format that needs no recording."""
    return writers.FORMATS[name].write(result, NOWHERE)


def parsed(name: str, result: Result) -> Any:
    """Return the json of a format, which must be strict json."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(written(name, result), parse_constant=refuse)


@pytest.mark.parametrize("name", ["txt", "srt", "vtt", "tsv"])
def test_bytes_are_those_of_openai_whisper(name: str) -> None:
    """The four text formats equal what openai-whisper's own writers made of the same segments."""
    given = json.loads((GOLDEN / "segments.json").read_text(encoding="utf-8"))
    result = completed(*(segment(s["text"], s["start"], s["end"]) for s in given))
    assert written(name, result) == (GOLDEN / f"whisper.{name}").read_bytes()
    assert written(name, completed()) == (GOLDEN / f"silence.{name}").read_bytes()


@given(st.integers(0, 400 * 3_600_000))
def test_clock_counts_milliseconds(milliseconds: int) -> None:
    """Every time reads back as the milliseconds it was made of."""
    hours, minutes, seconds = writers.clock(milliseconds / 1000, ",", hours=True).split(":")
    whole, thousandths = seconds.split(",")
    assert len(minutes) == len(whole) == 2
    assert ((int(hours) * 60 + int(minutes)) * 60 + int(whole)) * 1000 + int(thousandths) == milliseconds


def test_all_is_every_format_but_the_picture() -> None:
    """`all` names the formats that need no second reading of the recording; extensions never collide."""
    assert set(writers.FORMATS) - set(writers.ALL) == {"png"}
    extensions = [writer.extension for writer in writers.FORMATS.values()]
    assert len(set(extensions)) == len(extensions)


@pytest.mark.parametrize(
    "result",
    [
        completed(),
        completed(segment(" Hello."), segment(" Bye.", 1, 2, words=(Word(" Bye.", 1.0, 2.0, 0.9),))),
        replace(completed(), transcript=replace(completed().transcript, language=None)),  # type: ignore[type-var]
        failed(),
        replace(failed(), audio=completed().audio),
    ],
    ids=["silence", "speech", "no language", "failed", "failed late"],
)
def test_json_fits_the_schema(result: Result) -> None:
    """Completed and failed results both fit the published schema."""
    VALIDATOR.validate(parsed("json", result))


def spoilt(path: str, value: object) -> dict[str, Any]:
    """Return a completed document with one value put at a dotted path."""
    document: dict[str, Any] = parsed("json", completed(segment(" Hello.")))
    *parents, name = path.split(".")
    place: Any = document
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[name] = value
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("surprise", 1),
        ("segments.0.surprise", 1),
        ("input.audio.surprise", 1),
        ("files.srt.sha256", "xyz"),
        ("schema_version", "2.0"),
        ("status", "IN_PROGRESS"),
        ("status", "FAILED"),
        ("error", {"code": "not_audio", "message": "failed, but completed"}),
        ("text", None),
        ("segments", None),
        ("segments.0.no_speech_prob", 1.5),
        ("segments.0.tokens", ["a"]),
        ("options.task", "summarise"),
        ("load.seconds", "1"),
    ],
)
def test_schema_is_strict(path: str, value: object) -> None:
    """Unknown fields, wrong types, impossible numbers and a status that contradicts the rest do not fit."""
    assert not VALIDATOR.is_valid(spoilt(path, value))


@pytest.mark.parametrize("name", parsed("json", failed()))
def test_schema_wants_every_field(name: str) -> None:
    """No field is ever left out, in completed and failed results."""
    for result in (completed(segment(" Hello.")), failed()):
        document = parsed("json", result)
        del document[name]
        assert not VALIDATOR.is_valid(document)


def test_failure_needs_a_known_reason() -> None:
    """A failed result without an error, or with a code that is on no list, does not fit."""
    document = parsed("json", failed())
    assert not VALIDATOR.is_valid(document | {"error": None})
    assert not VALIDATOR.is_valid(document | {"error": {"code": "bad_luck", "message": "x"}})
    assert not VALIDATOR.is_valid(document | {"text": "and yet it has a text"})


def test_published_schema_is_the_one_in_the_code() -> None:
    """docs/result.schema.json is what `run-transcription schema` prints, and itself a valid schema."""
    jsonschema.Draft202012Validator.check_schema(schema.schema())
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == schema.schema()


def fields_of(part: dict[str, Any], name: str = "") -> Iterator[str]:
    """Yield the dotted names of all fields that a schema describes; those of a list's items bear the list's name."""
    for field, inner in part.get("properties", {}).items():
        place = f"{name}.{field}".lstrip(".")
        yield place
        yield from fields_of(inner, place)
    for inner in (*part.get("anyOf", ()), part.get("items"), part.get("additionalProperties")):
        yield from fields_of(inner, name) if inner else ()


def test_no_field_is_renamed_within_a_major_version() -> None:
    """Every field that a reader of schema 1.x may rely on is still there under its name; new ones may join them.

    A name leaves this list only together with the 1 of the version.
    """
    promised = (GOLDEN / "fields-1.txt").read_text(encoding="utf-8").split()
    assert schema.SCHEMA_VERSION.startswith("1.")
    assert set(promised) <= set(fields_of(schema.schema()))


def test_json_is_a_superset_of_verbose_json() -> None:
    """OpenAI's field names hold OpenAI's values; words are left out where there are none, as openai/whisper does."""
    with_words = segment(" Bye.", 1, 2, words=(Word(" Bye.", 1.0, 2.0, 0.9),))
    document = parsed("json", completed(segment(" Hello."), with_words))
    assert {"task": "transcribe", "language": "en", "duration": 2.0, "text": " Hello. Bye."}.items() <= document.items()
    first, second = document["segments"]
    assert first == {
        "id": 0,
        "start": 0.0,
        "end": 1.0,
        "text": " Hello.",
        "tokens": [11, 12, 13],
        "seek": 0,
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "compression_ratio": 1.1,
        "no_speech_prob": 0.01,
        "language": "en",
        "confidence": 0.7788,
        "channel": None,
    }
    assert second["id"] == 1
    assert second["words"] == [{"word": " Bye.", "start": 1.0, "end": 2.0, "probability": 0.9}]


def test_envelope_says_how_the_result_came_about() -> None:
    """The strategy that won, what was skipped, the recording, the files and the speed stand in every json."""
    document = parsed("json", completed(segment(" Hello.", 0, 10), segment(" Bye.", 10, 20, tokens=(1,) * 9)))
    assert document["load"] == {
        "strategy": "mmap",
        "seconds": 0.5,
        "skipped": [{"strategy": "gpu_state", "reason": "no GPU"}],
    }
    assert document["input"]["recording"] == "s3://bucket/uploads/a b.mp3"
    assert document["input"]["audio"]["warnings"] == ["a damaged packet was passed over"]
    assert document["files"]["srt"]["sha256"] == "0" * 64
    assert document["timing"]["rtfx"] == pytest.approx(20 / 0.5)
    assert document["quality"]["avg_logprob"] == pytest.approx(-0.25)
    assert document["quality"]["truncated_chunks"] == 0
    cut = replace(completed(), transcript=Transcript("en", 0.9, "transcribe", 1.0, (), truncated_chunks=2))
    assert parsed("json", cut)["quality"]["truncated_chunks"] == 2
    assert parsed("json", failed())["error"]["code"] == "not_audio"


@given(st.text(), st.lists(st.integers(0, 60_000)).map(tuple))
def test_layout_changes_no_value(text: str, tokens: tuple[int, ...]) -> None:
    """Numbers are put in one line without touching any text, even one that looks like a list of numbers."""
    result = completed(segment(f"{text}[\n    1,\n    2\n  ]", tokens=tokens))
    assert parsed("json", result) == json.loads(json.dumps(writers.result_document(result)))


def test_numbers_stand_in_one_line() -> None:
    """Tokens make one line, not one line each."""
    assert b'"tokens": [11, 12, 13]' in written("json", completed(segment(" Hello.")))


@pytest.mark.parametrize("name", ["json", "aws"])
def test_a_name_that_is_no_utf8_can_be_written(name: str) -> None:
    """A recording whose name holds a byte of Latin-1 gets its result, and the name survives."""
    job = Job("caf\udce9.wav", "out/caf\udce9")
    document = parsed(name, replace(completed(), job=job))
    assert (document["input"]["recording"] if name == "json" else document["jobName"]).startswith("caf\udce9")


def items(*segments: Segment) -> list[dict[str, Any]]:
    """Return the items of the AWS format."""
    return list(parsed("aws", completed(*segments))["results"]["items"])


def test_aws_splits_words_and_marks() -> None:
    """Words have times and confidence as strings, marks have no times, and inner marks stay in their word."""
    found = items(segment(' "Don\'t pay 3.50!"', 2, 4, confidence=0.5))
    contents = [(item["type"], item["alternatives"][0]["content"]) for item in found]
    assert contents == [
        ("punctuation", '"'),
        ("pronunciation", "Don't"),
        ("pronunciation", "pay"),
        ("pronunciation", "3.50"),
        ("punctuation", "!"),
        ("punctuation", '"'),
    ]
    assert all(("start_time" in item) == (item["type"] == "pronunciation") for item in found)
    assert found[1]["alternatives"][0]["confidence"] == "0.5000"
    times = [float(item[key]) for item in found if "start_time" in item for key in ("start_time", "end_time")]
    assert times == sorted(times)
    assert 2 <= times[0] < times[-1] <= 4


def test_aws_takes_times_of_words_where_there_are_any() -> None:
    """Measured word times win over interpolated ones."""
    words = (Word(" Good", 0.1, 0.2, 0.9), Word(" bye.", 0.7, 0.8, 0.8))
    found = items(segment(" Good bye.", words=words))
    assert (found[1]["start_time"], found[1]["end_time"]) == ("0.700", "0.800")
    assert found[1]["alternatives"] == [{"confidence": "0.8000", "content": "bye"}]


def test_aws_has_the_outer_shape() -> None:
    """jobName, status and one transcript, as readers of AWS Transcribe expect them."""
    document = parsed("aws", completed(segment(" Hello."), segment(" ...", 1, 2)))
    assert document["jobName"] == "1f"
    assert document["status"] == "COMPLETED"
    assert document["results"]["transcripts"] == [{"transcript": "Hello. ..."}]
    assert [item["type"] for item in document["results"]["items"][1:]] == ["punctuation"] * 4
    assert parsed("aws", completed())["results"] == {"transcripts": [{"transcript": ""}], "items": []}


def drawn(path: Path, *segments: Segment, duration: float) -> tuple[int, int, bytes]:
    """Return width and height of a drawn picture, and its bytes."""
    result = completed(*segments)
    result = replace(result, transcript=replace(result.transcript, duration=duration))  # type: ignore[type-var]
    image = writers.FORMATS["png"].write(result, path)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", image[16:24])
    return width, height, image


def test_picture_shows_sound_and_text(tmp_path: Path) -> None:
    """Other text and other sound make another picture; the same make the same; `$` is no formula."""
    loud, silent = tmp_path / "loud.wav", tmp_path / "silent.wav"
    soundfile.write(loud, np.random.default_rng(0).standard_normal(16_000) * 0.1, 16_000)
    soundfile.write(silent, np.zeros(16_000), 16_000)
    first = drawn(loud, segment(" pays $x_{^$ or"), duration=1)
    assert drawn(loud, segment(" pays $x_{^$ or"), duration=1) == first
    assert drawn(loud, segment(" another text"), duration=1) != first
    assert drawn(silent, segment(" pays $x_{^$ or"), duration=1) != first


def test_picture_grows_to_ten_minutes_and_no_further(tmp_path: Path) -> None:
    """A strip is 30 s; over ten minutes six to ten strips hold the whole recording, and its text is gathered."""
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(8000 * 601, np.int16), 8000)
    texts = [segment(f" Text {second}.", second, second + 5) for second in range(0, 600, 5)]
    _, short, _ = drawn(path, segment(" One."), duration=65)
    _, overview, _ = drawn(path, *texts, duration=601)
    _, shorter, _ = drawn(path, segment(" One."), duration=20)
    strip = (short - shorter) / 2  # 65 s have three strips, 20 s one
    assert (overview - shorter) / strip == pytest.approx(5, abs=0.02)
    assert drawn(path, *texts[:3], duration=601)[2] != drawn(path, *texts[:2], duration=601)[2]


def test_a_moment_has_a_picture(tmp_path: Path) -> None:
    """The shortest recording that is one can be drawn."""
    soundfile.write(tmp_path / "a.wav", np.ones(200) * 0.1, 16_000)
    drawn(tmp_path / "a.wav", duration=200 / 16_000)


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60).filter(str.strip)


@st.composite
def cues(draw):
    """Draw segments of any text whose times follow one another, all before 30 hours are over."""
    now, found = 0, []
    for text in draw(st.lists(TEXTS, min_size=1, max_size=6)):
        start = now + draw(st.integers(0, 20_000_000))
        now = start + draw(st.integers(1, 30_000))
        found.append(segment(text, start / 1000, now / 1000))
    return found


@given(cues())
def test_any_text_survives(found: list[Segment]) -> None:
    """Public parsers read srt and vtt back, and tsv is a table: all texts, at their times, but for arrows and edges."""
    result = completed(*found)
    wanted = [(each.start, each.end, each.text.strip().replace("-->", "->")) for each in found]
    subtitles = [
        (each.start.total_seconds(), each.end.total_seconds(), each.content)
        for each in srt.parse(written("srt", result).decode())
    ]
    captions = [
        (_seconds(each.start), _seconds(each.end), each.raw_text)
        for each in webvtt.from_string(written("vtt", result).decode())
    ]
    table = [line.split("\t") for line in written("tsv", result).decode().split("\n")[1:-1]]
    rows = [(int(start) / 1000, int(end) / 1000, text) for start, end, text in table]
    assert _seen(subtitles) == _seen(wanted)
    assert _seen(captions) == _seen(wanted)
    assert _seen(rows) == _seen([(each.start, each.end, each.text.strip().replace("\t", " ")) for each in found])


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _seen(rows: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    return [(round(start, 3), round(end, 3), text.strip()) for start, end, text in rows]
