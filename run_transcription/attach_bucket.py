"""The command that lets a stack transcribe what another bucket gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from run_transcription import aws, changes, display, fleet, names, notifications, options, stacks, storage
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from run_transcription.stacks import Stack


@options.command("attach-bucket")
@click.argument("bucket", type=options.BucketName())
@click.option("--prefix", default=names.UPLOADS, help="What the keys of recordings begin with; '' is every key.")
@click.option("--detach", is_flag=True, allow_from_autoenv=False, help="Take the bucket away again.")
@stacks.stack_option
@stacks.region_option
def attach_bucket(bucket: str, prefix: str, name: str, region: str | None, *, detach: bool) -> None:
    """Transcribe what is uploaded to a bucket that is there already.

    Its notifications to others stay as they are. Results go to the stack's own bucket, below results/KEY. Instances
    that run give back their work and are replaced: they know only the buckets that were there when they started. A
    bucket has one prefix: another one takes the place of the first.

    \b
    Example:
      run-transcription attach-bucket my-calls --prefix calls/
    """
    if prefix.startswith("/"):
        raise click.UsageError(f"S3 puts no slash before a key: give --prefix {prefix.lstrip('/')!r}.")
    stack = stacks.find(name, aws.require_region(region))
    if bucket == stack.bucket:
        raise TranscriptionError(
            f"{bucket} is the stack's own bucket: what is put below {names.UPLOADS} is transcribed"
        )
    if detach:
        _detach(bucket, stack)
    else:
        _attach(bucket, prefix, stack)


def _attach(bucket: str, prefix: str, stack: Stack) -> None:
    """Let workers read the bucket, and then let it announce its uploads."""
    storage.require_bucket(bucket)
    before = notifications.prefix_of(bucket, stack)
    # S3 tries the queue when it is told of it, so the queue's policy comes first
    changed = _change(stack, {*stack.attached, bucket})
    if changed and stack.group is not None and (ended := fleet.renew(stack.group, stack.region)):
        display.say(f"{ended} instances are replaced by some that know {bucket}")
    notifications.attach(bucket, prefix, stack)
    no_longer = "" if before in {None, prefix} else f"; {bucket}/{before} no longer is"
    click.echo(f"{bucket}/{prefix} is now transcribed by {stack.name}, into {stack.bucket}{no_longer}")


def _detach(bucket: str, stack: Stack) -> None:
    """Let the bucket announce nothing more, and then take the right to read it away; one that is gone is passed over.

    Raises TranscriptionError where it was never attached.
    """
    known = bucket in stack.attached
    try:
        storage.require_bucket(bucket)
    except TranscriptionError as error:
        if not known:
            raise
        display.say(options.one_line(f"passed over: {error}"))
    else:
        if not notifications.detach(bucket, stack) and not known:
            raise TranscriptionError(
                f"{bucket} is not attached to {stack.name} (attached: {', '.join(stack.attached) or 'none'})"
            )
    _change(stack, {*stack.attached} - {bucket})
    click.echo(f"{bucket} is no longer transcribed by {stack.name}")


def _change(stack: Stack, attached: set[str]) -> bool:
    """Change the stack's attached buckets, and tell whether that changed anything."""
    prepared = changes.prepare(stack.name, stack.region, {"AttachedBuckets": ",".join(sorted(attached))})
    if prepared.rows:
        changes.carry_out(prepared, lambda event: display.say(f"{event.status:<28} {event.resource}"))
    return bool(prepared.rows)
