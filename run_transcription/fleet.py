"""What the fleet is made of: kinds of instances, and what an hour of them costs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from run_transcription import aws
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

PRICE_LIST_REGION = "us-east-1"  # the price list of all regions is served from a few


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
