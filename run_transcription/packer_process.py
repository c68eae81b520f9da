"""Packer as a child process: which one is here, its run with live progress, and how it is interrupted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

from run_transcription.errors import TranscriptionError

OLDEST = (1, 6, 6)  # what Debian and Ubuntu have
MODERN = (1, 7, 0)  # knows required_plugins, and with its plugin IMDSv2
PROBE_SECONDS = 20.0
CLEAN_UP_SECONDS = 900.0  # for instance, key and security group; longer means that somebody has to look
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# what packer says when a step begins, and the step's name; a script is its own step
STEPS = (
    (re.compile(r"Prevalidating"), "check"),
    (re.compile(r"(Creating temporary|Launching|Using existing SSH|Found Image)"), "launch"),
    (re.compile(r"(Using ssh communicator|Waiting for SSH)"), "connect"),
    (re.compile(r"Uploading"), "upload"),
    (re.compile(r"Provisioning with shell script: .*/([a-z-]+)\.sh$"), ""),
    (re.compile(r"Downloading"), "download"),
    (re.compile(r"Stopping the source instance"), "stop"),
    (re.compile(r"Creating AMI"), "create image"),
    (re.compile(r"(Terminating the source|Cleaning up)"), "clean up"),
)
CAPACITY = re.compile(
    r"Insufficient\w*Capacity|no Spot capacity|UnfulfillableCapacity|SpotMaxPriceTooLow|MaxSpotInstanceCountExceeded"
    # of a fleet packer says EC2's sentence without its code
    r"|not have sufficient .*capacity|Spot request price .* is lower|Max spot instance count exceeded"
    r"|instance type .* is not supported in your requested Availability Zone",
    re.IGNORECASE,
)


# what variables.pkr.hcl says of a wrong value, and what packer says of one of another type
RULE = re.compile(r"The (\w+) must .*?\.(?= This was checked)|The value for (\w+) is not compatible with .*?\.(?= |$)")


class WrongVariable(TranscriptionError):
    """A variable that its rule refuses; the message is the rule's."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Watch:
    """How long a run may take, and who is told of its steps."""

    limit: float  # seconds
    on_step: Callable[[str, float], None]  # a step begins, so many seconds after the start


@dataclass(frozen=True, slots=True)
class Packer:
    """A packer that can do the work."""

    path: str
    version: tuple[int, int, int]

    @property
    def modern(self) -> bool:
        """Whether it knows required_plugins and metadata_options."""
        return self.version >= MODERN

    @property
    def name(self) -> str:
        """Its version as a person writes it."""
        return ".".join(map(str, self.version))


@dataclass(slots=True)
class Course:
    """What a run of packer has said so far; steps have the seconds that they took."""

    began: float
    step: str = "start"
    since: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    failed: str = ""  # the step before the clearing away, in which it failed if it did
    status: int | None = None
    overtime: bool = False

    @property
    def lacks_capacity(self) -> bool:
        """Whether it failed for want of an instance: another type or zone may have one."""
        return any(CAPACITY.search(error) for error in self.errors)

    def reason(self) -> str:
        """Return the error that says most: what packer said of the build itself comes after what went wrong."""
        own = [error for error in self.errors if not re.match(r"(Build '|Script exited|\d+ error|Some builds)", error)]
        return (own or self.errors or ["packer said nothing"])[-1]

    def enter(self, step: str) -> None:
        """Let a step begin, and the one before it end."""
        now = time.monotonic() - self.began
        self.seconds[self.step] = self.seconds.get(self.step, 0.0) + now - self.since
        self.step, self.since = step, now


def find() -> Packer:
    """Return the packer that PACKER names, or the one on PATH; raises TranscriptionError where there is none to use."""
    wanted = os.environ.get("PACKER") or "packer"
    path = shutil.which(wanted)
    if path is None:
        raise TranscriptionError(
            f"{wanted} is not here: install it (`make tools`, where the system has it), or set PACKER to its path"
        )
    try:
        asked = subprocess.run(
            [path, "version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
            env=os.environ | {"CHECKPOINT_DISABLE": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TranscriptionError(f"{path} can't be run: {error}") from error
    found = re.search(r"Packer v(\d+)\.(\d+)\.(\d+)", asked.stdout)
    if found is None:  # some systems have another program of this name
        raise TranscriptionError(f"{path} is not HashiCorp's packer: set PACKER to the path of that")
    packer = Packer(path, (int(found[1]), int(found[2]), int(found[3])))
    if packer.version < OLDEST:
        raise TranscriptionError(f"{path} is packer {packer.name}, and the oldest that works is 1.6.6")
    return packer


def validate(packer: Packer, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Let packer look at templates and variables; raises WrongVariable, or TranscriptionError with all that it says."""
    commands = [["init", arguments[-1]]] if packer.modern else []
    for command in [*commands, ["validate", *arguments]]:
        done = subprocess.run(
            [packer.path, *command], env=dict(environment), capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = " ".join((done.stdout + done.stderr).split())
            if broken := RULE.search(said):
                raise WrongVariable(broken[1] or broken[2], broken[0])
            raise TranscriptionError(f"packer {command[0]} fails: {said}")


def build(packer: Packer, arguments: Sequence[str], environment: Mapping[str, str], log: Path, watch: Watch) -> Course:
    """Run a build to its end, or for as long as it may; whatever ends it, packer is let remove what it made."""
    command = [packer.path, "build", "-machine-readable", "-color=false", *arguments]
    course = Course(time.monotonic())
    with log.open("a", encoding="utf-8") as written, _signals_unwind():
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own: packer ignores what its own pid alone is sent
        )
        timer = threading.Timer(watch.limit, _overtime, (process, course))
        timer.start()
        try:
            _follow(process, course, partial(_keep, written, environment.get("PKR_VAR_hf_token", "")), watch)
        except BaseException:
            _interrupt(process)
            _let_clean_up(process, course)
            raise
        finally:
            timer.cancel()
    course.failed = course.failed or course.step
    course.enter("end")
    course.status = process.wait()
    return course


def _follow(process: subprocess.Popen[str], course: Course, keep: Callable[[str], str], watch: Watch) -> None:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    for line in process.stdout:
        kind, text = said(keep(line))
        if kind == "error":
            course.errors.append(text)
        step = step_of(text) if kind == "say" else None
        if step is not None and step != course.step:
            course.failed = course.failed or (course.step if step == "clean up" else "")
            course.enter(step)
            watch.on_step(step, course.since)


def _keep(log: TextIO, secret: str, line: str) -> str:
    """Write a line into the log at once, and return it; without the token should a program have said it."""
    harmless = line.replace(secret, "<HF_TOKEN>") if secret else line
    log.write(harmless)
    log.flush()
    return harmless


def said(line: str) -> tuple[str, str]:
    """Return kind and text of a machine-readable line that is for people; ("", "") for others."""
    parts = line.rstrip("\n").split(",", 4)
    if len(parts) < 5 or parts[2] != "ui":  # noqa: PLR2004 - time, target, ui, kind, text
        return "", ""
    text = parts[4].replace("%!(PACKER_COMMA)", ",").replace("\\n", " ").replace("\\r", "")
    return parts[3], re.sub(r"^\s*([=-]+> )?(amazon-ebs\.\w+: )?", "", text, count=1).strip()


def step_of(text: str) -> str | None:
    """Return the step that begins with what packer says, if one does."""
    for pattern, step in STEPS:
        if found := pattern.match(text):
            return step or found[1]
    return None


def _overtime(process: subprocess.Popen[str], course: Course) -> None:
    course.overtime = True
    _interrupt(process)


def _interrupt(process: subprocess.Popen[str]) -> None:
    """Ask packer's whole group to end; never SIGKILL, which would leave an instance running."""
    try:
        os.killpg(process.pid, signal.SIGINT)
    except ProcessLookupError:
        return


def _let_clean_up(process: subprocess.Popen[str], course: Course) -> None:
    try:
        process.communicate(timeout=CLEAN_UP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TranscriptionError(
            f"packer (pid {process.pid}) still cleans up after {CLEAN_UP_SECONDS:.0f} s in {course.step!r}: look at "
            "its log, and let `run-transcription ami gc` find what is left"
        ) from error


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, and a second signal not disturb the clearing away."""
    if threading.current_thread() is not threading.main_thread():  # where signals don't arrive
        yield
        return

    def unwind(number: int, _frame: object) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
