"""The command that shows what workers have made of a recording."""

from __future__ import annotations

import click

from run_transcription import options, results, stacks, storage
from run_transcription.errors import TranscriptionError


@options.command("results")
@click.argument("key")
@click.option(
    "--bucket",
    type=options.BucketName(),
    show_default="the stack's own",
    help="Bucket that the recording lies in.",
)
@click.option("-o", "--output-dir", "output", metavar="s3://BUCKET/PREFIX", help="The worker's -o, if it has one.")
@click.option("--all", "every", is_flag=True, help="Show every result and failure, the newest last.")
@stacks.stack_option
@stacks.region_option
def find_results(  # noqa: PLR0913 - one parameter for each option
    key: str, bucket: str | None, output: str | None, name: str, region: str | None, *, every: bool
) -> None:
    """Show what workers have made of a recording.

    That is what became of the newest version of the recording KEY. Prints a line for each: status, version, when it
    was written, and the address of its json. The exit status is 1 where the newest version has no result yet.

    \b
    Examples:
      run-transcription results uploads/talk.mp3
      run-transcription results calls/a.mp3 --bucket my-calls -o s3://the-stacks-bucket
    """
    if bucket is None:
        bucket = stacks.find(name, stacks.require_region(region)).bucket
    root = f"{storage.SCHEME}{bucket}"
    found = results.found(output or root, key)
    newest = results.newest(found, storage.version(f"{root}/{key}"))
    for one in found if every else newest:
        click.echo(options.one_line(f"{one.status} {one.version} {one.written} {one.address}"))
    if not newest and not (every and found):
        hint = "" if every else " (--all shows those of older versions)"
        raise TranscriptionError(f"{root}/{key} has no result yet, or is gone{hint}")
