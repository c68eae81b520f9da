"""Options that go together only in some ways: what would be accepted and left unused is refused by its name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from run_transcription.decoding import Decoding
from run_transcription.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    Useless = Iterator[tuple[str, str]]  # the name of a field, and why it has no use

PLAIN = Decoding()
LAYOUT = ("max_line_width", "max_line_count", "max_words_per_line", "highlight_words")
SUBTITLES = ("srt", "vtt")
SHOWN_IN = dict.fromkeys((*LAYOUT, "captions"), SUBTITLES) | {"word_timestamps": (*SUBTITLES, "json", "aws", "html")}
OF_BATCHES = (
    *("chunk_length", "batch_size", "short_windows", "compression_ratio_threshold"),
    *("best_of", "beam_size", "patience", "length_penalty"),
)


def refuse_unused(decoding: Decoding, formats: Collection[str] | None = None) -> None:
    """Raise Rejected (unsupported_option) for options that would change nothing in this company.

    With `formats`, also for those that concern other formats only.
    """
    for _, why in _useless(decoding, formats):
        raise Rejected("unsupported_option", why)


def fitted(decoding: Decoding, asked: Collection[str], formats: Collection[str]) -> Decoding:
    """Return a worker's decoding without those of its own options that a recording's leave no use for.

    Raises Rejected (unsupported_option) where it is one of the fields that the recording has `asked` for.
    """
    for name, why in _useless(decoding, formats):
        if name in asked:
            raise Rejected("unsupported_option", why)
        return fitted(replace(decoding, **{name: getattr(PLAIN, name)}), asked, formats)
    return decoding


def _useless(decoding: Decoding, formats: Collection[str] | None) -> Useless:
    changed = {name for name in Decoding.__slots__ if getattr(decoding, name) != getattr(PLAIN, name)}
    yield from _of_paths(decoding, changed)
    yield from _of_search(decoding, changed)
    yield from _of_layout(decoding, changed)
    for name, shown_in in SHOWN_IN.items():
        if name in changed and formats is not None and not {*shown_in} & {*formats}:
            *others, last = shown_in
            yield name, f"{_option(name)} has no use without {', '.join(others)} or {last} among the formats"


def _of_paths(decoding: Decoding, changed: set[str]) -> Useless:
    if decoding.sequential:
        yield from ((name, f"{_option(name)} has no use with --sequential") for name in OF_BATCHES if name in changed)
        if decoding.condition_on_previous_text and decoding.hotwords:
            yield "hotwords", "--hotwords has no use with --sequential and --condition-on-previous-text"
    elif decoding.condition_on_previous_text and "batch_size" in changed:
        yield "batch_size", "--batch-size has no use with --condition-on-previous-text: chunks come one after the other"
    if not decoding.vad and "vad_threshold" in changed:
        yield "vad_threshold", "--vad-threshold has no use with --no-vad"
    if decoding.language is not None and "language_detection_threshold" in changed:
        yield "language_detection_threshold", "--language-detection-threshold has no use with --language"


def _of_search(decoding: Decoding, changed: set[str]) -> Useless:
    step = decoding.temperature_increment_on_fallback
    by_chance = decoding.temperature > 0 or step > 0
    if step and round(decoding.temperature + step, 6) > 1 and "temperature_increment_on_fallback" in changed:
        yield "temperature_increment_on_fallback", f"--temperature-increment-on-fallback {step:g} leads above 1 at once"
    if decoding.beam_size == 1 and "patience" in changed:
        yield "patience", "--patience has no use without --beam-size"
    if decoding.beam_size == decoding.best_of == 1 and "length_penalty" in changed:
        yield "length_penalty", "--length-penalty has no use without --beam-size or --best-of"
    if decoding.beam_size > 1 and decoding.temperature > 0:
        yield "beam_size", "--beam-size has no use with a --temperature above 0"
    if decoding.best_of > 1 and not by_chance:
        yield "best_of", "--best-of has no use without a temperature above 0"


def _of_layout(decoding: Decoding, changed: set[str]) -> Useless:
    for name in LAYOUT:
        if name in changed and decoding.captions:
            yield name, f"{_option(name)} has no use with --captions, which have their own lines"
        elif name in changed and not decoding.word_timestamps:
            yield name, f"{_option(name)} has no use without --word-timestamps"
    if decoding.max_line_count is not None and decoding.max_line_width is None:
        yield "max_line_count", "--max-line-count has no use without --max-line-width"
    if decoding.max_words_per_line is not None and decoding.max_line_width is not None:
        yield "max_words_per_line", "--max-words-per-line has no use with --max-line-width"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
