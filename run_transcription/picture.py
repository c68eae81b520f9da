"""Draw a recording: its log-mel spectrogram in strips, with the segments written under each."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import librosa
import numpy as np
from librosa.display import specshow
from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from run_transcription.audio import open_recording
from run_transcription.records import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes

    from run_transcription.records import Samples, Segment

    Mel = npt.NDArray[np.float32]  # [bands, columns]

HOP, WINDOW, BANDS = 160, 400, 80  # Whisper's frames of 10 ms
TICKS = np.array([500.0, 1000.0, 2000.0, 4000.0, SAMPLE_RATE / 2])  # Hz; the last is the upper edge
SHOWN = 80.0  # dB below the loudest place
HUSH = 1e-6  # power taken for the loudest place of a recording that has none: silence stays dark
STRIP = 30.0  # seconds in a strip of a short recording: one window of Whisper
OVERVIEW = 600.0  # seconds; a longer recording becomes an overview of strips of whole minutes
COLUMNS = 1500  # in a strip, about one a pixel

WIDTH, HEADER, STRIP_HEIGHT, SOUND_HEIGHT, LEFT, DPI = 14.0, 0.55, 2.2, 1.05, 0.6, 110  # inches; dots an inch
LINES = 5  # of text under a strip
LINE_HEIGHT = 0.14  # of the space for text
LETTER = 0.071  # inches: a letter of the text, on average
FEWEST_LETTERS = 6  # a narrower segment gets its bar and no text
INK, GREY = "#22252a", "#7a808a"
CERTAINTY = LinearSegmentedColormap.from_list("certainty", ["#d9583b", "#e8b04a", "#2a9d8f"])
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari")


@dataclass(frozen=True, slots=True)
class Note:
    """Text to write under a part of the recording, and the certainty (0 to 1) that colours its bar."""

    start: float
    end: float
    text: str
    certainty: float


def draw(recording: Path, segments: Sequence[Segment], duration: float, title: str) -> bytes:
    """Return a PNG of a recording of a length in seconds.

    Over ten minutes it is an overview: six to ten strips of whole minutes, and under them the beginnings of the text.
    """
    width = STRIP if duration <= OVERVIEW else 60.0 * math.ceil(duration / 600.0)
    width = min(width, max(duration, 1.0))
    frames = max(1, round(width * SAMPLE_RATE / HOP / COLUMNS))  # in a column
    with open_recording(recording) as reader:
        mel = spectrogram(reader.blocks(), frames)
    notes = [Note(s.start, s.end, s.text.strip(), min(1.0, math.exp(s.avg_logprob))) for s in segments]
    if duration > OVERVIEW:
        notes = list(gathered(notes, width / 6))
    strips = max(1, math.ceil(duration / width))
    figure = Figure(figsize=(WIDTH, HEADER + strips * STRIP_HEIGHT), dpi=DPI, facecolor="white")
    _write_header(figure, title)
    for number in range(strips):
        sound, text = _strip_axes(figure, number)
        _draw_sound(sound, mel, frames * HOP / SAMPLE_RATE, number * width, width)
        _write_notes(text, notes, number * width, width)
    return _png(figure)


def spectrogram(blocks: Iterable[Samples], frames: int) -> Mel:
    """Return the log-mel spectrogram in dB, [bands, columns], each column the mean of some frames of 10 ms."""
    step, rest, parts = HOP * frames, np.empty(0, np.float32), []
    for block in blocks:
        samples = np.concatenate((rest, block))
        whole = len(samples) // step * step if len(samples) > WINDOW else 0
        rest = samples[whole:]
        if whole:
            parts.append(_mel_columns(samples[:whole], frames))
    if len(rest) or not parts:
        size = step * math.ceil((WINDOW + len(rest)) / step)
        parts.append(_mel_columns(np.pad(rest, (0, size - len(rest))), frames)[:, : math.ceil(len(rest) / step) or 1])
    power = np.concatenate(parts, axis=1)
    decibels: Mel = librosa.power_to_db(power, ref=max(float(power.max()), HUSH), amin=1e-12, top_db=None)
    return decibels


def _mel_columns(samples: Samples, frames: int) -> Mel:
    power = librosa.feature.melspectrogram(
        y=samples, sr=SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=BANDS, pad_mode="reflect"
    )
    columns: Mel = power[:, :-1].reshape(BANDS, -1, frames).mean(axis=2, dtype=np.float32)
    return columns


def gathered(notes: Iterable[Note], width: float) -> Iterator[Note]:
    """Join the notes that begin within the same part of a width in seconds."""
    joined: Note | None = None
    for note in notes:
        if joined and note.start // width == joined.start // width:
            weight = (note.end - note.start) / max(note.end - joined.start, 0.01)
            certainty = joined.certainty + weight * (note.certainty - joined.certainty)
            joined = Note(joined.start, note.end, f"{joined.text} {note.text}", certainty)
        else:
            if joined:
                yield joined
            joined = note
    if joined:
        yield joined


def _strip_axes(figure: Figure, number: int) -> tuple[Axes, Axes]:
    """Return the axes for the sound and for the text of a strip, counted from the top."""
    height = figure.get_figheight()
    top = height - HEADER - number * STRIP_HEIGHT
    left, width, sound = LEFT / WIDTH, 1 - (LEFT + 0.25) / WIDTH, SOUND_HEIGHT / height
    text = (STRIP_HEIGHT - SOUND_HEIGHT - 0.32) / height
    return (
        figure.add_axes((left, top / height - sound, width, sound)),
        figure.add_axes((left, top / height - sound - 0.22 / height - text, width, text)),
    )


def _draw_sound(axes: Axes, mel: Mel, column: float, start: float, width: float) -> None:
    part = mel[:, round(start / column) : round((start + width) / column)]
    specshow(
        part,
        x_coords=start + column * np.arange(part.shape[1] + 1),
        y_coords=np.arange(BANDS + 1),
        ax=axes,
        cmap="magma",
        vmin=-SHOWN,
        vmax=0.0,
    )
    axes.set_yticks(BANDS * librosa.hz_to_mel(TICKS) / librosa.hz_to_mel(TICKS[-1]), ["0.5", "1", "2", "4", "8 kHz"])
    axes.set_xlim(start, start + width)
    axes.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 1.5, 2, 3, 5, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _clock(seconds)))
    axes.tick_params(labelsize=7, labelcolor=GREY, color=GREY, length=2, pad=2)
    axes.spines[:].set_visible(False)


def _write_notes(axes: Axes, notes: Iterable[Note], start: float, width: float) -> None:
    axes.set(xlim=(start, start + width), ylim=(0, 1))
    axes.axis("off")
    inches = (WIDTH - LEFT - 0.25) / width  # a second
    families = [name for name in FONTS if name in set(font_manager.get_font_names())]
    for note in (part for whole in notes for part in _within(whole, start, start + width)):
        axes.plot(
            [note.start + 0.02 / inches, note.end - 0.02 / inches],
            [0.97, 0.97],
            color=CERTAINTY(note.certainty),
            linewidth=3,
            solid_capstyle="butt",
        )
        letters = int((note.end - note.start) * inches / LETTER)
        for line, text in enumerate(_wrapped(note.text, letters)):
            axes.text(
                note.start + 0.02 / inches,
                0.86 - line * LINE_HEIGHT * 1.12,
                text,
                fontsize=8,
                family=families,
                color=INK,
                va="top",
                parse_math=False,
            )


def _within(note: Note, start: float, end: float) -> Iterator[Note]:
    """Yield the part of a note in a strip; the text stands in the strip that holds most of it."""
    first, last = max(note.start, start), min(note.end, end)
    if first < last:
        yield replace(note, start=first, end=last, text=note.text if last - first > (note.end - note.start) / 2 else "")


def _wrapped(text: str, letters: int) -> list[str]:
    if letters < FEWEST_LETTERS:
        return []
    return textwrap.wrap(text, letters, max_lines=LINES, placeholder=" …")


def _write_header(figure: Figure, title: str) -> None:
    y = 1 - 0.26 / figure.get_figheight()
    shown = textwrap.shorten(title.encode(errors="replace").decode(), 110, placeholder=" …")
    left, right = LEFT / WIDTH, 1 - 0.25 / WIDTH
    figure.text(left, y, shown, fontsize=11, weight="bold", color=INK, va="center", parse_math=False)
    for place, label, certainty in ((-0.175, "certain", 1.0), (-0.105, "in doubt", 0.5), (-0.035, "guessed", 0.0)):
        figure.text(right + place, y, "▬", fontsize=9, color=CERTAINTY(certainty), va="center", ha="right")
        figure.text(right + place + 0.005, y, label, fontsize=8, color=GREY, va="center")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{minutes:02d}:{rest:02.0f}" if rest.is_integer() else f"{minutes:02d}:{rest:04.1f}"
    return f"{hours}:{tail}" if hours else tail


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # boxes for scripts without a font here
        figure.savefig(image, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return image.getvalue()
