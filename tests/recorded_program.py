"""The program as a process of its own that writes down its calls to AWS: recorded_program.py FILE.

It imports what a worker needs, which takes seconds, and then waits on its standard input for what it is to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import permissions
import pytest

from run_transcription import __main__ as program


@contextmanager
def started(files: Sequence[Path]) -> Iterator[list[subprocess.Popen[str]]]:
    """Run a process for each file, which has its calls once it has ended."""
    pipe, environment = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
    how = {"env": environment, "stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True}
    processes = [subprocess.Popen([sys.executable, __file__, str(file)], **how) for file in files]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def tell(process: subprocess.Popen[str], *arguments: object, environment: dict[str, str]) -> None:
    """Let it run the program, with these arguments and in this environment alone."""
    told = {"arguments": [str(argument) for argument in arguments], "environment": environment}
    process.stdin.write(json.dumps(told) + "\n")
    process.stdin.flush()


def calls_in(file: Path) -> set[permissions.Call]:
    """Return the calls that a process has written down."""
    return {permissions.Call(action, resource) for action, resource in json.loads(file.read_text())}


def main() -> None:
    """Import, wait, and run the program in this process."""
    from transformers import WhisperForConditionalGeneration  # noqa: F401 - only that it is there

    from run_transcription import worker  # noqa: F401
    from run_transcription.engines import torch_engine  # noqa: F401

    told = json.loads(sys.stdin.readline())
    os.environ.clear()
    os.environ.update(told["environment"])
    file = Path(sys.argv[1])
    with pytest.MonkeyPatch.context() as patch, permissions.recorded(patch) as calls:
        try:
            program.main(told["arguments"], prog_name="run-transcription")
        finally:
            file.write_text(json.dumps([(call.action, call.resource) for call in calls]))


if __name__ == "__main__":
    main()
