"""The commands that make, change and remove a stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from run_transcription import aws, changes, display, fleet, names, notifications, options, preflight, stacks, storage
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Mapping


@options.command("deploy")
@stacks.stack_option
@stacks.region_option
@click.option("--max-workers", type=click.IntRange(min=0), show_default="2, or as it is", help="Most instances.")
@click.option("--set", "parameter", multiple=True, metavar="NAME=VALUE", help="Of the template; several times.")
@click.option("--dry-run", is_flag=True, help="Only check the account and show what would change.")
@click.option("--yes", is_flag=True, help="Change without asking.")
def deploy(  # noqa: PLR0913 - one parameter for each option
    name: str, region: str | None, max_workers: int | None, parameter: tuple[str, ...], *, dry_run: bool, yes: bool
) -> None:
    """Make the stack, or change it to what is given.

    That is a bucket, its queues, and a fleet that grows with them. Checks the account first, and shows what would
    change. A parameter that is not given stays as it is; infra/stack.yaml says what each is for.

    \b
    Examples:
      run-transcription deploy --dry-run
      run-transcription deploy --max-workers 10 --set SpotPercentage=80
    """
    region = aws.require_region(region)
    given = _parameters(parameter) | ({} if max_workers is None else {"MaxWorkers": str(max_workers)})
    _require(_lacking([preflight.credentials(region)]))
    lacking = _lacking(preflight.run(_wanted(name, region, given)))
    if not dry_run:
        _require(lacking)
    prepared = changes.prepare(name, region, given)
    _show(prepared)
    if dry_run:
        changes.discard(prepared)
        _require(lacking)
        click.echo("nothing was done: this was a dry run")
        return
    if prepared.rows:
        if not yes and not _agreed(f"carry that out on {name} in {region}?"):
            changes.discard(prepared)
            raise TranscriptionError("nothing was done")
        changes.carry_out(prepared, _tell)
    stack = stacks.find(name, region)
    if stack.group is not None:
        fleet.keep_zones_as_they_are(stack.group, region)
    _hear_of_uploads(stack)
    for what, value in (("bucket", stack.bucket), ("queue", stack.live_url), ("log", stack.log_group)):
        click.echo(f"{what:<6} {value}")


@options.command("destroy")
@stacks.stack_option
@stacks.region_option
@click.option("--with-bucket", is_flag=True, allow_from_autoenv=False, help="Its bucket too, with all in it.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
def destroy(name: str, region: str | None, *, with_bucket: bool, yes: bool) -> None:
    """Remove the stack, and keep its bucket unless told otherwise.

    Recordings in work are lost from the queues, and stay in the bucket. A later deploy of the same name takes the
    bucket up again.
    """
    region = aws.require_region(region)
    found = stacks.describe(name, region)
    if found is None:
        raise TranscriptionError(f"there is no stack {name} in {region}")
    what = f"the stack {name} in {region}{' and all recordings and results in its bucket' if with_bucket else ''}"
    if not yes and not _agreed(f"remove {what}?"):
        raise TranscriptionError("nothing was done")
    bucket = {each["OutputKey"]: each["OutputValue"] for each in found.get("Outputs", ())}.get("Bucket")
    if bucket is not None and found["StackStatus"] not in changes.REMOVABLE:
        stack = stacks.find(name, region)
        for each in (stack.bucket, *stack.attached):  # S3 takes no new notification beside one to a queue that is gone
            _detach(each, stack)
        if stack.group is not None:
            fleet.let_instances_go(stack.group, region)
    changes.remove(name, region, _tell)
    if bucket is None:
        return
    if with_bucket:
        removed = storage.remove_bucket(bucket)
        click.echo(f"{bucket} is removed, with {removed} versions of objects")
    else:
        click.echo(f"{bucket} is kept")


def _agreed(question: str) -> bool:
    """Ask; Ctrl-C and an end of the input are a no, after which all is tidied up."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        return False


def _parameters(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    for key, sign, _ in pairs:
        if not sign or not key:
            raise click.UsageError(f"--set {key} is no NAME=VALUE.")
    return {key: value for key, _, value in pairs}


def _lacking(checks: list[preflight.Check]) -> list[str]:
    """Print checks as lines of the table, and return the names of those that want something done first."""
    for check in checks:
        click.echo(options.one_line(f"{'ok   ' if check.ok else 'TO DO'} {check.name:<16} {check.text}"))
    return [check.name for check in checks if not check.ok]


def _require(lacking: list[str]) -> None:
    if lacking:
        raise TranscriptionError(f"nothing was done: see {', '.join(lacking)} above")


def _wanted(name: str, region: str, given: Mapping[str, str]) -> preflight.Wanted:
    """Return what the stack will be: as the template says, as it is already, as it was asked for."""
    now = {**changes.defaults(region), **stacks.parameters_of(stacks.describe(name, region) or {}), **given}
    try:
        return preflight.Wanted(
            stack=name,
            region=region,
            max_workers=int(now["MaxWorkers"]),
            spot_percentage=int(now["SpotPercentage"]),
            image_parameter=now["ImageParameter"],
            vpc_id=now["VpcId"],
            subnet_ids=tuple(each for each in now["SubnetIds"].split(",") if each),
        )
    except ValueError as error:
        raise TranscriptionError(f"MaxWorkers and SpotPercentage must be numbers: {error}") from error


def _show(prepared: changes.ChangeSet) -> None:
    for row in prepared.rows:
        click.echo(f"{row.action:<7} {row.resource:<24} {row.kind}{', replaced' if row.replaced else ''}")
    if not prepared.rows:
        click.echo("nothing changes")


def _tell(event: changes.Event) -> None:
    display.say(options.one_line(f"{event.status:<28} {event.resource} {event.reason}".rstrip()))


def _hear_of_uploads(stack: stacks.Stack) -> None:
    """Let a bucket that an earlier stack has left announce its uploads: CloudFormation takes it up as it is."""
    if notifications.prefix_of(stack.bucket, stack) is None:
        notifications.attach(stack.bucket, names.UPLOADS, stack)


def _detach(bucket: str, stack: stacks.Stack) -> None:
    """Take our notification away; a bucket that is gone, or not ours any more, keeps nobody from removing the stack."""
    try:
        notifications.detach(bucket, stack)
    except TranscriptionError as error:
        display.say(options.one_line(f"passed over: {error}"))
