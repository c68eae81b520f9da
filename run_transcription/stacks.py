"""A deployed stack: where its bucket, queues, log and group are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from run_transcription import aws
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_NAME = "transcribe"

stack_option = click.option("--stack", "name", default=DEFAULT_NAME, help="Name of the stack.")
region_option = click.option("--region", show_default="that of your AWS configuration", help="Where the stack is.")


@dataclass(frozen=True, slots=True)
class Stack:
    """What the outputs and parameters of a stack say."""

    name: str
    region: str
    id: str
    status: str
    bucket: str
    live_url: str
    live_arn: str
    backfill_url: str
    dead_letter_url: str
    log_group: str
    group: str | None  # None: without a fleet
    image_parameter: str
    attached: tuple[str, ...]


def find(name: str, region: str) -> Stack:
    """Return a stack that is there and complete; raises TranscriptionError."""
    found = describe(name, region)
    if found is None:
        raise TranscriptionError(f"there is no stack {name} in {region}: run-transcription deploy makes it")
    outputs = {each["OutputKey"]: each["OutputValue"] for each in found.get("Outputs", ())}
    parameters = parameters_of(found)
    try:
        return Stack(
            name=name,
            region=region,
            id=found["StackId"],
            status=found["StackStatus"],
            bucket=outputs["Bucket"],
            live_url=outputs["LiveQueueUrl"],
            live_arn=outputs["LiveQueueArn"],
            backfill_url=outputs["BackfillQueueUrl"],
            dead_letter_url=outputs["DeadLetterQueueUrl"],
            log_group=outputs["LogGroup"],
            group=outputs.get("Group"),
            image_parameter=parameters["ImageParameter"],
            attached=tuple(each for each in parameters["AttachedBuckets"].split(",") if each),
        )
    except KeyError as error:
        raise TranscriptionError(
            f"the stack {name} is {found['StackStatus']} and has no {error}: it is not complete, or none of ours"
        ) from error


def describe(name: str, region: str) -> Any:
    """Return what CloudFormation says of a stack, None where there is none; raises TranscriptionError."""
    from botocore.exceptions import ClientError

    with aws.plainly(f"look for the stack {name}"):
        try:
            return aws.client("cloudformation", region).describe_stacks(StackName=name)["Stacks"][0]
        except ClientError as error:
            if "does not exist" in str(error):  # a ValidationError, as for much else
                return None
            raise


def parameters_of(found: Any) -> Mapping[str, str]:
    """Return the parameters of what `describe` found."""
    return {each["ParameterKey"]: each.get("ParameterValue", "") for each in found.get("Parameters", ())}
