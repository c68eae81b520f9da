from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from faults.imds import metadata

from run_transcription import ec2, errands, interruption, leases, service
from run_transcription.interruption import Stop, stoppable
from run_transcription.leases import Heart


def terminate():
    """Send this process the signal that systemd sends."""
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_asks_for_an_end_and_a_second_one_for_it_now():
    """The first leaves the job its time; who asks twice does not want to wait."""
    with stoppable(60) as stop:
        assert not stop.requested
        terminate()
        assert stop.requested
        assert not stop.overdue
        terminate()
        assert stop.overdue


def test_signal_handlers_are_put_back():
    """Nothing of the worker's signals stays behind."""
    before = signal.getsignal(signal.SIGTERM)
    with stoppable(60):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_earliest_deadline_counts():
    """A spot notice after a recommendation has a time; a later one does not make it longer."""
    stop = Stop()
    stop.ask("a recommendation", None)
    assert stop.requested
    assert stop.leaves_time_for(1e9)
    stop.ask("a notice", 10)
    stop.ask("another one", 100)
    assert stop.leaves_time_for(5)
    assert not stop.leaves_time_for(20)
    assert stop.leaves_time_for(None)
    assert stop.reason == "a recommendation"


def test_notices_of_the_instance_are_heard(monkeypatch):
    """They are looked for again and again while the worker works."""
    monkeypatch.setattr(interruption, "NOTICE_SECONDS", 0.05)
    stop = Stop()
    with metadata() as server, interruption.notices(ec2.Instance(ec2.Metadata(server.endpoint), "i", "a", "r"), stop):
        time.sleep(0.3)
        assert not stop.requested
        server.facts["autoscaling/target-lifecycle-state"] = "Terminated"
        time.sleep(0.5)
    assert stop.requested
    assert "takes the instance out" in stop.reason


@pytest.mark.parametrize(("stalls", "status"), [(True, 1), (False, 0)])
def test_what_hangs_or_is_out_of_time_is_abandoned(stalls, status):
    """The watching thread acts, since the one that hangs in a library hears no signal."""
    stop, heart, seen = Stop(), Heart(0.2 if stalls else 60.0), []
    with interruption.guard(stop, heart, lambda why, code: seen.append((why, code))):
        if not stalls:
            stop.ask("a notice", 0.1)
        deadline = time.monotonic() + 5
        while not seen and time.monotonic() < deadline:
            time.sleep(0.05)
    assert seen
    assert {code for _, code in seen} == {status}


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """Listen as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_the_unit_expects_what_the_worker_does():
    """It waits for READY, misses no beat of a worker that is busy to end, and kills none that still has its time."""
    root = Path(__file__).parents[1] / "packer/rootfs/etc"
    unit = dict(
        re.findall(r"^(\w+)=(.*)$", (root / "systemd/system/transcribe-worker.service").read_text(), re.MULTILINE)
    )
    (stop_seconds,) = re.findall(r"TRANSCRIBE_STOP_SECONDS=(\d+)", (root / "transcribe.env").read_text())
    farewell = 2 * service.SAVING_SECONDS + errands.POLL_ENDS_SECONDS
    assert (unit["Type"], unit["NotifyAccess"], unit["Restart"]) == ("notify", "main", "on-failure")
    gone = farewell + service.LETTING_GO_SECONDS
    assert float(unit["WatchdogSec"]) > 2 * interruption.NOTICE_SECONDS + gone
    assert float(unit["TimeoutStartSec"]) >= leases.STALL_SECONDS
    assert float(unit["TimeoutStopSec"]) > float(stop_seconds) + gone
    assert farewell <= ec2.MARGIN


def test_systemd_hears_that_the_worker_lives(manager):
    """The watchdog is fed while there is progress."""
    with interruption.guard(Stop(), Heart(60), lambda *_: None):
        assert manager.recv(100) == b"WATCHDOG=1"


def test_the_watchdog_of_a_hanging_job_is_not_fed(manager):
    """Only the work that makes progress feeds it."""
    manager.settimeout(0.7)
    heart = Heart(0.0)
    with interruption.guard(Stop(), heart, lambda *_: None), pytest.raises(TimeoutError):
        manager.recv(100)


def test_a_manager_that_does_not_listen_holds_nobody_up(manager, caplog, monkeypatch):
    """Whoever guards the end of a job can't wait for a queue that nobody reads."""
    monkeypatch.setattr(interruption, "TELLING_SECONDS", 0.05)
    for _ in range(1000):
        interruption.tell_systemd("WATCHDOG=1")
        if caplog.messages:
            break
    assert "systemd can't be told WATCHDOG=1" in caplog.text


def test_without_systemd_nothing_is_told(monkeypatch, caplog):
    """Started by hand, there is nobody to tell; a manager that is gone is one line in the log."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    interruption.tell_systemd("READY=1")
    assert caplog.messages == []
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    interruption.tell_systemd("READY=1")
    assert "READY=1" in caplog.text
