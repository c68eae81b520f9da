"""Machine images on EC2: which one to start from, what to write on a finished one, and which are there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
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
class Place:
    """Where an instance may stand: in a zone's default subnet, or in another one of it."""

    zone: str
    subnet: str = ""  # "": the default one


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

    @property
    def finished(self) -> bool:
        """Whether a bake has proved it and marked it as such."""
        return STATE in self.tags


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
    """Return the newest finished image of ours whose packages came from the same locks, if there is one."""
    filters = [{"Name": f"tag:{LAYER}", "Values": [layer]}, {"Name": "state", "Values": ["available"]}]
    found = [image for image in _images(region, Owners=["self"], Filters=filters) if image.finished]
    return max(found, key=lambda image: image.created, default=None)


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


def check_places(region: str | None, zones: Sequence[str], subnets: Sequence[str]) -> None:
    """Raise TranscriptionError for zones and subnets that can't be meant; asks nobody."""
    if zones and subnets:
        raise TranscriptionError("--zone and --subnet: a subnet is in one zone already, so give one of the two")
    for zone in zones if region else ():
        if not zone[-1:].isalpha() or not zone.startswith(str(region)):
            raise TranscriptionError(f"--zone {zone}: it is none of {region}, as {region}a is")


def places(region: str, zones: Sequence[str], subnets: Sequence[str]) -> list[Place]:
    """Return where to look for an instance: the subnets given, or the zones given, or all that have a default subnet.

    Raises TranscriptionError where there is no such place.
    """
    check_places(region, zones, subnets)
    wanted = {"SubnetIds": list(subnets)} if subnets else {"Filters": [{"Name": "default-for-az", "Values": ["true"]}]}
    with aws.plainly(f"look for subnets in {region}"):
        pages = aws.client("ec2", region).get_paginator("describe_subnets").paginate(**wanted)
        zone_of = {each["SubnetId"]: each["AvailabilityZone"] for page in pages for each in page["Subnets"]}
    if subnets:
        return [Place(zone_of[subnet], subnet) for subnet in subnets]
    usual = sorted(zone_of.values())
    if not usual:
        raise TranscriptionError(f"this account has no default network in {region}: name a subnet with --subnet")
    for zone in zones:
        if zone not in usual:
            raise TranscriptionError(f"--zone {zone}: only {', '.join(usual)} have a default subnet; see --subnet")
    return [Place(zone) for zone in zones or usual]


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
