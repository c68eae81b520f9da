"""Machine images on EC2: which one to start from, what to write on a finished one, and which are there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from run_transcription import aws
from run_transcription.errors import TranscriptionError

BASE_PARAMETER = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"  # AWS's own, public
)
ROLE = "transcribe:role"  # builder or image
LAYER = "transcribe:layer"  # what its packages were installed from
BASE_ID, BASE_NAME = "transcribe:base-image", "transcribe:base-image-name"
STATE = "transcribe:state-sha256"  # written last, on what is proved and answers only to IMDSv2
TOKENS_ONLY = "v2.0"  # EC2's word for it
SETTLE_SECONDS = 60.0  # until EC2 shows what it was told
TAG_LENGTH = 256  # characters that EC2 takes


@dataclass(frozen=True, slots=True)
class Image:
    """A machine image of this account, or the one that ours stand on."""

    id: str
    name: str
    created: str  # ISO 8601
    state: str
    tags: dict[str, str]
    snapshots: tuple[str, ...]
    imds: str  # v2.0: its instances answer only to who asks with a token


def require_region(wanted: str | None) -> str:
    """Return the region to work in; raises TranscriptionError where there is none, or none of that name."""
    import boto3

    with aws.plainly("find the region"):
        session = boto3.Session()
        region = wanted or session.region_name
        known = {name for partition in session.get_available_partitions() for name in _regions(session, partition)}
    if region is None:
        raise TranscriptionError("no region is set: give --region, or set AWS_DEFAULT_REGION")
    if region not in known:
        raise TranscriptionError(f"--region {region}: AWS has no region of that name")
    return region


def require_credentials() -> None:
    """Raise TranscriptionError where there are no credentials for AWS at all."""
    import boto3

    with aws.plainly("find the AWS credentials"):
        found = boto3.Session().get_credentials()
    if found is None:
        raise TranscriptionError(
            "there are no AWS credentials: run `aws configure`, or set AWS_PROFILE; `make ami DRY_RUN=1` needs none"
        )


def base(region: str, image_id: str, name: str) -> Image:
    """Return the image to stand on: the pinned one, or what AWS's public parameter names now.

    An id belongs to one region: in another one the image is found by its name. Raises TranscriptionError.
    """
    if not image_id and not name:
        with aws.plainly(f"read {BASE_PARAMETER}"):
            image_id = aws.client("ssm", region).get_parameter(Name=BASE_PARAMETER)["Parameter"]["Value"]
    if name:
        filters = [{"Name": "name", "Values": [name]}]
        same = list(_images(region, Owners=["amazon"], Filters=filters))
        found = next((image for image in same if image.id == image_id), next(iter(same), None))
    else:
        found = next(_images(region, ImageIds=[image_id]), None)
    if found is None:
        raise TranscriptionError(f"there is no base image {name or image_id} in {region}: run bake --pin-base")
    return found


def reusable(region: str, layer: str) -> Image | None:
    """Return the newest image of ours whose packages were installed from the same locks, if there is one."""
    filters = [{"Name": f"tag:{LAYER}", "Values": [layer]}, {"Name": "state", "Values": ["available"]}]
    return max(_images(region, Owners=["self"], Filters=filters), key=lambda image: image.created, default=None)


def ours(region: str) -> list[Image]:
    """Return all images that bakes have made here, the newest first."""
    filters = [{"Name": f"tag:{ROLE}", "Values": ["image"]}]
    return sorted(_images(region, Owners=["self"], Filters=filters), key=lambda image: image.created, reverse=True)


def one(region: str, image_id: str) -> Image:
    """Return one image of this account. Raises TranscriptionError where it is not there."""
    found = next(_images(region, ImageIds=[image_id]), None)
    if found is None:
        raise TranscriptionError(f"there is no image {image_id} in {region}")
    return found


def zones(region: str) -> list[str]:
    """Return the zones of a region that are open to this account; raises TranscriptionError where there is none."""
    with aws.plainly(f"list the zones of {region}"):
        filters = [{"Name": "state", "Values": ["available"]}, {"Name": "zone-type", "Values": ["availability-zone"]}]
        found = aws.client("ec2", region).describe_availability_zones(Filters=filters)["AvailabilityZones"]
    if not found:
        raise TranscriptionError(f"{region} has no zone that is open to this account")
    return sorted(zone["ZoneName"] for zone in found)


def complete(region: str, image_id: str, tags: Mapping[str, str], *, imds: bool) -> None:
    """Mark an image and its snapshots as finished, once its instances answer only to who asks with a token.

    With `imds` that is asked for first: packer could not. Raises TranscriptionError.
    """
    pairs = [{"Key": key, "Value": value[:TAG_LENGTH]} for key, value in tags.items()]
    with aws.plainly(f"finish {image_id}, which is made but can't be published (bake again; ami gc removes it)"):
        ec2 = aws.client("ec2", region)
        if imds:
            ec2.modify_image_attribute(ImageId=image_id, Attribute="imdsSupport", ImdsSupport={"Value": TOKENS_ONLY})
        snapshots = _with_tokens(region, image_id).snapshots
        ec2.create_tags(Resources=[image_id, *snapshots], Tags=pairs)


def _with_tokens(region: str, image_id: str) -> Image:
    """Return an image that answers only to tokens, as EC2 itself says; raises TranscriptionError where it does not."""
    until = time.monotonic() + SETTLE_SECONDS
    while (found := one(region, image_id)).imds != TOKENS_ONLY:
        if time.monotonic() > until:
            raise TranscriptionError(f"{image_id} is made, but EC2 does not show IMDSv2 on it: bake again")
        time.sleep(1)
    return found


def _images(region: str, **wanted: object) -> Iterator[Image]:
    with aws.plainly(f"look for images in {region}"):
        for page in aws.client("ec2", region).get_paginator("describe_images").paginate(**wanted):
            for found in page["Images"]:
                mappings = (mapping.get("Ebs", {}) for mapping in found.get("BlockDeviceMappings", ()))
                yield Image(
                    id=found["ImageId"],
                    name=found.get("Name", ""),
                    created=found.get("CreationDate", ""),
                    state=found.get("State", ""),
                    tags={tag["Key"]: tag["Value"] for tag in found.get("Tags", ())},
                    snapshots=tuple(ebs["SnapshotId"] for ebs in mappings if "SnapshotId" in ebs),
                    imds=found.get("ImdsSupport", ""),
                )


def _regions(session: object, partition: str) -> list[str]:
    names: list[str] = session.get_available_regions("ec2", partition_name=partition)  # type: ignore[attr-defined]
    return names
