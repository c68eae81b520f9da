"""Who uses which image, what a parameter names, and what may go."""

from __future__ import annotations

import functools
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from run_transcription import aws, images
from run_transcription.errors import TranscriptionError
from run_transcription.images import ROLE, Image

AMI = re.compile(r"ami-[0-9a-f]{8,17}")
ASKED_AT_ONCE = 10  # parameters, the most that SSM takes
LIVING = ["pending", "running", "stopping", "stopped", "shutting-down"]
IMAGES = "aws:ec2:image"  # type of a parameter that names one
STANDING = ["pending", "running", "stopping", "stopped"]

Resolve = Callable[[str], tuple[str, ...]]  # what a template's `resolve:ssm:` names


def name(region: str, parameter: str, image_id: str) -> None:
    """Let a parameter name an image; raises TranscriptionError unless it does then.

    The service looks at the image only after it has answered, and drops the value silently where it does not like it.
    """
    with aws.plainly(f"write {parameter}"):
        aws.client("ssm", region).put_parameter(
            Name=parameter, Value=image_id, Type="String", DataType=IMAGES, Overwrite=True
        )
    until = time.monotonic() + images.SETTLE_SECONDS
    while (now := _history(region, parameter)[-1:]) != [image_id]:
        if time.monotonic() > until:
            raise TranscriptionError(f"{parameter} does not take {image_id} and names {', '.join(now) or 'nothing'}")
        time.sleep(1)


def roll_back(region: str, parameter: str) -> str:
    """Let a parameter name what it named before its present value; return that. Raises TranscriptionError."""
    way = _way(_history(region, parameter))
    if len(way) < 2:  # noqa: PLR2004 - the present one, and one before it
        raise TranscriptionError(f"{parameter} has named no image before: publish one by its id")
    earlier = images.one(region, way[-2])
    name(region, parameter, earlier.id)
    return earlier.id


def users(region: str, parameter: str) -> dict[str, list[str]]:
    """Return who uses each image: launch templates in all versions, parameters and their last value, instances."""
    found: dict[str, list[str]] = defaultdict(list)
    resolve = functools.cache(functools.partial(_resolved, region))  # versions of a template mostly name the same
    for image, user in (*_templates(region, resolve), *_parameters(region, parameter), *_instances(region)):
        found[image].append(user)
    return dict(found)


def leaked_builders(region: str, before: float) -> list[str]:
    """Return the instances that were started to bake, before a time in seconds since 1970, and still stand."""
    filters = [
        {"Name": f"tag:{ROLE}", "Values": ["builder"]},
        {"Name": "instance-state-name", "Values": STANDING},
    ]
    with aws.plainly("look for builders"):
        pages = aws.client("ec2", region).get_paginator("describe_instances").paginate(Filters=filters)
        instances = [each for page in pages for group in page["Reservations"] for each in group["Instances"]]
    return [each["InstanceId"] for each in instances if each["LaunchTime"].timestamp() < before]


def end(region: str, instances: list[str]) -> None:
    """Terminate instances."""
    with aws.plainly(f"end {', '.join(instances)}"):
        aws.client("ec2", region).terminate_instances(InstanceIds=instances)


def remove(region: str, image: Image) -> None:
    """Remove an image, and then its snapshots, which nothing else removes."""
    with aws.plainly(f"remove {image.id} with {', '.join(image.snapshots)}"):
        ec2 = aws.client("ec2", region)
        ec2.deregister_image(ImageId=image.id)
        for snapshot in image.snapshots:
            ec2.delete_snapshot(SnapshotId=snapshot)


def _templates(region: str, resolve: Resolve) -> Iterator[tuple[str, str]]:
    with aws.plainly("read the launch templates"):
        ec2 = aws.client("ec2", region)
        for page in ec2.get_paginator("describe_launch_templates").paginate():
            for template in page["LaunchTemplates"]:
                yield from _versions(ec2, template, resolve)


def _versions(ec2: Any, template: dict[str, Any], resolve: Resolve) -> Iterator[tuple[str, str]]:
    versions = ec2.get_paginator("describe_launch_template_versions")
    for page in versions.paginate(LaunchTemplateId=template["LaunchTemplateId"]):
        for version in page["LaunchTemplateVersions"]:
            image = version["LaunchTemplateData"].get("ImageId", "")
            user = f"launch template {template['LaunchTemplateName']} {version['VersionNumber']}"
            if image.startswith("resolve:ssm:"):
                yield from ((value, user) for value in resolve(image.removeprefix("resolve:ssm:")))
            elif image:
                yield image, user


def _parameters(region: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield what parameters name, and what they would be rolled back to: the way back must lead back."""
    ssm = aws.client("ssm", region)
    with aws.plainly("list the parameters that name images"):
        pages = ssm.get_paginator("describe_parameters").paginate()
        found = [each for page in pages for each in page["Parameters"]]
    names = {each["Name"] for each in found if each.get("DataType") == IMAGES or each["Name"].startswith(f"{prefix}/")}
    others = [each["Name"] for each in found if each["Name"] not in names and each["Type"] != "SecureString"]
    for start in range(0, len(others), ASKED_AT_ONCE):
        with aws.plainly("read the parameters that may name images"):
            values = ssm.get_parameters(Names=others[start : start + ASKED_AT_ONCE])["Parameters"]
        names |= {each["Name"] for each in values if AMI.search(each["Value"])}
    for parameter in sorted(names):
        way = _way(_history(region, parameter))
        yield from ((image, parameter) for value in way[-1:] for image in AMI.findall(value))
        yield from ((image, f"{parameter} before") for value in way[-2:-1] for image in AMI.findall(value))


def _instances(region: str) -> Iterator[tuple[str, str]]:
    filters = [{"Name": "instance-state-name", "Values": LIVING}]
    with aws.plainly("look for instances"):
        for page in aws.client("ec2", region).get_paginator("describe_instances").paginate(Filters=filters):
            for group in page["Reservations"]:
                yield from ((each["ImageId"], each["InstanceId"]) for each in group["Instances"])


def _history(region: str, parameter: str) -> list[str]:
    """Return all values of a parameter, the present one last; none where there is no such parameter."""
    return [value for _, value in _marked(region, parameter)]


def _way(past: list[str]) -> list[str]:
    """Return the values that led to the present one: what was rolled back is not among them any more."""
    way: list[str] = []
    for value in past:
        way = [*way[: way.index(value)], value] if value in way else [*way, value]
    return way


def _resolved(region: str, reference: str) -> tuple[str, ...]:
    """Return what a template's `resolve:ssm:` names: the present value, or that of a version or of a label."""
    base, _, mark = reference.partition(":")
    values = _marked(region, base)
    return tuple(value for marks, value in values if mark in marks) if mark else tuple(v for _, v in values[-1:])


def _marked(region: str, parameter: str) -> list[tuple[set[str], str]]:
    """Return number and labels of each version of a parameter, and its value, the present one last."""
    ssm = aws.client("ssm", region)
    try:
        with aws.plainly(f"read {parameter}"):
            pages = ssm.get_paginator("get_parameter_history").paginate(Name=parameter)
            versions = [version for page in pages for version in page["Parameters"]]
    except TranscriptionError as error:
        if "ParameterNotFound" in str(error):
            return []
        raise
    versions.sort(key=lambda each: each["Version"])
    return [({str(each["Version"]), *each.get("Labels", ())}, each["Value"]) for each in versions]
