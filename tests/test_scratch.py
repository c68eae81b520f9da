from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from run_transcription import scratch


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Let temporary files be made in a folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_private_and_goes_away(temporary):
    """Nobody else may read recordings, and nothing is left."""
    with scratch.private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "recording.wav").write_bytes(b"sound")
    assert list(temporary.iterdir()) == []


def test_what_a_crashed_worker_left_goes_at_the_next_start(temporary):
    """Kill -9 leaves its files; the next worker removes them, and leaves those of living ones alone."""
    program = (
        "import time; from run_transcription.scratch import private_folder\n"
        "with private_folder() as folder:\n    print(folder, flush=True)\n    time.sleep(60)"
    )
    environment = os.environ | {"TMPDIR": str(temporary)}
    crashed, living = (
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    try:
        left, kept = (process.stdout.readline().strip() for process in (crashed, living))
        crashed.send_signal(signal.SIGKILL)
        crashed.wait()
        (temporary / "transcribe-worker-file").write_text("no folder")
        assert Path(left).is_dir()
        with scratch.private_folder():
            assert not Path(left).is_dir()
            assert Path(kept).is_dir()
    finally:
        for process in (crashed, living):
            process.kill()
            process.communicate()
