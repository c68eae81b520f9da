"""What an account must have before a fleet can run in it, each checked, with what to do where it is lacking."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from run_transcription import aws, fleet
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable

# EC2's quotas count virtual CPUs of all G and VT instances together
ON_DEMAND_QUOTA, SPOT_QUOTA = "L-DB2E81BA", "L-3819A6DF"
STACK_NAME = re.compile(r"[a-z][a-z0-9-]{0,33}")  # with account and region it is a bucket's name, of 63 letters at most
NEEDED = {"s3", "sqs", "autoscaling"}  # services; without the last an idle worker could not end its instance
ZONES_OF_OURS = 2  # subnets that the template makes, in the first zones


@dataclass(frozen=True, slots=True)
class Wanted:
    """The deployment that the checks are about; the fields are parameters of the template."""

    stack: str
    region: str
    max_workers: int
    spot_percentage: int
    image_parameter: str
    vpc_id: str
    subnet_ids: tuple[str, ...]

    @property
    def on_demand(self) -> int:
        """Instances that are paid on demand, at full size."""
        return math.ceil(self.max_workers * (100 - self.spot_percentage) / 100)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    ok: bool
    text: str  # what was found, or what to do


class Lacking(TranscriptionError):
    """Something that has to be done before a deployment."""


def credentials(region: str) -> Check:
    """Return the check that all others need: whose account it is."""
    return _check("credentials", lambda: _account(region))


def run(wanted: Wanted) -> list[Check]:
    """Return all other checks in order; what only a fleet needs is left out where there is none."""
    rows = CHECKS if wanted.max_workers else CHECKS[:1]
    return [_check(name, partial(look, wanted)) for name, look in rows]


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, ok=True, text=look())
    except TranscriptionError as error:
        return Check(name, ok=False, text=str(error))


def _account(region: str) -> str:
    with aws.plainly("use these AWS credentials"):
        found = aws.client("sts", region).get_caller_identity()
    return f"account {found['Account']} as {found['Arn']}, in {region}"


def _name(wanted: Wanted) -> str:
    if not STACK_NAME.fullmatch(wanted.stack):
        raise Lacking(
            f"{wanted.stack!r} can't be part of a bucket's name: take at most 34 lower-case letters, digits or -"
        )
    return f"{wanted.stack} can be part of a bucket's name"


def _image(wanted: Wanted) -> str:
    parameter = wanted.image_parameter
    try:
        with aws.plainly(f"read {parameter}"):
            found = aws.client("ssm", wanted.region).get_parameter(Name=parameter)["Parameter"]["Value"]
    except TranscriptionError as error:
        raise Lacking(f"{error}: run-transcription bake, then ami publish") from error
    with aws.plainly(f"look for the image {found}"):
        images = aws.client("ec2", wanted.region).describe_images(ImageIds=[found])["Images"]
    if not images or images[0]["State"] != "available":
        raise Lacking(f"{parameter} names {found}, which is not available: run-transcription ami publish another one")
    return f"{found} {images[0].get('Name', '')}".strip()


def _quota(wanted: Wanted, code: str, instances: int, what: str) -> str:
    need = instances * min(kind.vcpus for kind in fleet.KINDS)
    if not need:
        return "none is needed"
    with aws.plainly(f"read the quota {code}"):
        found = aws.client("service-quotas", wanted.region).get_service_quota(ServiceCode="ec2", QuotaCode=code)
    has = int(found["Quota"]["Value"])
    if has < need:
        raise Lacking(
            f"{has} vCPUs of G and VT instances {what} are allowed, {instances} instances need {need}: ask for more "
            f"of the quota {code} in Service Quotas, or lower MaxWorkers to {has * wanted.max_workers // need}"
        )
    return f"{has} vCPUs of G and VT instances {what}, {instances} instances need {need} at least"


def _on_demand_quota(wanted: Wanted) -> str:
    return _quota(wanted, ON_DEMAND_QUOTA, wanted.on_demand, "on demand")


def _spot_quota(wanted: Wanted) -> str:
    return _quota(wanted, SPOT_QUOTA, wanted.max_workers - wanted.on_demand, "as spot")


def _types(wanted: Wanted) -> str:
    zones = _zones(wanted)
    filters = [
        {"Name": "location", "Values": zones},
        {"Name": "instance-type", "Values": [kind.name for kind in fleet.KINDS]},
    ]
    with aws.plainly("ask for the instance types of the zones"):
        pages = aws.client("ec2", wanted.region).get_paginator("describe_instance_type_offerings")
        found = [
            (each["Location"], each["InstanceType"])
            for page in pages.paginate(LocationType="availability-zone", Filters=filters)
            for each in page["InstanceTypeOfferings"]
        ]
    counts = {zone: sum(place == zone for place, _ in found) for zone in zones}
    if not any(counts.values()):
        raise Lacking(
            f"none of our instance types is offered in {', '.join(zones)}: give VpcId and SubnetIds of others"
        )
    return ", ".join(f"{count} of {len(fleet.KINDS)} in {zone}" for zone, count in counts.items())


def _zones(wanted: Wanted) -> list[str]:
    client = aws.client("ec2", wanted.region)
    with aws.plainly("look for the zones"):
        if wanted.vpc_id:
            subnets = client.describe_subnets(SubnetIds=list(wanted.subnet_ids))["Subnets"]
            return sorted({each["AvailabilityZone"] for each in subnets})
        zones = client.describe_availability_zones()["AvailabilityZones"]
    return sorted(each["ZoneName"] for each in zones if each.get("ZoneType") != "local-zone")[:ZONES_OF_OURS]


def _route(wanted: Wanted) -> str:
    if not wanted.vpc_id:
        return "the stack makes a network with an internet gateway, and a way to S3 of its own"
    if not wanted.subnet_ids:
        raise Lacking("VpcId needs SubnetIds: give those that the instances shall start in")
    client = aws.client("ec2", wanted.region)
    in_network = [{"Name": "vpc-id", "Values": [wanted.vpc_id]}]
    with aws.plainly(f"read the routes of {wanted.vpc_id}"):
        tables = client.describe_route_tables(Filters=in_network)["RouteTables"]
        endpoints = client.describe_vpc_endpoints(Filters=in_network)["VpcEndpoints"]
        subnets = client.describe_subnets(SubnetIds=list(wanted.subnet_ids))["Subnets"]
    services = {each["ServiceName"].rpartition(".")[2] for each in endpoints}
    lacking = sorted(NEEDED - services)
    addressed = {each["SubnetId"] for each in subnets if each["MapPublicIpOnLaunch"]}
    shut = [each for each in wanted.subnet_ids if not _leads_out(_table_of(each, tables), addressed=each in addressed)]
    if shut and lacking:
        raise Lacking(
            f"instances in {', '.join(shut)} do not reach the internet (a route to an internet gateway wants public "
            f"addresses), and {wanted.vpc_id} has no endpoint for {', '.join(lacking)}: add one of both"
        )
    return "by endpoints of the network" if shut else "by the subnets' way to the internet"


def _table_of(subnet: str, tables: list[Any]) -> Any:
    """Return the route table of a subnet: its own, else the network's main one."""
    for table in tables:
        if any(each.get("SubnetId") == subnet for each in table["Associations"]):
            return table
    return next((table for table in tables if any(each.get("Main") for each in table["Associations"])), None)


def _leads_out(table: Any, *, addressed: bool) -> bool:
    """Tell whether a subnet's instances reach the internet: through its gateway only with an address of their own."""
    routes = table["Routes"] if table else ()
    out = [each for each in routes if each.get("DestinationCidrBlock") == "0.0.0.0/0"]
    active = [each for each in out if each.get("State", "active") == "active"]
    return any(addressed or not each.get("GatewayId", "").startswith("igw-") for each in active)


def _price(wanted: Wanted) -> str:
    found = fleet.prices(wanted.region, [kind.name for kind in fleet.KINDS])
    spot = [each.spot for each in found if each.spot is not None]
    on_demand = [each.on_demand for each in found if each.on_demand is not None]
    spot_workers = wanted.max_workers - wanted.on_demand
    if (wanted.on_demand and not on_demand) or (spot_workers and not spot):
        raise TranscriptionError("neither the price list nor the history of spot prices knows our instance types here")
    low, high = (
        wanted.on_demand * pick(on_demand or [0.0]) + spot_workers * pick(spot or [0.0]) for pick in (min, max)
    )
    return f"{wanted.max_workers} instances cost ${low:.2f} to ${high:.2f} an hour, by their types"


# the first one holds without a fleet too
CHECKS: tuple[tuple[str, Callable[[Wanted], str]], ...] = (
    ("name", _name),
    ("image", _image),
    ("quota on demand", _on_demand_quota),
    ("quota of spot", _spot_quota),
    ("instance types", _types),
    ("route to S3, SQS", _route),
    ("price", _price),
)
