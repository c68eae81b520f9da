"""The command that starts workers as an array of AWS Batch, on the queue and job definition of infra/batch.yaml."""

from __future__ import annotations

import click

from run_transcription import aws, options, stacks
from run_transcription.errors import TranscriptionError

MOST_CHILDREN = 10_000  # that Batch takes in one array


@options.command("batch-array")
@click.argument("size", type=click.IntRange(1, MOST_CHILDREN))
@stacks.stack_option
@stacks.region_option
def batch_array(size: int, name: str, region: str | None) -> None:
    """Start workers as an array of AWS Batch.

    SIZE of them, which end when the backfill queue is empty. Prints the id of the array's job. infra/batch.yaml makes
    what this needs beside the stack: a job queue and a job definition, both of the stack's name.

    \b
    Example:
      run-transcription batch-array 20
    """
    stack = stacks.find(name, aws.require_region(region))
    client = aws.client("batch", stack.region)
    with aws.plainly(f"look for the job definition {name}"):
        found = client.describe_job_definitions(jobDefinitionName=name, status="ACTIVE")["jobDefinitions"]
    if not found:
        raise TranscriptionError(f"there is no job definition {name}: deploy infra/batch.yaml first")
    # an array has at least two children
    array = {"arrayProperties": {"size": size}} if size > 1 else {}
    told = [{"name": "TRANSCRIBE_BUCKET", "value": " ".join((stack.bucket, *stack.attached))}]
    with aws.plainly(f"submit {size} workers to {name}"):
        job = client.submit_job(
            jobName=f"{name}-workers",
            jobQueue=name,
            jobDefinition=name,
            containerOverrides={"environment": told},
            **array,
        )
    click.echo(job["jobId"])
