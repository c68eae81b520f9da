"""Child processes that end with the block that started them."""

from __future__ import annotations

import signal
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

STOP_SECONDS = 10  # from SIGTERM to SIGKILL
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Process = subprocess.Popen[bytes]


@contextmanager
def running(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Process]:
    """Run a program while the block runs, its output in a file; it is gone afterwards, whatever happens.

    It gets a session of its own: a Ctrl-C on the terminal reaches us alone, and we end our children in order.
    """
    with ExitStack() as clean_up:
        with _signals_held_back(), log.open("wb") as output:
            process = subprocess.Popen(
                arguments,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            clean_up.callback(_end, process)
        yield process


def last_line(log: Path) -> str:
    """Return what a program said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let signals that come while the block runs come after it: a child that nobody knows yet would be left behind."""
    if threading.current_thread() is not threading.main_thread():  # where signals don't arrive
        yield
        return
    came: list[int] = []
    before = {number: handler for number in ENDING if callable(handler := signal.getsignal(number))}
    try:
        for number in before:
            signal.signal(number, lambda number, _frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for each in came:
            signal.raise_signal(each)


def _end(process: Process) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()  # does nothing where it has ended
        process.wait()
