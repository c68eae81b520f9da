"""Options that go together only in some ways: what would be accepted and left unused is refused by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from run_transcription.decoding import Decoding
from run_transcription.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PLAIN = Decoding()
LAYOUT = ("max_line_width", "max_line_count", "max_words_per_line", "highlight_words")
SUBTITLES = frozenset({"srt", "vtt"})
OF_BATCHES = (
    *("chunk_length", "batch_size", "short_windows", "compression_ratio_threshold"),
    *("best_of", "beam_size", "patience", "length_penalty"),
)


def refuse_unused(decoding: Decoding, formats: Sequence[str] | None = None) -> None:
    """Raise Rejected (unsupported_option) for options that would change nothing in this company.

    With `formats`, also for those that concern other formats only.
    """
    for why in (*_reasons(decoding), *(() if formats is None else _unwritten(decoding, formats))):
        raise Rejected("unsupported_option", why)


def _reasons(decoding: Decoding) -> Iterator[str]:
    changed = {name for name in Decoding.__slots__ if getattr(decoding, name) != getattr(PLAIN, name)}
    yield from _of_paths(decoding, changed)
    yield from _of_search(decoding, changed)
    yield from _of_layout(decoding, changed)


def _of_paths(decoding: Decoding, changed: set[str]) -> Iterator[str]:
    if decoding.sequential:
        yield from (f"{_option(name)} has no use with --sequential" for name in OF_BATCHES if name in changed)
        if decoding.condition_on_previous_text and decoding.hotwords:
            yield "--hotwords has no use with --sequential and --condition-on-previous-text"
    if not decoding.vad and "vad_threshold" in changed:
        yield "--vad-threshold has no use with --no-vad"


def _of_search(decoding: Decoding, changed: set[str]) -> Iterator[str]:
    by_chance = decoding.temperature > 0 or decoding.temperature_increment_on_fallback > 0
    if decoding.beam_size == 1 and "patience" in changed:
        yield "--patience has no use without --beam-size"
    if decoding.beam_size == decoding.best_of == 1 and "length_penalty" in changed:
        yield "--length-penalty has no use without --beam-size or --best-of"
    if decoding.beam_size > 1 and decoding.temperature > 0:
        yield "--beam-size has no use with a --temperature above 0"
    if decoding.best_of > 1 and not by_chance:
        yield "--best-of has no use without a temperature above 0"


def _of_layout(decoding: Decoding, changed: set[str]) -> Iterator[str]:
    layout = [name for name in LAYOUT if name in changed]
    if layout and decoding.captions:
        yield f"{_option(layout[0])} has no use with --captions, which have their own lines"
    elif layout and not decoding.word_timestamps:
        yield f"{_option(layout[0])} has no use without --word-timestamps"
    if decoding.max_line_count is not None and decoding.max_line_width is None:
        yield "--max-line-count has no use without --max-line-width"
    if decoding.max_words_per_line is not None and decoding.max_line_width is not None:
        yield "--max-words-per-line has no use with --max-line-width"


def _unwritten(decoding: Decoding, formats: Sequence[str]) -> Iterator[str]:
    wanted = [name for name in (*LAYOUT, "captions") if getattr(decoding, name) != getattr(PLAIN, name)]
    if wanted and not SUBTITLES & {*formats}:
        yield f"{_option(wanted[0])} has no use without srt or vtt among the formats"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
