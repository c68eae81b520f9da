"""The nouns: what the stages hand to one another. Times are seconds, samples are mono float32 at 16 kHz."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from run_transcription.audit import Quality
from run_transcription.decoding import Decoding as Decoding  # noqa: PLC0414 - one of the nouns, on a page of its own
from run_transcription.decoding import Task as Task  # noqa: PLC0414

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
SCHEMA_VERSION = "1.0"
Status = Literal["QUEUED", "IN_PROGRESS", "COMPLETED", "FAILED"]
ENGINES = ("torch", "ctranslate2")
DTYPES = ("float32", "float16", "bfloat16", "int8", "int8_float16", "int8_bfloat16")  # torch has the first three
Given = tuple[tuple[str, str], ...]  # options by name, in order, each with its value as text


@dataclass(frozen=True, slots=True)
class Word:
    """One word in recording time, with its leading space, and the mean probability of its tokens."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """One cue of a transcript in recording time; the fields are openai/whisper's."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    seek: int  # where its chunk begins, in frames of 10 ms
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    language: str | None
    confidence: float = 0.0  # geometric mean of the probabilities of its tokens
    words: tuple[Word, ...] = ()
    channel: int | None = None  # counted from 1; None: all channels mixed


@dataclass(frozen=True, slots=True)
class Chunk:
    """At most 30 s of a recording: first sample, and the sample after the last."""

    start: int
    end: int
    channel: int | None = None  # counted from 1; None: all channels mixed


@dataclass(frozen=True, slots=True)
class Row:
    """What an engine returns for one chunk: token ids without prompt and without end of text."""

    tokens: tuple[int, ...]
    language: str | None
    language_probability: float
    no_speech_prob: float
    avg_logprob: float  # of all tokens and the end of text, whatever the temperature was
    temperature: float = 0.0
    complete: bool = True  # False: cut off where the model can write no more, before it came to an end
    logprobs: tuple[float, ...] = ()  # of each token; empty where the engine doesn't tell
    attempts: int = 1  # how often it was decoded until it was kept
    times: tuple[tuple[float, float], ...] = ()  # when each token begins and ends, in seconds of its chunk


@dataclass(frozen=True, slots=True)
class Advance:
    """What one batch added: how far the recording is done, in seconds, and the rows of its chunks."""

    seconds: float
    rows: tuple[tuple[Chunk, Row], ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds spent by stage; `wall` is start to end, so overlapping stages may add up to more."""

    decode: float = 0.0
    features: float = 0.0
    encode: float = 0.0
    generate: float = 0.0
    upload: float = 0.0
    wall: float = 0.0

    def __add__(self, other: Timing) -> Timing:
        """Add stage by stage."""
        return Timing(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine call: a row for each chunk, in order, and the seconds it took by stage."""

    rows: tuple[Row, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, and where and how it shall run; `auto` is resolved by the loader."""

    model: str  # Hugging Face id, local folder, or "demo"
    revision: str | None = None
    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "auto"  # auto, or one of DTYPES
    attention: str = "sdpa"  # sdpa | flash_attention_2 | eager
    engine: str = "torch"  # one of ENGINES
    home: Path | None = None  # None: TRANSCRIBE_HOME, as storage.home() finds it


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine: the folder with its files, and the revision of what is in them."""

    id: str
    path: Path
    revision: str  # commit, or a hash of the content for a folder
    stamps: str = ""  # sizes and times of the files that the hash was made of; "" for a commit


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What was loaded, with every `auto` resolved."""

    id: str
    revision: str  # commit, or a hash of the content for a folder
    device: str
    dtype: str
    attention: str
    engine: str = "torch"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A strategy that did not load the model, and why."""

    strategy: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Which strategy loaded the model, in how many seconds, and which were passed over."""

    strategy: str
    seconds: float
    skipped: tuple[Skipped, ...] = ()


class Engine(Protocol):
    """Decodes batches of chunks; knows tensors, so that nobody else has to."""

    facts: ModelFacts
    tokenizer: Tokenizer

    def check(self, decoding: Decoding) -> Decoding:
        """Return it with its language as a code; raise Rejected (unsupported_option) where this model can't so."""

    def transcribe(self, windows: Sequence[Samples], decoding: Decoding) -> Batch:
        """Decode windows (each float32 [samples], at most 30 s): a row for each, in order. May raise OutOfMemory."""

    def transcribe_sequentially(
        self, samples: Samples, decoding: Decoding, reached: Callable[[float], None]
    ) -> tuple[tuple[Chunk, ...], Batch]:
        """Decode float32 [samples] of any length by its library's long form: the segments' chunks, and their rows.

        `reached` is told on the way how many seconds are done. May raise OutOfMemory.
        """


class Tokenizer(Protocol):
    """The few facts of a Whisper vocabulary that text needs."""

    timestamp_begin: int  # id of <|0.00|>; each id above is 0.02 s later
    end_of_text: int  # ids below are text

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids, special tokens and timestamps left out."""


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """A loaded model, ready to transcribe."""

    engine: Engine
    load: LoadReport


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What decoding a recording found; complete once its last block was read."""

    duration: float
    container: str
    codec: str
    sample_rate: int
    channels: int
    size: int  # bytes of the file
    gaps: float = 0.0  # seconds of silence put where the stream had none
    replaced_samples: int = 0  # NaN and infinite samples set to zero
    mix: str = "average"  # or "channel N": the mix had cancelled out; "split": each channel by itself
    warnings: tuple[str, ...] = ()  # damage that was passed over, such as a truncated end


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of one recording."""

    language: str | None
    language_probability: float
    task: Task
    duration: float
    segments: tuple[Segment, ...]
    truncated_chunks: int = 0  # whose text broke off at the longest text that the model can write
    quality: Quality = field(default_factory=Quality)

    @property
    def text(self) -> str:
        """All segments' text, joined as openai/whisper joins it."""
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Job:
    """One recording to transcribe, and where its result goes. Addresses are paths or s3://bucket/key."""

    recording: str
    results: str  # address without extension: ".json", ".srt", … are added
    failed: str | None = None  # address of the FAILED result; None: it is only returned
    version_id: str | None = None
    identity: str | None = None
    version: str | None = None  # version id, or eTag in a bucket without versions
    sequencer: str | None = None  # S3's: of two events of one key the later one has the greater
    options: Given = ()  # what was asked for with this recording


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a result: where it lies, and what is in it."""

    address: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a recording has no transcript: a code from errors.REASON_CODES, and one line."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """What the json of a recording says: the transcript and how it came about."""

    status: Status
    job: Job
    options: Decoding
    model: ModelFacts
    load: LoadReport
    transcript: Transcript | None = None  # None: FAILED
    audio: AudioFacts | None = None  # None: the recording could not be opened
    timing: Timing = Timing()
    files: dict[str, StoredFile] = field(default_factory=dict)  # by format
    error: Failure | None = None
