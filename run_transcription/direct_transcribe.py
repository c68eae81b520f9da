"""Samples → transcript: listen, cut into passages, decode them in batches, put their text together."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from run_transcription import (
    channels,
    chunking,
    combinations,
    coverage,
    languages,
    optimized_loader,
    options,
    vad,
)
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
from run_transcription.samples import clipped

if TYPE_CHECKING:
    from run_transcription.hearing import Passage
    from run_transcription.records import Samples

AfterBatch = Callable[[Advance], None]


def transcribe(  # noqa: PLR0913 - what a recording is, what hears it, and who follows it
    blocks: Iterable[Samples],
    engine: Engine,
    decoding: Decoding,
    after_batch: AfterBatch | None = None,
    finished: Mapping[Chunk, Row] | None = None,
    *,
    kept: Sequence[int] | None = None,
) -> tuple[Transcript, Timing]:
    """Transcribe a recording that arrives in blocks (each float32 [samples] at 16 kHz), holding 17 minutes of it.

    `after_batch` is called with what each batch added; chunks whose rows are `finished` already, from an earlier try,
    are not decoded again. Where channels are `kept`, counted from 0, blocks are float32 [kept, samples], and each is
    transcribed by itself. The timing leaves out what only others know: decoding the file and storing the result.
    Raises Rejected where the model can't decode so, or an option would change nothing.
    """
    heard = listen(blocks, decoding, kept)
    return decode(heard, engine, decoding, after_batch, finished, kept=kept)


def listen(
    blocks: Iterable[Samples], decoding: Decoding, kept: Sequence[int] | None = None
) -> Iterator[tuple[Heard, ...]]:
    """Look for speech in a recording, a block of 17 minutes after the other: in its mix, or in each channel kept."""
    clips = clipped(blocks, decoding.clip_timestamps)
    streams = [clips] if kept is None else channels.separated(clips, len(kept))
    ears = [vad.Ear(stream, _detector(decoding), decoding.vad_threshold) for stream in streams]
    return zip(*(ear.heard() for ear in ears), strict=True)


def decode(  # noqa: PLR0913 - as transcribe
    heard: Iterable[tuple[Heard, ...]],
    engine: Engine,
    decoding: Decoding,
    after_batch: AfterBatch | None = None,
    finished: Mapping[Chunk, Row] | None = None,
    *,
    kept: Sequence[int] | None = None,
) -> tuple[Transcript, Timing]:
    """Do what `transcribe` does with a recording that was listened to already, with the same options."""
    combinations.refuse_unused(decoding)
    decoding = engine.check(decoding)
    began = time.perf_counter()
    numbers: tuple[int | None, ...] = (None,) if kept is None else tuple(number + 1 for number in kept)
    lanes = [
        _Lane(stream, engine, decoding, finished or {}, number)
        for stream, number in zip(_apart(heard, len(numbers)), numbers, strict=True)
    ]
    told = after_batch or (lambda _: None)
    open_ones = list(lanes)

    def tell(rows: tuple[tuple[Chunk, Row], ...] = ()) -> None:
        told(Advance(min(each.seconds for each in open_ones), rows))

    for lane in lanes:
        lane.tell = tell
    while open_ones:
        lane = min(open_ones, key=lambda each: each.seconds)  # so that none is far ahead of the others
        rows = lane.go_on()
        if rows is None:
            open_ones.remove(lane)
        else:
            tell(rows)
    told(Advance(lanes[0].duration, ()))
    spent = sum((lane.work.decoder.timing for lane in lanes), Timing())
    return _transcript(lanes, kept), replace(spent, wall=time.perf_counter() - began)


class _Lane:
    """One channel on its way to a transcript, or the mix of all."""

    def __init__(
        self,
        heard: Iterable[Heard],
        engine: Engine,
        decoding: Decoding,
        finished: Mapping[Chunk, Row],
        number: int | None,
    ) -> None:
        self.seconds = 0.0  # that are done
        self.duration = 0.0  # seconds heard so far
        self.tell: Callable[[], None] = lambda: None  # called where it goes on without new rows
        self._engine, self._decoding, self._number = engine, decoding, number
        own = {replace(chunk, channel=None): row for chunk, row in finished.items() if chunk.channel == number}
        self.work = Assembly(engine, decoding, Decoder(engine, decoding, own))
        self._heard = self._measured(heard)
        self._lots = self._all_at_once() if decoding.sequential else self._in_batches()

    def go_on(self) -> tuple[tuple[Chunk, Row], ...] | None:
        """Do the next batch, and return its rows; None where all is done."""
        rows = next(self._lots, None)
        return None if rows is None else tuple((replace(chunk, channel=self._number), row) for chunk, row in rows)

    def _measured(self, heard: Iterable[Heard]) -> Iterator[Heard]:
        for block in heard:
            self.duration = (block.start + len(block.samples)) / SAMPLE_RATE
            yield block

    def _in_batches(self) -> Iterator[Iterable[tuple[Chunk, Row]]]:
        passages = chunking.passages(self._heard, self._decoding.chunk_length)
        one_by_one, size = self._decoding.condition_on_previous_text, self._decoding.batch_size
        size = 1 if one_by_one else size
        batches = iter(lambda: tuple(itertools.islice(passages, size)), ())
        first: tuple[Passage, ...] = ()
        if self._decoding.language is None and not one_by_one:
            first = yield from self._voting(batches, -(-languages.WINDOWS // size))
        for batch in itertools.chain(filter(None, [first]), batches):
            rows = self.work.add(batch)
            self.seconds = batch[-1].chunk.end / SAMPLE_RATE
            yield rows

    def _voting(
        self, batches: Iterator[tuple[Passage, ...]], count: int
    ) -> Generator[tuple[()], None, tuple[Passage, ...]]:
        """Hear so many batches, and return their passages: all that vote are heard before the row of any is kept."""
        first: tuple[Passage, ...] = ()
        for batch in itertools.islice(batches, count):
            self.work.decoder.hear({passage.chunk: passage.samples for passage in batch})
            self.seconds = batch[-1].chunk.end / SAMPLE_RATE
            first += batch
            yield ()
        return first

    def _all_at_once(self) -> Iterator[Iterable[tuple[Chunk, Row]]]:
        """Let the model's own library go through the whole recording, which is held in memory for it."""
        heard = [*self._heard]
        if heard:
            samples = np.concatenate([block.samples for block in heard])
            chunks, batch = self._engine.transcribe_sequentially(samples, self._decoding, self._reached)
            self.work.decoder.timing += batch.timing
            rows = [*zip(chunks, batch.rows, strict=True)]
            self.work.take(rows, [region for block in heard for region in block.speech])
        yield from ()

    def _reached(self, seconds: float) -> None:
        self.seconds = seconds
        self.tell()


def _transcript(lanes: Sequence[_Lane], kept: Sequence[int] | None) -> Transcript:
    parts = [lane.work.transcript(lane.duration) for lane in lanes]
    if kept is None:
        return parts[0]
    return channels.together(parts, kept, [coverage.length(coverage.merged(lane.work.speech)) for lane in lanes])


def _apart(heard: Iterable[tuple[Heard, ...]], count: int) -> list[Iterator[Heard]]:
    """Return a stream of blocks for each channel; a block is let go of by all once its channel has taken it."""
    source, waiting = iter(heard), [deque[Heard]() for _ in range(count)]

    def fill() -> None:
        for line, block in zip(waiting, next(source, ()), strict=False):
            line.append(block)

    def blocks(line: deque[Heard]) -> Iterator[Heard]:
        while True:
            if not line:
                fill()
            if not line:
                return
            yield line.popleft()

    return [blocks(line) for line in waiting]


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
    options.refuse_unused(decoding, ("txt",))
    handle = optimized_loader.load(spec)
    with channels.opened(recording, decoding.channels) as reader:
        transcript, _ = transcribe(reader.blocks(), handle.engine, decoding, kept=reader.kept)
    click.echo(transcript.text.strip())


if __name__ == "__main__":
    main()
