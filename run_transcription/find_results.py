"""The command that shows what workers have made of a recording."""

from __future__ import annotations

import contextlib

import click

from run_transcription import aws, options, results, stacks, storage
from run_transcription.errors import TranscriptionError


@options.command("results")
@click.argument("key")
@click.option(
    "--bucket",
    type=options.BucketName(),
    show_default="the stack's own",
    help="Bucket that the recording lies in.",
)
@click.option(
    "-o",
    "--output-dir",
    "output",
    metavar="s3://BUCKET/PREFIX",
    show_default="the bucket, or the stack's own where it is attached",
    help="The worker's -o, if it has one.",
)
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
      run-transcription results s3://my-calls/calls/a.mp3
    """
    if storage.is_s3(key):
        bucket, key = storage.split_object(key)
    elif bucket is None:
        bucket = stacks.find(name, aws.require_region(region)).bucket
        output = output or f"{storage.SCHEME}{bucket}"
    recording = f"{storage.SCHEME}{bucket}/{key}"
    output = output or _output_of(bucket, name, region)
    # results lie by their key alone, and a bucket that is attached too may have the same
    found = [each for each in results.found(output, key) if each.recording == recording]
    version = storage.version(recording)
    newest = results.newest(found, version)
    for one in found if every else newest:
        why = f" {one.error}" if one.error else ""
        click.echo(options.one_line(f"{one.status} {one.version} {one.written} {one.address}{why}"))
    if not found and version is None:
        raise TranscriptionError(f"there is no {recording}, and no result of it: give a key as submit prints it")
    if not newest and not (every and found):
        older = ": --all shows those of older versions" if found else f" in {output}"
        raise TranscriptionError(f"{recording} has no result yet{older}")


def _output_of(bucket: str, name: str, region: str | None) -> str:
    """Return where a bucket's results lie: of one that is attached to the stack in the stack's own, else in itself."""
    own = bucket
    with contextlib.suppress(TranscriptionError):  # a bucket that was made by hand has no stack
        stack = stacks.find(name, aws.require_region(region))
        own = stack.bucket if bucket in stack.attached else bucket
    return f"{storage.SCHEME}{own}"
