"""The command that lets a stack transcribe what another bucket gets."""

from __future__ import annotations

import click

from run_transcription import changes, display, fleet, names, notifications, options, stacks, storage
from run_transcription.errors import TranscriptionError


@options.command("attach-bucket")
@click.argument("bucket")
@click.option("--prefix", default=names.UPLOADS, help="What the keys of recordings begin with; '' is every key.")
@click.option("--detach", is_flag=True, allow_from_autoenv=False, help="Take the bucket away again.")
@stacks.stack_option
@stacks.region_option
def attach_bucket(bucket: str, prefix: str, name: str, region: str | None, *, detach: bool) -> None:
    """Transcribe what is uploaded to a bucket that is there already.

    Its notifications to others stay as they are. Results go to the stack's own bucket, below results/KEY. Instances
    that run give back their work and are replaced: they know only the buckets that were there when they started.

    \b
    Example:
      run-transcription attach-bucket my-calls --prefix calls/
    """
    bucket = bucket.removeprefix(storage.SCHEME).rstrip("/")
    stack = stacks.find(name, stacks.require_region(region))
    if bucket == stack.bucket:
        raise TranscriptionError(
            f"{bucket} is the stack's own bucket: what is put below {names.UPLOADS} is transcribed"
        )
    storage.require_bucket(bucket)
    kept = [each for each in stack.attached if each != bucket]
    if detach:
        notifications.detach(bucket, stack)
    # S3 tries the queue when it is told of it, so the queue's policy comes first
    wanted = ",".join(kept if detach else sorted([*kept, bucket]))
    prepared = changes.prepare(name, stack.region, {"AttachedBuckets": wanted})
    if prepared.rows:
        changes.carry_out(prepared, lambda event: display.say(f"{event.status:<28} {event.resource}"))
        if stack.group is not None and not detach and (ended := fleet.renew(stack.group, stack.region)):
            display.say(f"{ended} instances are replaced by some that know {bucket}")
    if not detach:
        notifications.attach(bucket, prefix, stack)
    click.echo(f"{bucket}/{prefix} is {'no longer' if detach else 'now'} transcribed by {name}, into {stack.bucket}")
