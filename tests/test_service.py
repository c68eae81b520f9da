from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from run_transcription import options, service
from run_transcription.errands import Shift
from run_transcription.errors import BrokenOff
from run_transcription.interruption import Stop
from run_transcription.leases import Heart
from run_transcription.records import Advance


@pytest.fixture
def shift(tmp_path):
    """Make what the threads of a worker share; there is no model in it."""
    return Shift(None, tmp_path, Stop(), Heart())


@dataclass
class Clock:
    """Stands in for time: nothing waits."""

    now: float = 0.0

    def monotonic(self):
        return self.now


@pytest.mark.parametrize(
    ("batch", "saving", "between"),
    [(1.5, 0.05, 1.55), (30.0, 1.0, 31.0), (1.0, 1.0, 21.0), (1.0, 9.0, 69.0)],
    ids=["cheap", "slow model", "costly", "at last"],
)
def test_progress_is_saved_as_often_as_that_is_cheap(shift, monkeypatch, batch, saving, between):
    """After each batch where that takes a twentieth of the time, else more rarely; once a minute whatever it takes."""
    clock, saved = Clock(), []
    monkeypatch.setattr(service, "time", clock)

    def save():
        saved.append(clock.now)
        clock.now += saving

    progress = SimpleNamespace(add=lambda _advance: None, save=save)
    keeping = service.Keeping(shift, errand(progress))
    while len(saved) < 4:
        clock.now += batch
        keeping.after_batch(Advance(clock.now, ()))
    assert saved[0] >= 2.0  # a short job is not worth it
    assert saved[3] - saved[2] == pytest.approx(between)


def errand(progress, length=None):
    """Make as much of an errand as is looked at between two batches."""
    return SimpleNamespace(progress=progress, reader=SimpleNamespace(duration_hint=length))


@pytest.mark.parametrize("seconds", [3.0, 100.0])
def test_a_job_that_can_end_in_time_ends(shift, monkeypatch, seconds):
    """By the speed of the last batch it is reckoned whether the rest and its storing fit into the time that is left."""
    clock = Clock()
    monkeypatch.setattr(service, "time", clock)
    progress = SimpleNamespace(add=lambda _advance: None, save=lambda: None)
    keeping = service.Keeping(shift, errand(progress, length=100.0))
    shift.stop.ask("a test", seconds)
    clock.now = 2.0
    if seconds < 10:  # 80 s of sound are left, at 10 s of it in a second
        with pytest.raises(BrokenOff, match="a test"):
            keeping.after_batch(Advance(20.0, ()))
    else:
        keeping.after_batch(Advance(20.0, ()))


def test_any_number_of_failures_has_its_pause(shift):
    """A worker whose queue is away for a night must be there in the morning."""
    shift.stop.ask("a test", 0)
    service.pause(5000, shift)


def test_an_end_in_a_hurry_gives_back_first_and_lets_the_instance_go_then(shift, monkeypatch):
    """The group ends an instance at once when it is let go: nothing may be left in its hands."""
    done = []
    keeper = SimpleNamespace(release_all=lambda: done.append("messages") or 1)
    monkeypatch.setattr(options, "end_at_once", done.append)
    service.abandon(shift, keeper, lambda: done.append("instance"), "a test", 0)
    assert done == ["messages", "instance", 0]
    assert not shift.folder.exists()


def test_a_group_that_does_not_answer_keeps_no_process(tmp_path, monkeypatch):
    """Whoever is asked at the end has seconds."""
    done = []
    monkeypatch.setattr(options, "end_at_once", done.append)
    monkeypatch.setattr(service, "LETTING_GO_SECONDS", 0.1)
    service.leave(tmp_path, threading.Event().wait, "a test", 1)
    assert done == [1]
