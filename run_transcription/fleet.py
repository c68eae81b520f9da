"""The fleet: kinds of instances, what an hour of them costs, and what is done to those that run."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from run_transcription import aws
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

PRICE_LIST_REGION = "us-east-1"  # the price list of all regions is served from a few
PROTECTED_AT_ONCE = 50  # instances in one call
HEARD_SECONDS = 15.0  # until a worker knows that its instance ends: it asks every 5 s


@dataclass(frozen=True, slots=True)
class Kind:
    """An instance type with one GPU."""

    name: str
    vcpus: int


@dataclass(frozen=True, slots=True)
class Price:
    """What an hour of an instance type costs in dollars; None where nobody says so."""

    name: str
    on_demand: float | None
    spot: float | None


# the overrides of infra/stack.yaml, in its order
KINDS = (
    Kind("g4dn.xlarge", 4),
    Kind("g6.xlarge", 4),
    Kind("g5.xlarge", 4),
    Kind("g4dn.2xlarge", 8),
    Kind("g6.2xlarge", 8),
    Kind("g5.2xlarge", 8),
    Kind("g6e.xlarge", 4),
    Kind("g6e.2xlarge", 8),
)


def prices(region: str, names: Sequence[str]) -> list[Price]:
    """Return the prices of instance types by the price list, and of spot as it is now; raises TranscriptionError."""
    spot = _spot_prices(region, names)
    return [Price(name, _on_demand_price(region, name), spot.get(name)) for name in names]


def keep_zones_as_they_are(group: str, region: str) -> None:
    """Stop a group from ending instances to even out its zones: they may be at work. Raises TranscriptionError."""
    with aws.plainly(f"suspend AZRebalance of {group}"):
        aws.client("autoscaling", region).suspend_processes(
            AutoScalingGroupName=group, ScalingProcesses=["AZRebalance"]
        )


def let_instances_go(group: str, region: str) -> None:
    """Take the protection from a group's instances: it could not be deleted with them. Raises TranscriptionError."""
    client = aws.client("autoscaling", region)
    with aws.plainly(f"end the instances of {group}"):
        client.update_auto_scaling_group(
            AutoScalingGroupName=group, MaxSize=0, DesiredCapacity=0, NewInstancesProtectedFromScaleIn=False
        )
        ids = _instances(group, region)
        for first in range(0, len(ids), PROTECTED_AT_ONCE):
            client.set_instance_protection(
                AutoScalingGroupName=group,
                InstanceIds=ids[first : first + PROTECTED_AT_ONCE],
                ProtectedFromScaleIn=False,
            )


def renew(group: str, region: str) -> int:
    """Let others take the place of a group's instances, which know only what they were told at their start.

    Returns how many there were, once their workers take nothing more; what these hold is given back. Raises
    TranscriptionError.
    """
    client = aws.client("autoscaling", region)
    with aws.plainly(f"renew the instances of {group}"):
        ids = _instances(group, region)
        for each in ids:
            client.terminate_instance_in_auto_scaling_group(InstanceId=each, ShouldDecrementDesiredCapacity=False)
    if ids:
        time.sleep(HEARD_SECONDS)
    return len(ids)


def _instances(group: str, region: str) -> list[str]:
    """Return the ids of a group's instances that do not end already."""
    found = aws.client("autoscaling", region).describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    return [
        each["InstanceId"]
        for one in found["AutoScalingGroups"]
        for each in one["Instances"]
        if not each["LifecycleState"].startswith("Terminat")
    ]


def _spot_prices(region: str, names: Sequence[str]) -> dict[str, float]:
    """Return the lowest price among the zones: new instances go where it is low."""
    with aws.plainly("read the prices of spot instances"):
        found = aws.client("ec2", region).describe_spot_price_history(
            InstanceTypes=list(names), ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC)
        )["SpotPriceHistory"]
    lowest: dict[str, float] = {}
    for each in found:
        name, price = str(each["InstanceType"]), float(each["SpotPrice"])
        lowest[name] = min(price, lowest.get(name, price))
    return lowest


def _on_demand_price(region: str, name: str) -> float | None:
    wanted = {
        "regionCode": region,
        "instanceType": name,
        "operatingSystem": "Linux",
        "preInstalledSw": "NA",
        "tenancy": "Shared",
        "capacitystatus": "Used",
    }
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    with aws.plainly("read the price list"):
        found = aws.client("pricing", PRICE_LIST_REGION).get_products(ServiceCode="AmazonEC2", Filters=filters)
    return _dollars(json.loads(found["PriceList"][0])) if found["PriceList"] else None


def _dollars(product: dict[str, Any]) -> float:
    """Read the one price of an hour in a product's terms; raises TranscriptionError."""
    try:
        (term,) = product["terms"]["OnDemand"].values()
        (dimension,) = term["priceDimensions"].values()
        return float(dimension["pricePerUnit"]["USD"])
    except (KeyError, ValueError, TypeError) as error:
        raise TranscriptionError(f"the price list has another form than it had: {error!r}") from error
