"""What is asked for: how to decode a recording, and how to write it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["transcribe", "translate"]
Channels = Literal["mix", "split"]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to decode and how to write it down: everything here is part of a result's identity."""

    language: str | None = None  # None: detected
    languages: tuple[str, ...] = ()  # that may be detected; (): all that the model knows
    language_detection_threshold: float = 0.5  # a detected language that is less likely is in doubt
    task: Task = "transcribe"
    channels: Channels = "mix"
    clip_timestamps: tuple[float, ...] = ()  # start, end, start, …; (): all of it, and a last start goes to the end
    chunk_length: float = 30.0  # seconds
    batch_size: int = 8
    short_windows: bool = False  # the encoder hears no more than the longest chunk of a batch, and a second of silence
    vad: bool = True  # False: speech is what is loud
    vad_threshold: float = 0.5  # probability from which a frame is speech
    initial_prompt: str = ""  # text that the model takes for what was said before each chunk
    hotwords: str = ""  # words that may occur, before the prompt
    condition_on_previous_text: bool = False  # one chunk after the other, each knowing the text before it
    suppress_tokens: tuple[int, ...] = (-1,)  # ids that are never written; -1: those that the model names itself
    temperature: float = 0.0  # of the first attempt
    temperature_increment_on_fallback: float = 0.2  # up to 1.0; 0: no second attempt
    best_of: int = 1  # candidates that are drawn at a temperature above 0
    beam_size: int = 1  # beams at temperature 0
    patience: float = 1.0  # how many finished beams are waited for, over beam_size
    length_penalty: float | None = None  # Google NMT's exponent; None: the mean over the tokens
    compression_ratio_threshold: float = 2.4
    logprob_threshold: float = -1.0
    no_speech_threshold: float = 0.6
    sequential: bool = False  # transformers' own long form, one window after the other
    word_timestamps: bool = False
    max_line_width: int | None = None  # characters in a line of a subtitle
    max_line_count: int | None = None  # lines of a subtitle
    max_words_per_line: int | None = None
    highlight_words: bool = False  # a cue for each word, in which it is underlined
    captions: bool = False  # subtitles that people can read in time

    @property
    def aligned(self) -> bool:
        """Whether the times of words are wanted."""
        return self.word_timestamps or self.captions
