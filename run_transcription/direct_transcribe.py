"""Samples → transcript: listen, cut into passages, decode them in batches, put their text together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from run_transcription import audio, chunking, optimized_loader, options, vad
from run_transcription.assembly import Assembly
from run_transcription.batches import Decoder
from run_transcription.hearing import Heard
from run_transcription.records import (
    SAMPLE_RATE,
    Advance,
    Chunk,
    Decoding,
    Engine,
    ModelSpec,
    Row,
    Timing,
    Transcript,
)

if TYPE_CHECKING:
    from run_transcription.records import Samples

AfterBatch = Callable[[Advance], None]


def transcribe(
    blocks: Iterable[Samples],
    engine: Engine,
    decoding: Decoding,
    after_batch: AfterBatch | None = None,
    finished: Mapping[Chunk, Row] | None = None,
) -> tuple[Transcript, Timing]:
    """Transcribe a recording that arrives in blocks (each float32 [samples] at 16 kHz), holding 17 minutes of it.

    `after_batch` is called with what each batch added; chunks whose rows are `finished` already, from an earlier try,
    are not decoded again. The timing leaves out what only others know: decoding the file and storing the result.
    Raises Rejected where the model can't decode so.
    """
    decoding = engine.check(decoding)
    began = time.perf_counter()
    ear = vad.Ear(blocks, _detector(decoding), decoding.vad_threshold)
    work = Assembly(engine, decoding, Decoder(engine, decoding, finished or {}))
    told = after_batch or (lambda _: None)
    if decoding.sequential:
        _one_after_the_other([*ear.heard()], engine, decoding, work)
    else:
        passages = chunking.passages(ear.heard(), decoding.chunk_length)
        while batch := tuple(itertools.islice(passages, decoding.batch_size)):
            told(Advance(batch[-1].chunk.end / SAMPLE_RATE, work.add(batch)))
    told(Advance(ear.samples / SAMPLE_RATE, ()))
    transcript = work.transcript(ear.samples / SAMPLE_RATE)
    spent = work.decoder.timing
    stages = Timing(features=spent.features, encode=spent.encode, generate=spent.generate)
    return transcript, stages + Timing(wall=time.perf_counter() - began)


def _one_after_the_other(heard: list[Heard], engine: Engine, decoding: Decoding, work: Assembly) -> None:
    """Let the model's own library go through the whole recording, which is held in memory for it."""
    if heard:
        samples = np.concatenate([block.samples for block in heard])
        work.take(engine.transcribe_sequentially(samples, decoding), [r for block in heard for r in block.speech])


def _detector(decoding: Decoding) -> vad.Detector:
    if not decoding.vad:
        return vad.loud
    from run_transcription.engines.silero import Silero  # torch takes seconds to import

    return Silero()


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
