from __future__ import annotations

import errno

import pytest

from run_transcription.errors import (
    BrokenOff,
    Gone,
    ModelNotLoaded,
    OutOfMemory,
    OutOfOrder,
    Rejected,
    TranscriptionError,
)
from run_transcription.failures import Breaker, Kind, back_off, kind_of


class OutOfMemoryError(RuntimeError):
    """What torch raises, by its name."""


def caused(error, cause):
    """Return an error that was raised from another one."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Rejected("not_audio", "no sound"), Kind.PERMANENT),
        (Gone("gone"), Kind.OVER),
        (caused(Gone("gone"), Rejected("not_found", "no object")), Kind.OVER),
        (BrokenOff("stop"), Kind.BROKEN_OFF),
        (OutOfOrder("disk full"), Kind.ENVIRONMENT),
        (ModelNotLoaded("no model"), Kind.ENVIRONMENT),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Kind.ENVIRONMENT),
        (RuntimeError("CUDA driver initialization failed"), Kind.ENVIRONMENT),
        (caused(TranscriptionError("it failed"), OutOfOrder("disk full")), Kind.ENVIRONMENT),
        (OutOfMemoryError("CUDA out of memory"), Kind.TRANSIENT),
        (RuntimeError("CUDA error: out of memory"), Kind.TRANSIENT),
        (caused(OutOfMemory("8 windows"), RuntimeError("CUDA error: out of memory")), Kind.TRANSIENT),
        (MemoryError(), Kind.TRANSIENT),
        (TranscriptionError("cannot read s3://…: SlowDown"), Kind.TRANSIENT),
        (ZeroDivisionError(), Kind.TRANSIENT),
        (RuntimeError("shapes do not fit"), Kind.TRANSIENT),
        (OSError(errno.ECONNRESET, "reset"), Kind.TRANSIENT),
    ],
)
def test_a_failure_has_its_kind(error, kind):
    """What is nobody's known fault may go well another time; only what never can is the recording's."""
    assert kind_of(error) is kind


def test_each_try_waits_longer_than_the_one_before():
    """From seconds to a quarter of an hour, and never for ever."""
    assert [back_off(receives) for receives in (1, 2, 3)] == [5.0, 10.0, 20.0]
    assert back_off(5000) == 900.0


def test_a_machine_is_broken_after_failures_in_a_row():
    """A success in between shows that it works; once broken it stays so."""
    breaker = Breaker(most=2)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert not breaker.open
    assert breaker.doubtful
    breaker.failed()
    breaker.succeeded()
    assert breaker.open
