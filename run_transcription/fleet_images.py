"""Who uses which image, what a parameter names, and what may go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from run_transcription import aws
from run_transcription.errors import TranscriptionError
from run_transcription.images import ROLE, Image

LIVING = ["pending", "running", "stopping", "stopped", "shutting-down"]
IMAGES = "aws:ec2:image"  # type of a parameter that names one
STANDING = ["pending", "running", "stopping", "stopped"]


def name(region: str, parameter: str, image_id: str) -> None:
    """Let a parameter name an image; the service itself checks that there is such an image."""
    with aws.plainly(f"write {parameter}"):
        aws.client("ssm", region).put_parameter(
            Name=parameter, Value=image_id, Type="String", DataType=IMAGES, Overwrite=True
        )


def roll_back(region: str, parameter: str) -> str:
    """Let a parameter name what it named before its present value; return that. Raises TranscriptionError."""
    past = _history(region, parameter)
    earlier = [value for value in past if value != past[-1]]
    if not earlier:
        raise TranscriptionError(f"{parameter} has never named another image")
    name(region, parameter, earlier[-1])
    return earlier[-1]


def users(region: str, parameter: str) -> dict[str, list[str]]:
    """Return who uses each image: launch templates in all versions, parameters and their last value, instances."""
    found: dict[str, list[str]] = defaultdict(list)
    for image, user in (*_templates(region), *_parameters(region, parameter), *_instances(region)):
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
    with aws.plainly(f"remove {image.id}"):
        ec2 = aws.client("ec2", region)
        ec2.deregister_image(ImageId=image.id)
        for snapshot in image.snapshots:
            ec2.delete_snapshot(SnapshotId=snapshot)


def _templates(region: str) -> Iterator[tuple[str, str]]:
    with aws.plainly("read the launch templates"):
        ec2 = aws.client("ec2", region)
        for page in ec2.get_paginator("describe_launch_templates").paginate():
            for template in page["LaunchTemplates"]:
                yield from _versions(ec2, region, template)


def _versions(ec2: Any, region: str, template: dict[str, Any]) -> Iterator[tuple[str, str]]:
    versions = ec2.get_paginator("describe_launch_template_versions")
    for page in versions.paginate(LaunchTemplateId=template["LaunchTemplateId"]):
        for version in page["LaunchTemplateVersions"]:
            image = version["LaunchTemplateData"].get("ImageId", "")
            user = f"launch template {template['LaunchTemplateName']} {version['VersionNumber']}"
            if image.startswith("resolve:ssm:"):
                yield from ((value, user) for value in _history(region, image.removeprefix("resolve:ssm:"))[-1:])
            elif image:
                yield image, user


def _parameters(region: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield what ours and all that are declared to name images name, and named before: the way back must lead back."""
    with aws.plainly("list the parameters that name images"):
        pages = aws.client("ssm", region).get_paginator("describe_parameters").paginate()
        found = [each for page in pages for each in page["Parameters"]]
    names = [each["Name"] for each in found if each.get("DataType") == IMAGES or each["Name"].startswith(f"{prefix}/")]
    for parameter in names:
        past = _history(region, parameter)
        yield past[-1], parameter
        yield from ((value, f"{parameter} before") for value in [each for each in past if each != past[-1]][-1:])


def _instances(region: str) -> Iterator[tuple[str, str]]:
    filters = [{"Name": "instance-state-name", "Values": LIVING}]
    with aws.plainly("look for instances"):
        for page in aws.client("ec2", region).get_paginator("describe_instances").paginate(Filters=filters):
            for group in page["Reservations"]:
                yield from ((each["ImageId"], each["InstanceId"]) for each in group["Instances"])


def _history(region: str, parameter: str) -> list[str]:
    """Return all values of a parameter, the present one last; none where there is no such parameter."""
    ssm = aws.client("ssm", region)
    base, _, label = parameter.partition(":")
    try:
        with aws.plainly(f"read {base}"):
            pages = ssm.get_paginator("get_parameter_history").paginate(Name=base)
            values = [(found["Version"], found["Value"]) for page in pages for found in page["Parameters"]]
    except TranscriptionError as error:
        if "ParameterNotFound" in str(error):
            return []
        raise
    if label:  # a template may name one version
        values = [each for each in values if str(each[0]) == label] or values
    return [value for _, value in sorted(values)]
