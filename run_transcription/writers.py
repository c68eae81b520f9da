"""Turn a result into the bytes of its files: one function and one row of FORMATS for each format."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from run_transcription import tokens
from run_transcription.records import SCHEMA_VERSION, Result, Segment, Transcript, Word
from run_transcription.subtitles import cues
from run_transcription.viewer import page

NUMBERS = re.compile(r"\[\n\s+([-\d.,e\s]+?)\n\s+\]")  # a list of numbers in indented json: no string spans lines
PUNCTUATION = string.punctuation + "¡¿«»“”‘’„…–—、。！？，；：「」『』（）।؟،؛"


@dataclass(frozen=True, slots=True)
class Writer:
    """A format: the extension of its files, and the function from result and local recording to their bytes."""

    extension: str
    write: Callable[[Result, Path], bytes]


def result_document(result: Result) -> dict[str, Any]:
    """Return the json object of a result: OpenAI's verbose_json and our envelope, as `schema.schema` describes it.

    Everything under `transcript` is null where the result has none.
    """
    job, wall = result.job, result.timing.wall
    duration = result.audio.duration if result.audio else 0.0
    return {
        "schema_version": SCHEMA_VERSION,
        "status": result.status,
        **_transcript_fields(result.transcript),
        "input": {
            "recording": job.recording,
            "version_id": job.version_id,
            "version": job.version,
            "sequencer": job.sequencer,
            "identity": job.identity,
            "options": dict(job.options),
            "audio": asdict(result.audio) if result.audio else None,
        },
        "model": asdict(result.model),
        "load": asdict(result.load),
        "timing": asdict(result.timing) | {"rtfx": duration / wall if wall else None},
        "options": asdict(result.options),
        "files": {name: asdict(file) for name, file in result.files.items()},
        "error": asdict(result.error) if result.error else None,
    }


def _transcript_fields(transcript: Transcript | None) -> dict[str, Any]:
    if transcript is None:
        return dict.fromkeys(("task", "language", "duration", "text", "segments", "quality"))
    return {
        "task": transcript.task,
        "language": transcript.language,
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": [_segment_fields(number, segment) for number, segment in enumerate(transcript.segments)],
        "quality": {
            "language_probability": transcript.language_probability,
            "avg_logprob": _mean_logprob(transcript.segments),
            "truncated_chunks": transcript.truncated_chunks,
            **asdict(transcript.quality),
        },
    }


def _segment_fields(number: int, segment: Segment) -> dict[str, Any]:
    fields = {"id": number, **asdict(segment)}
    if not segment.words:
        del fields["words"]  # openai/whisper's readers take an empty list for a segment without text
    return fields


def _mean_logprob(segments: tuple[Segment, ...]) -> float | None:
    count = sum(len(segment.tokens) for segment in segments)
    return sum(segment.avg_logprob * len(segment.tokens) for segment in segments) / count if count else None


def write_json(result: Result, _recording: Path) -> bytes:
    """Write the whole result, indented, with lists of numbers in one line."""
    text = json.dumps(result_document(result), ensure_ascii=False, indent=2, allow_nan=False)
    text = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    # A file name that is no UTF-8 holds lone surrogates; escaped they are json, encoded they would be an error.
    return f"{text}\n".encode(errors="backslashreplace")


def write_txt(result: Result, _recording: Path) -> bytes:
    """Write the text, one line a segment."""
    return _lines(segment.text.strip() for segment in _segments(result))


def write_srt(result: Result, _recording: Path) -> bytes:
    """Write SubRip subtitles."""
    return _lines(
        f"{number}\n{clock(cue.start, ',', hours=True)} --> {clock(cue.end, ',', hours=True)}\n{cue.text}\n"
        for number, cue in enumerate(cues(_segments(result), result.options), start=1)
    )


def write_vtt(result: Result, _recording: Path) -> bytes:
    """Write WebVTT subtitles."""
    found = cues(_segments(result), result.options)
    return b"WEBVTT\n\n" + _lines(f"{clock(cue.start)} --> {clock(cue.end)}\n{cue.text}\n" for cue in found)


def write_tsv(result: Result, _recording: Path) -> bytes:
    """Write a table of start, end (milliseconds) and text."""
    rows = (f"{round(1000 * cue.start)}\t{round(1000 * cue.end)}\t{_cell(cue.text)}" for cue in _segments(result))
    return b"start\tend\ttext\n" + _lines(rows)


def write_aws(result: Result, _recording: Path) -> bytes:
    """Write json in the shape of AWS Transcribe's output: words and punctuation marks as items.

    A segment without word times gets them by interpolation: its length is shared out among its words by their
    characters, and their confidence is the segment's, the geometric mean of its token probabilities.
    """
    items = [item for segment in _segments(result) for word in tokens.spoken(segment) for item in _items(word)]
    text = result.transcript.text.strip() if result.transcript else ""
    document = {
        "jobName": result.job.identity or Path(result.job.results).name,
        "status": result.status,
        "results": {"transcripts": [{"transcript": text}], "items": items},
    }
    return f"{json.dumps(document, ensure_ascii=False, indent=1)}\n".encode(errors="backslashreplace")


def _items(word: Word) -> Iterator[dict[str, Any]]:
    """Yield a word without the marks around it as one item, and each mark as an item without times."""
    text = word.word.strip()
    spoken = text.strip(PUNCTUATION)
    before, _, after = text.partition(spoken) if spoken else (text, "", "")
    for mark in before:
        yield _item("punctuation", mark, 0.0)
    if spoken:
        times = {"start_time": f"{word.start:.3f}", "end_time": f"{word.end:.3f}"}
        yield times | _item("pronunciation", spoken, word.probability)
    for mark in after:
        yield _item("punctuation", mark, 0.0)


def _item(kind: str, content: str, confidence: float) -> dict[str, Any]:
    alternative = {"confidence": f"{confidence:.4f}" if confidence else "0.0", "content": content}
    return {"type": kind, "alternatives": [alternative]}


def write_png(result: Result, recording: Path) -> bytes:
    """Draw the log-mel spectrogram of the recording with its segments written under it."""
    from run_transcription.picture import draw  # matplotlib and librosa take seconds to import

    duration = result.transcript.duration if result.transcript else 0.0
    return draw(recording, _segments(result), duration, result.job.recording.rpartition("/")[2])


def write_html(result: Result, _recording: Path) -> bytes:
    """Write a page that plays the recording, and shows and searches its text."""
    return page(result)


def clock(seconds: float, marker: str = ".", *, hours: bool = False) -> str:
    """Return a time as [HH:]MM:SS.mmm; hours stand there where asked for or needed."""
    minutes, milliseconds = divmod(round(seconds * 1000.0), 60_000)
    hour, minute = divmod(minutes, 60)
    tail = f"{minute:02d}:{milliseconds // 1000:02d}{marker}{milliseconds % 1000:03d}"
    return f"{hour:02d}:{tail}" if hours or hour else tail


def _segments(result: Result) -> tuple[Segment, ...]:
    return result.transcript.segments if result.transcript else ()


def _cell(text: str) -> str:
    return text.strip().replace("\t", " ")


def _lines(lines: Iterator[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


FORMATS = {
    "json": Writer(".json", write_json),
    "txt": Writer(".txt", write_txt),
    "srt": Writer(".srt", write_srt),
    "vtt": Writer(".vtt", write_vtt),
    "tsv": Writer(".tsv", write_tsv),
    "aws": Writer(".aws.json", write_aws),
    "html": Writer(".html", write_html),
    "png": Writer(".png", write_png),
}
ALL = tuple(name for name in FORMATS if name != "png")
