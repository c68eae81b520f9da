"""The command that says how a stack is doing."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from run_transcription import aws, fleet_report, options, stacks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from run_transcription.fleet_report import Report

WATCH_SECONDS = 10.0


@options.command("status")
@stacks.stack_option
@stacks.region_option
@click.option("--watch", is_flag=True, allow_from_autoenv=False, help="Again every 10 s, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="As JSON, one line each time.")
def status(name: str, region: str | None, *, watch: bool, as_json: bool) -> None:
    """Say how the stack is doing.

    Queues, alarms that stand, instances, their image, what they have done in the last hour, launches that failed in
    EC2's own words, hours and cost of the instances that are there, and the hours of all in the last 30 days.

    \b
    Example:
      run-transcription status --watch
    """
    stack = stacks.find(name, aws.require_region(region))
    while True:
        report = fleet_report.make(stack, datetime.now(UTC))
        if as_json:
            click.echo(json.dumps(asdict(report) | {"hours": report.hours, "cost": report.cost}))
        else:
            if watch:
                click.clear()
            for line in lines(report):
                click.echo(options.one_line(line))
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def lines(report: Report) -> Iterator[str]:
    """Yield a report for people."""
    yield f"stack      {report.stack}: {report.status}"
    for queue in report.queues:
        yield f"queue      {queue.role:<8} {queue.waiting} wait, {queue.in_work} in work"
    for alarm in report.alarms:
        yield f"alarm      {alarm.name} since {alarm.since}: {alarm.text}"
    if not report.fleet:
        yield "fleet      none: MaxWorkers is 0"
        return
    image = report.image or "no image"
    yield f"instances  {len(report.instances)} of {report.wanted} wanted; new ones start from {image}"
    for each in report.instances:
        cost = "price unknown" if each.cost is None else f"${each.cost:.2f}"
        paid, old = "spot" if each.spot else "on demand", "" if each.image == report.image else f", old {each.image}"
        yield f"           {each.id} {each.type} {each.zone} {each.state} {paid} {each.hours:.1f} h {cost}{old}"
    rate = f", RTFx {report.audio_seconds / report.busy:.0f}" if report.busy else ""
    sound = f"{report.audio_seconds / 3600:.1f} h of sound{rate}"
    yield f"last hour  {report.finished:.0f} finished, {report.failed:.0f} failed, {sound}"
    if report.self_test_failures:
        yield f"broken     {report.self_test_failures:.0f} self-tests failed: see run-transcription logs"
    for launch in report.failed_launches:
        yield f"no launch  {launch.at} {launch.reason}"
    cost = "unknown" if report.cost is None else f"${report.cost:.2f}"
    yield f"so far     {report.hours:.1f} hours of these instances, {cost}"
    yield f"30 days    {report.month_hours:.1f} instance hours in service, with those that have ended"
    for warning in report.warnings:
        yield f"warning    {warning}"
