"""What a person sees while it runs, all on standard error: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

LINE_SECONDS = 10.0  # between two lines where there is no terminal

Progress = Callable[[float, float | None], None]  # seconds of the recording that are done, and of how many


def say(line: str) -> None:
    """Write one line."""
    click.echo(line, err=True)


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """Show how far one recording is while the block runs."""
    if sys.stderr.isatty():
        with _bar(label) as advance:
            yield advance
    else:
        yield _lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[seconds]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # standard output is left alone: what is printed there may go into a file
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bars:
        task = bars.add_task(escape(label), total=None, seconds="")
        yield lambda done, of: bars.update(task, completed=done, total=of, seconds=_share(done, of))


def _lines(label: str) -> Progress:
    """Return a progress that writes a line at most every LINE_SECONDS."""
    said = time.monotonic()

    def advance(done: float, of: float | None) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            say(f"{label}: {_share(done, of)} done")

    return advance


def _share(done: float, of: float | None) -> str:
    return f"{done:.0f} s" if of is None else f"{done:.0f} of {max(of, done):.0f} s"
