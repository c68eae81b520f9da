"""The errors that callers tell apart; each message is one line that names the thing and says what to do."""

from typing import Literal, get_args

ReasonCode = Literal[
    "not_found",
    "not_readable",
    "empty_file",
    "not_audio",
    "no_audio",
    "refused_playlist",
    "too_long",
    "too_large",
    "unsupported_option",
    "refused_key",
]
REASON_CODES: tuple[ReasonCode, ...] = get_args(ReasonCode)


class TranscriptionError(Exception):
    """Anything that this program says in one line instead of a traceback."""


class Gone(TranscriptionError):
    """A recording is not there any more, or another content has taken its place: there is nothing left to do."""


class DoneBefore(Gone):
    """A recording has its result or its failure already, from an earlier try or from another worker."""


class BrokenOff(TranscriptionError):
    """A job was left between two batches, since the worker must end before the job could."""


class OutOfOrder(TranscriptionError):
    """This machine can't do the work now, whichever the recording: a full disk, a GPU that does not answer."""


class Unavailable(TranscriptionError):
    """A loading strategy does not apply here; the message is the reason, and the next strategy is tried."""


class ModelNotLoaded(TranscriptionError):
    """No strategy could load the model; the message names each one and its reason."""


class OutOfMemory(TranscriptionError):
    """The device has no room for so many windows at a time; fewer may fit."""


class Rejected(TranscriptionError):
    """A recording that can never be transcribed: trying again would fail in the same way."""

    def __init__(self, code: ReasonCode, message: str) -> None:
        super().__init__(message)
        self.code: ReasonCode = code
