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

    That is what became of the newest version of the recording KEY, for which its s3:// address may stand too. Prints a
    line for each: status, version, when it was written, the address of its json, and why it failed. The exit status is
    1 where the newest version has no result yet.

    \b
    Examples:
      run-transcription results uploads/talk.mp3
      run-transcription results calls/a.mp3 --bucket my-calls -o s3://the-stacks-bucket
    """
    if storage.is_s3(key):
        bucket, key = storage.split_object(key)
    elif bucket is None:
        bucket = stacks.find(name, stacks.require_region(region)).bucket
    root = f"{storage.SCHEME}{bucket}"
    found, version = results.found(output or root, key), storage.version(f"{root}/{key}")
    newest = results.newest(found, version)
    for one in found if every else newest:
        why = f" {one.error}" if one.error else ""
        click.echo(options.one_line(f"{one.status} {one.version} {one.written} {one.address}{why}"))
    if not found and version is None:
        raise TranscriptionError(f"there is no {root}/{key}, and no result of it: give a key as submit prints it")
    if not newest and not (every and found):
        older = ": --all shows those of older versions" if found else ""
        raise TranscriptionError(f"{root}/{key} has no result yet{older}")
