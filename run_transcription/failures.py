"""What went wrong with a job, and so what becomes of it: done with, tried again later, or given back at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from enum import Enum

from run_transcription.errors import BrokenOff, Gone, ModelNotLoaded, OutOfMemory, OutOfOrder, Rejected

FIRST_BACK_OFF = 5.0  # seconds until a transient failure is tried again; twice as long each time
LONGEST_BACK_OFF = 900.0
MOST_ENVIRONMENT_FAILURES = 3  # in a row; then the machine is broken
BROKEN_GPU = ("CUDA error", "CUDA driver", "cuDNN", "CUBLAS_STATUS", "no kernel image", "NVIDIA driver", "device-side")
NO_MEMORY = "OutOfMemoryError"  # torch's, by its name: torch is not imported for it


class Kind(Enum):
    """A kind of failure, and what follows from it."""

    OVER = "nothing is left to do"
    PERMANENT = "the recording's fault: it has its failure written, and is done with"
    TRANSIENT = "it may go well another time: again, later each time"
    ENVIRONMENT = "this machine's fault: given back at once, for another one"
    BROKEN_OFF = "the worker has to end: given back at once, with what is finished"


def kind_of(error: BaseException) -> Kind:
    """Tell what kind of failure an error is; what is not known may go well another time."""
    for each in _chain(error):
        if isinstance(each, Gone):
            return Kind.OVER
        if isinstance(each, Rejected):
            return Kind.PERMANENT
        if isinstance(each, BrokenOff):
            return Kind.BROKEN_OFF
        if isinstance(each, (MemoryError, OutOfMemory)) or type(each).__name__ == NO_MEMORY:
            return Kind.TRANSIENT
        if isinstance(each, (OutOfOrder, ModelNotLoaded)) or _breaks_the_gpu(each):
            return Kind.ENVIRONMENT
    return Kind.TRANSIENT


def back_off(receives: int) -> float:
    """Return the seconds to wait after the n-th receipt of one job."""
    return float(min(FIRST_BACK_OFF * 2.0 ** min(receives - 1, 10), LONGEST_BACK_OFF))


class Breaker:
    """Counts failures of the machine in a row, from any thread; too many open it, and it never closes again."""

    def __init__(self, most: int = MOST_ENVIRONMENT_FAILURES) -> None:
        self.most = most
        self.failures = 0
        self.doubtful = False  # whether the machine must show that it works before it takes more
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether this machine is broken."""
        return self.failures >= self.most

    def failed(self) -> None:
        """Count a failure of the machine."""
        with self._lock:
            self.failures += 1
            self.doubtful = True

    def succeeded(self) -> None:
        """Begin to count anew: a finished job shows that the machine works."""
        with self._lock:
            if not self.open:
                self.failures, self.doubtful = 0, False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _breaks_the_gpu(error: BaseException) -> bool:
    said = str(error) if isinstance(error, RuntimeError) else ""
    return any(word in said for word in BROKEN_GPU) and "out of memory" not in said
