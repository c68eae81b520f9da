"""Samples → transcript: cut into chunks, decode them in batches, put the segments back at recording time."""

from __future__ import annotations

import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import audio, chunking, optimized_loader, options, quality, tokens
from run_transcription.records import (
    SAMPLE_RATE,
    Advance,
    Batch,
    Chunk,
    Decoding,
    Engine,
    ModelSpec,
    Row,
    Segment,
    Timing,
    Transcript,
)

if TYPE_CHECKING:
    from run_transcription.records import Samples

AfterBatch = Callable[[Advance], None]

logger = logging.getLogger(__name__)


def transcribe(
    blocks: Iterable[Samples],
    engine: Engine,
    decoding: Decoding,
    after_batch: AfterBatch | None = None,
    finished: Mapping[Chunk, Row] | None = None,
) -> tuple[Transcript, Timing]:
    """Transcribe a recording that arrives in blocks (each float32 [samples] at 16 kHz), holding one batch at a time.

    `after_batch` is called with what each batch added; chunks whose rows are `finished` already, from an earlier try,
    are not decoded again. The timing leaves out what only others know: decoding the file and storing the result.
    Raises Rejected where the model can't decode so.
    """
    decoding = engine.check(decoding)
    began = time.perf_counter()
    timing, duration = Timing(), 0.0
    segments: list[Segment] = []
    speech: list[Row] = []
    truncated = 0
    for batch in _batches(chunking.chunks(blocks, decoding.chunk_length), decoding.batch_size):
        rows, spent = _decode(batch, engine, decoding, finished or {})
        timing += spent
        for chunk, row in rows:
            found = _segments(row, chunk, engine)
            segments += found
            speech += [row] if found else []
            truncated += _broke_off(row, chunk) if found else 0
        duration = batch[-1][0].end / SAMPLE_RATE
        if after_batch is not None:
            after_batch(Advance(duration, rows))
    language, probability = _language(speech, decoding)
    transcript = Transcript(language, probability, decoding.task, duration, tuple(segments), truncated)
    stages = Timing(features=timing.features, encode=timing.encode, generate=timing.generate)
    return transcript, stages + Timing(wall=time.perf_counter() - began)


def _batches(chunks: Iterable[tuple[Chunk, Samples]], size: int) -> Iterator[tuple[tuple[Chunk, Samples], ...]]:
    """Take as many chunks at a time as one engine call decodes."""
    remaining = iter(chunks)
    while batch := tuple(itertools.islice(remaining, size)):
        yield batch


def _decode(
    batch: Sequence[tuple[Chunk, Samples]], engine: Engine, decoding: Decoding, finished: Mapping[Chunk, Row]
) -> tuple[tuple[tuple[Chunk, Row], ...], Timing]:
    """Return the rows of a batch, decoding only the chunks that are not finished."""
    waiting = {chunk: window for chunk, window in batch if chunk not in finished}
    decoded = engine.transcribe(list(waiting.values()), decoding) if waiting else Batch((), Timing())
    rows = {**finished, **dict(zip(waiting, decoded.rows, strict=True))}
    return tuple((chunk, rows[chunk]) for chunk, _ in batch), decoded.timing


def _segments(row: Row, chunk: Chunk, engine: Engine) -> list[Segment]:
    """Return what was said in one chunk: nothing where the row is not to be trusted."""
    if quality.is_silence(row):
        return []
    ratio = quality.compression_ratio(engine.tokenizer.decode(row.tokens).strip())
    return tokens.segments(row, chunk, engine.tokenizer, ratio)


def _broke_off(row: Row, chunk: Chunk) -> bool:
    """Tell whether a chunk's text is only its beginning, and warn of it."""
    if not row.complete:
        span = f"{chunk.start / SAMPLE_RATE:.2f} s to {chunk.end / SAMPLE_RATE:.2f} s"
        logger.warning("the text from %s breaks off: it is longer than the model can write", span)
    return not row.complete


def _language(speech: Sequence[Row], decoding: Decoding) -> tuple[str | None, float]:
    """Return the language that most of the speech is likely in, and its mean probability over all rows with speech."""
    if not speech:
        return decoding.language, 0.0
    votes: defaultdict[str | None, float] = defaultdict(float)
    for row in speech:
        votes[row.language] += row.language_probability
    winner = max(votes, key=lambda language: votes[language])
    return winner, votes[winner] / len(speech)


@options.command("direct-transcribe")
@click.argument("recording", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options.model_options
@options.decoding_options
def main(recording: Path, spec: ModelSpec, decoding: Decoding) -> None:
    """Print the text of one RECORDING: decoding alone, without formats, folders or S3."""
    handle = optimized_loader.load(spec)
    with audio.open_recording(recording) as reader:
        transcript, _ = transcribe(reader.blocks(), handle.engine, decoding)
    click.echo(transcript.text.strip())


if __name__ == "__main__":
    main()
