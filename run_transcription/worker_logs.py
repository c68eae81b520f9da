"""The command that shows the workers' log."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from run_transcription import aws, display, options, stacks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from run_transcription.stacks import Stack

LOOK_SECONDS = 5.0


@options.command("logs")
@stacks.stack_option
@stacks.region_option
@click.option("--minutes", type=click.FloatRange(min=0), default=60.0, help="How far back.")
@click.option("--filter", "pattern", default="", metavar="PATTERN", help="Of CloudWatch, such as '{ $.failed = 1 }'.")
@click.option("--follow", is_flag=True, allow_from_autoenv=False, help="Go on with what comes, until Ctrl-C.")
def logs(name: str, region: str | None, *, minutes: float, pattern: str, follow: bool) -> None:
    """Show what the workers have logged.

    A JSON line for each job, without a word of the recording; before it the instance.

    \b
    Example:
      run-transcription logs --minutes 1440 --filter '{ $.failed = 1 }'
    """
    stack = stacks.find(name, aws.require_region(region))
    since = _milliseconds(datetime.now(UTC) - timedelta(minutes=minutes))
    shown: set[str] = set()
    nothing = f"no line of the last {minutes:g} minutes" + (f" fits {pattern}" if pattern else "")
    while True:
        newest = since
        for event in events(stack, since, pattern):
            newest = max(newest, event["timestamp"])
            if event["eventId"] not in shown:
                shown.add(event["eventId"])
                click.echo(options.one_line(f"{event['logStreamName']} {event['message'].rstrip()}"))
        if nothing and not shown:
            display.say(options.one_line(nothing + (": waiting" if follow else ": --minutes goes further back")))
        nothing = ""
        if not follow:
            return
        if newest > since:  # what has the newest time may not be complete yet: it is asked for again
            since, shown = (
                newest,
                {each["eventId"] for each in events(stack, newest, pattern) if each["eventId"] in shown},
            )
        time.sleep(LOOK_SECONDS)


def events(stack: Stack, since: int, pattern: str) -> Iterator[Any]:
    """Yield the events of all instances since a time in milliseconds, in order; raises TranscriptionError."""
    with aws.plainly(f"read the log {stack.log_group}"):
        client = aws.client("logs", stack.region)
        pages = client.get_paginator("filter_log_events").paginate(
            logGroupName=stack.log_group, startTime=since, **({"filterPattern": pattern} if pattern else {})
        )
        for page in pages:
            yield from page["events"]


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)
