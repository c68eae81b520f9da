"""Decode windows in batches: rows that fail are decoded again, and batches that don't fit into memory are halved."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from run_transcription import languages, quality
from run_transcription.errors import OutOfMemory
from run_transcription.records import Timing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from run_transcription.audit import Failing
    from run_transcription.records import Batch, Chunk, Decoding, Engine, ModelFacts, Row, Samples

HOTTEST = 1.0  # the last temperature that is tried
COOL = 0.5  # text drawn at a higher temperature is not gone on from
LONGEST_PROMPT = 3000  # letters, far more than the tokens that a model takes

logger = logging.getLogger(__name__)

_safe_sizes: dict[ModelFacts, int] = {}  # how many rows fitted into memory once it had run out; kept for the process


class Decoder:
    """Decodes the windows of one recording, and adds up what that took."""

    def __init__(self, engine: Engine, decoding: Decoding, finished: Mapping[Chunk, Row]) -> None:
        """Take the rows that an earlier try finished: their windows are not decoded again."""
        self.timing = Timing()
        self._engine = engine
        self._decoding = decoding
        self._finished = finished
        self._voiced: list[Row] = []  # the first rows with speech, which vote on the language
        self._heard: dict[Chunk, Row] = {}  # before they vote

    def hear(self, windows: Mapping[Chunk, Samples]) -> None:
        """Decode windows ahead of `rows`, which is to get them together, so that their languages are one vote."""
        self._heard |= self._best({c: s for c, s in windows.items() if c not in self._finished}, self._decoding)

    def rows(self, windows: Mapping[Chunk, Samples]) -> dict[Chunk, Row]:
        """Return the best row of each window, in order; those that fail are decoded again at the next temperature.

        So are, in the recording's language, those whose own is in doubt.
        """
        waiting = {chunk: samples for chunk, samples in windows.items() if chunk not in self._finished}
        kept = self._heard | self._best({c: s for c, s in waiting.items() if c not in self._heard}, self._decoding)
        rows = {chunk: kept[chunk] if chunk in kept else self._finished[chunk] for chunk in windows}
        return rows if self._decoding.language else self._in_its_language(rows, waiting)

    @property
    def reduced(self) -> int | None:
        """How many windows are decoded at a time, where as many as asked for did not fit into memory."""
        return self._size() if self._size() < self._decoding.batch_size else None

    def go_on_from(self, text: str, temperature: float) -> None:
        """Let the next windows know the text before them; not where it was drawn at a high temperature."""
        before = f"{self._decoding.initial_prompt}{text}"[-LONGEST_PROMPT:] if temperature <= COOL else ""
        before = before.replace("<|", "< |")  # whoever spells a special token aloud steers nothing
        self._decoding = replace(self._decoding, initial_prompt=before)

    def _best(self, waiting: Mapping[Chunk, Samples], wanted: Decoding) -> dict[Chunk, Row]:
        kept: dict[Chunk, Row] = {}
        for temperature in temperatures(wanted):
            if not waiting:
                break
            decoding = replace(wanted, temperature=temperature)
            for chunk, row in zip(waiting, self._all([*waiting.values()], decoding), strict=True):
                kept[chunk] = self._better(kept[chunk], row) if chunk in kept else row
            waiting = {chunk: samples for chunk, samples in waiting.items() if self.failing(kept[chunk])}
        return kept

    def _in_its_language(self, rows: dict[Chunk, Row], decoded: Mapping[Chunk, Samples]) -> dict[Chunk, Row]:
        """Decode rows anew whose language is in doubt, in the one that the first windows vote for."""
        if len(self._voiced) < languages.WINDOWS:
            self._voiced += [row for row in rows.values() if self.speaks(row)]
        language, probability = languages.vote(self._voiced)
        doubtful = languages.doubtful(rows, language, self._decoding.language_detection_threshold)
        waiting = {chunk: decoded[chunk] for chunk in doubtful if chunk in decoded}
        anew = self._best(waiting, replace(self._decoding, language=language))
        for chunk, row in anew.items():
            if len(self.failing(row)) <= len(self.failing(rows[chunk])):
                attempts = rows[chunk].attempts + row.attempts
                rows[chunk] = replace(row, language_probability=probability, attempts=attempts)
        return rows

    def speaks(self, row: Row) -> bool:
        """Tell whether a row has text that is not to be dropped."""
        tokens = any(token < self._engine.tokenizer.end_of_text for token in row.tokens)
        return tokens and not quality.is_silence(row, self._decoding)

    def failing(self, row: Row) -> tuple[Failing, ...]:
        """Return by which measures a row fails."""
        return quality.failing(row, self._engine.tokenizer.decode(row.tokens), self._decoding)

    def _better(self, before: Row, now: Row) -> Row:
        faults = len(self.failing(before)), len(self.failing(now))
        return replace(quality.better(before, now, faults), attempts=before.attempts + 1)

    def _all(self, windows: Sequence[Samples], decoding: Decoding) -> list[Row]:
        """Decode as many windows at a time as fit."""
        rows: list[Row] = []
        while len(rows) < len(windows):
            part = windows[len(rows) : len(rows) + self._size()]
            batch = self._fitting(part, decoding)
            if batch is None:
                _safe_sizes[self._engine.facts] = len(part) // 2
                logger.warning("%d windows don't fit into memory: going on with %d", len(part), len(part) // 2)
            else:
                rows += batch.rows
                self.timing += batch.timing
        return rows

    def _size(self) -> int:
        return min(self._decoding.batch_size, _safe_sizes.get(self._engine.facts, self._decoding.batch_size))

    def _fitting(self, windows: Sequence[Samples], decoding: Decoding) -> Batch | None:
        """Return None where there is no room; the error is let go, since what it holds on to takes memory."""
        try:
            return self._engine.transcribe(windows, decoding)
        except OutOfMemory:
            if len(windows) == 1:
                raise
            return None


def temperatures(decoding: Decoding) -> Iterator[float]:
    """Yield the temperatures to try, one after the other."""
    step, steps = decoding.temperature_increment_on_fallback, 0
    while (temperature := round(decoding.temperature + steps * step, 6)) <= HOTTEST:
        yield temperature
        steps += 1
        if not step:
            return
