"""The options that say how to decode: a row for each, named as the field of `records.Decoding` that it fills."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A number in a range; click's own would let NaN pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number, and refuse one that is none."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def _chunk_length(_context: click.Context, _option: click.Parameter, seconds: float) -> float:
    """Whisper sees 30 s at a time; click's own ranges would let NaN pass."""
    if not 1.0 <= seconds <= 30.0:  # noqa: PLR2004
        message = f"{seconds:g} is not a number of seconds from 1 to 30."
        raise click.BadParameter(message)
    return seconds


OPTIONS = (
    click.option("--language", help="Such as `en` or `english`.", show_default="detected"),
    click.option(
        "--task",
        type=click.Choice(("transcribe", "translate")),
        default="transcribe",
        help="translate: into English.",
    ),
    click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Chunks decoded at the same time."),
    click.option(
        "--chunk-length",
        type=float,
        default=30.0,
        callback=_chunk_length,
        help="Longest chunk in seconds, at most 30.",
    ),
    click.option("--vad/--no-vad", default=True, help="Look for speech with Silero VAD, or by loudness alone."),
    click.option(
        "--vad-threshold", type=Number(0, 1), default=0.5, help="Probability from which Silero VAD hears speech."
    ),
    click.option(
        "--compression-ratio-threshold",
        type=Number(0),
        default=2.4,
        help="Text that can be compressed more is decoded again.",
    ),
    click.option(
        "--logprob-threshold",
        type=Number(),
        default=-1.0,
        help="Text with a lower average log-probability is decoded again.",
    ),
    click.option(
        "--no-speech-threshold",
        type=Number(0, 1),
        default=0.6,
        help="Text is dropped where no speech is likelier, and the log-probability is below its threshold.",
    ),
    click.option(
        "--temperature-increment-on-fallback",
        type=Number(0, 1),
        default=0.2,
        help="Step from one attempt's temperature to the next one's, up to 1; 0: one attempt.",
    ),
    click.option(
        "--sequential",
        is_flag=True,
        help="Use transformers' own long form: one window after the other, as a reference.",
    ),
)
