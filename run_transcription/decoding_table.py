"""The options that say how to decode: a row for each, named as the field of `decoding.Decoding` that it fills.

The command line, a job's `options`, a recording's metadata and `submit` all read them here.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from run_transcription import asked
from run_transcription.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from run_transcription.decoding import Decoding
    from run_transcription.records import Given

MOST = 20  # beams, or candidates: each takes as much memory as a row
WORKERS_OWN = frozenset({"batch_size"})  # a matter of the machine, which no recording knows


class Number(click.FloatRange):
    """A number in a range; click's own would let NaN pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number, and refuse one that is none."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Text(click.ParamType[str]):
    """Text that can be written as UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, and refuse bytes that were none."""
        if asked.UNREADABLE in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            self.fail("it is no UTF-8 text.", param, ctx)
        return str(value)


class Several(click.ParamType[tuple[Any, ...]]):
    """Values with commas between them; the empty text is none of them."""

    name = "list"

    def __init__(self, kind: click.ParamType[Any]) -> None:
        """Take the type of each value."""
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Read the values."""
        if not isinstance(value, str):
            return tuple(value)
        return tuple(self.kind.convert(part.strip(), param, ctx) for part in value.split(",")) if value.strip() else ()


class Clips(Several):
    """Times in seconds, each behind the one before."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Read the times, and refuse those that go back."""
        times = super().convert(value, param, ctx)
        if any(later <= time for time, later in itertools.pairwise(times)):
            self.fail(f"{value} is not start,end,start,… in seconds, each behind the one before.", param, ctx)
        return times


def _chunk_length(_context: click.Context, _option: click.Parameter, seconds: float) -> float:
    """Whisper sees 30 s at a time; click's own ranges would let NaN pass."""
    if not 1.0 <= seconds <= 30.0:  # noqa: PLR2004
        message = f"{seconds:g} is not a number of seconds from 1 to 30."
        raise click.BadParameter(message)
    return seconds


def _flag(name: str, purpose: str) -> Callable[[Any], Any]:
    return click.option(name, is_flag=True, help=purpose)


def _number(name: str, kind: click.ParamType[Any], default: float | None, purpose: str) -> Callable[[Any], Any]:
    return click.option(name, type=kind, default=default, help=purpose)


OPTIONS = (
    click.option("--language", type=Text(), help="Such as `en` or `english`.", show_default="detected"),
    click.option(
        "--languages",
        type=Several(Text()),
        default="",
        metavar="CODE,…",
        show_default="all",
        help="Languages that may be detected.",
    ),
    _number(
        "--language-detection-threshold",
        Number(0, 1),
        0.5,
        "A chunk whose language is less likely is decoded in that of the first ten with speech.",
    ),
    click.option(
        "--task",
        type=click.Choice(("transcribe", "translate")),
        default="transcribe",
        help="translate: into English.",
    ),
    click.option(
        "--channels",
        type=click.Choice(("mix", "split")),
        default="mix",
        help="split: transcribe each channel by itself; equal ones once.",
    ),
    click.option(
        "--clip-timestamps",
        type=Clips(Number(0)),
        default="",
        metavar="START,END,…",
        show_default="all of it",
        help="Seconds to transcribe; a last start goes to the end.",
    ),
    click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Chunks decoded at the same time."),
    click.option(
        "--chunk-length",
        type=float,
        default=30.0,
        callback=_chunk_length,
        help="Longest chunk in seconds, at most 30.",
    ),
    _flag(
        "--short-windows", "Don't fill chunks to 30 s for the encoder: short recordings go faster; texts may differ."
    ),
    click.option("--vad/--no-vad", default=True, help="Look for speech with Silero VAD, or by loudness alone."),
    _number("--vad-threshold", Number(0, 1), 0.5, "Probability from which Silero VAD hears speech."),
    click.option(
        "--initial-prompt",
        type=Text(),
        default="",
        help="Text that every chunk is decoded after, not only the first, for names and style.",
    ),
    click.option("--hotwords", type=Text(), default="", help="Words that may occur; they go before the prompt."),
    _flag("--condition-on-previous-text", "Decode one chunk after the other, each after the text before it."),
    click.option(
        "--suppress-tokens",
        type=Several(click.IntRange(min=-1)),
        default="-1",
        metavar="ID,…",
        help="Tokens that are never written; -1: those that the model names itself.",
    ),
    _number("--temperature", Number(0, 1), 0.0, "Of the first attempt; above 0, tokens are drawn by chance."),
    _number(
        "--temperature-increment-on-fallback",
        Number(0, 1),
        0.2,
        "Step from one attempt's temperature to the next one's, up to 1; 0: one attempt.",
    ),
    _number("--best-of", click.IntRange(1, MOST), 1, "Texts that are drawn at a temperature above 0, to keep one."),
    _number("--beam-size", click.IntRange(1, MOST), 1, "Beams at temperature 0."),
    _number("--patience", Number(0.1, 10), 1.0, "Finished beams that are waited for, over the beam size."),
    click.option(
        "--length-penalty",
        type=Number(0, 2),
        show_default="the mean over the tokens",
        help="Exponent of the length in which beams and candidates are compared.",
    ),
    _number("--compression-ratio-threshold", Number(0), 2.4, "Text that can be compressed more is decoded again."),
    _number("--logprob-threshold", Number(), -1.0, "Text with a lower average log-probability is decoded again."),
    _number(
        "--no-speech-threshold",
        Number(0, 1),
        0.6,
        "Text is dropped where no speech is likelier, and the log-probability is below its threshold.",
    ),
    _flag("--sequential", "Use transformers' own long form: one window after the other, as a reference."),
    _flag("--word-timestamps", "Find out when each word is said."),
    _number("--max-line-width", click.IntRange(min=1), None, "Characters in a line of srt and vtt."),
    _number("--max-line-count", click.IntRange(min=1), None, "Lines in a cue of srt and vtt."),
    _number("--max-words-per-line", click.IntRange(min=1), None, "Words in a cue of srt and vtt."),
    _flag("--highlight-words", "Underline in srt and vtt each word as it is said."),
    _flag("--captions", "Cut srt and vtt into cues that people can read in time, but leave no word out for it."),
)


@functools.cache
def options() -> dict[str, tuple[click.Option, Callable[[Any], Any]]]:
    """Return by the name of its field each option that a recording may bring, and what adds it to a command."""
    found = {}
    for add in OPTIONS:

        def none() -> None:
            """Take an option."""

        add(none)
        (option,) = none.__click_params__  # type: ignore[attr-defined]
        found[str(option.name)] = (option, add)
    return {name: pair for name, pair in found.items() if name not in WORKERS_OWN}


def with_given(decoding: Decoding, given: Given) -> Decoding:
    """Return a decoding with the options that came with one recording, as text.

    Raises Rejected (unsupported_option) for one that is not known or whose value is not valid, by its name.
    """
    known, chosen, context = options(), {}, click.Context(click.Command("options"))
    for name, text in given:
        field = name.replace("-", "_")
        if field not in known:
            raise Rejected("unsupported_option", f"a recording has no option {name!r:.60}: it may have {_names(known)}")
        try:
            chosen[field] = known[field][0].process_value(context, text)
        except click.BadParameter as error:
            raise Rejected("unsupported_option", f"the option {name} can't be {text!r:.60}: {error.message}") from error
    return replace(decoding, **chosen)


def _names(known: Iterable[str]) -> str:
    return ", ".join(["formats", *(name.replace("_", "-") for name in known)])
