"""The program as a process of its own that writes down its calls to AWS: recorded_program.py FILE COMMAND..."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import permissions
import pytest

from run_transcription import __main__ as program


def start(file: Path, *arguments: object, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start the program; once it has ended its calls are in the file."""
    command = [sys.executable, __file__, str(file), *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def calls_in(file: Path) -> set[permissions.Call]:
    """Return the calls that a process has written down."""
    return {permissions.Call(action, resource) for action, resource in json.loads(file.read_text())}


def main() -> None:
    """Run the program in this process."""
    file, *arguments = sys.argv[1:]
    with pytest.MonkeyPatch.context() as patch, permissions.recorded(patch) as calls:
        try:
            program.main(arguments, prog_name="run-transcription")
        finally:
            Path(file).write_text(json.dumps([(call.action, call.resource) for call in calls]))


if __name__ == "__main__":
    main()
