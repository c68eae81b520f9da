"""How a stack is doing: queues, alarms, instances, throughput, failed launches, hours and cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from run_transcription import aws, fleet
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from run_transcription.stacks import Stack

COUNTED = ("finished", "failed", "audio_seconds", "busy", "self_test_failures")  # the template's metric filters
SINCE = timedelta(hours=1)
MONTH = timedelta(days=30)
MOST_ACTIVITIES = 50
ALARM_NAME = re.compile(r"([A-Za-z]+)-[A-Za-z0-9]+")  # after the stack's: CloudFormation adds letters of chance


@dataclass(frozen=True, slots=True)
class Queue:
    """About how many messages wait in a queue, and how many are in work."""

    role: str
    waiting: int
    in_work: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of the group."""

    id: str
    type: str
    zone: str
    state: str
    spot: bool
    image: str
    hours: float
    cost: float | None  # None: nobody says what it costs


@dataclass(frozen=True, slots=True)
class FailedLaunch:
    """An instance that did not start, in EC2's own words."""

    at: str
    reason: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm of the stack that stands, and what it says."""

    name: str
    since: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """All of it; what is counted is that of the last hour."""

    stack: str
    status: str
    queues: tuple[Queue, ...]
    alarms: tuple[Alarm, ...]
    fleet: bool = False
    image: str | None = None  # that new instances start from; None: nobody says
    wanted: int = 0
    instances: tuple[Instance, ...] = ()
    failed_launches: tuple[FailedLaunch, ...] = ()
    finished: float = 0.0
    failed: float = 0.0
    audio_seconds: float = 0.0
    busy: float = 0.0  # seconds of the model
    self_test_failures: float = 0.0
    month_hours: float = 0.0  # of all instances in the last 30 days, those that have ended too
    warnings: tuple[str, ...] = ()

    @property
    def hours(self) -> float:
        """Hours of the instances that are there now."""
        return sum(each.hours for each in self.instances)

    @property
    def cost(self) -> float | None:
        """Dollars of the instances that are there now, None where a price is unknown."""
        costs = [each.cost for each in self.instances]
        return None if None in costs else sum(cost for cost in costs if cost is not None)


def make(stack: Stack, now: datetime) -> Report:
    """Ask for all of it; raises TranscriptionError."""
    queues = tuple(
        queue(role, url, stack.region)
        for role, url in (("live", stack.live_url), ("backfill", stack.backfill_url), ("dead", stack.dead_letter_url))
    )
    alarms = _alarms(stack)
    if stack.group is None:
        return Report(stack.name, stack.status, queues, alarms)
    image, unread = _image(stack)
    wanted, instances, unpriced = _instances(stack, now)
    return Report(
        stack.name,
        stack.status,
        queues,
        alarms,
        fleet=True,
        image=image,
        wanted=wanted,
        instances=instances,
        failed_launches=_failed_launches(stack),
        **_counts(stack, now),
        month_hours=_month_hours(stack, now),
        warnings=unread + unpriced,
    )


def queue(role: str, url: str, region: str) -> Queue:
    """Return about how many messages a queue has; raises TranscriptionError."""
    with aws.plainly(f"look into the queue {url}"):
        found = aws.sqs(region).get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    waiting, in_work = found["ApproximateNumberOfMessages"], found["ApproximateNumberOfMessagesNotVisible"]
    return Queue(role, int(waiting), int(in_work))


def _alarms(stack: Stack) -> tuple[Alarm, ...]:
    """Return the stack's alarms that stand; those of a stack whose name only begins alike are left out."""
    prefix = f"{stack.name}-"
    with aws.plainly("look at the alarms"):
        pages = aws.client("cloudwatch", stack.region).get_paginator("describe_alarms")
        found = [
            (name[1], each)
            for page in pages.paginate(AlarmNamePrefix=prefix)
            for each in page["MetricAlarms"]
            if each["StateValue"] == "ALARM" and (name := ALARM_NAME.fullmatch(each["AlarmName"].removeprefix(prefix)))
        ]
    return tuple(Alarm(name, _time(each["StateUpdatedTimestamp"]), each["AlarmDescription"]) for name, each in found)


def _image(stack: Stack) -> tuple[str | None, tuple[str, ...]]:
    """Return the image that new instances start from; without one there is a warning, and all else is told."""
    try:
        with aws.plainly(f"read {stack.image_parameter}"):
            found = aws.client("ssm", stack.region).get_parameter(Name=stack.image_parameter)
    except TranscriptionError as error:
        return None, (f"no instance can start: {error}",)
    return found["Parameter"]["Value"], ()


def _instances(stack: Stack, now: datetime) -> tuple[int, tuple[Instance, ...], tuple[str, ...]]:
    """Return how many the group wants, those that it has, and why prices are unknown where they are."""
    with aws.plainly(f"look at the group {stack.group}"):
        groups = aws.client("autoscaling", stack.region).describe_auto_scaling_groups(
            AutoScalingGroupNames=[stack.group]
        )["AutoScalingGroups"]
    if not groups:
        raise TranscriptionError(f"the group {stack.group} is gone: run-transcription deploy")
    states = {each["InstanceId"]: each["LifecycleState"] for each in groups[0]["Instances"]}
    if not states:
        return groups[0]["DesiredCapacity"], (), ()
    with aws.plainly("look at the instances"):
        pages = aws.client("ec2", stack.region).get_paginator("describe_instances").paginate(InstanceIds=list(states))
        found = [each for page in pages for group in page["Reservations"] for each in group["Instances"]]
    prices, warnings = _prices(stack, sorted({each["InstanceType"] for each in found}))
    instances = tuple(_instance(each, states[each["InstanceId"]], prices, now) for each in found)
    return groups[0]["DesiredCapacity"], instances, warnings


def _prices(stack: Stack, types: list[str]) -> tuple[dict[str, fleet.Price], tuple[str, ...]]:
    """Return prices by type; without a right to read them there is a warning, and all else is told."""
    try:
        return {each.name: each for each in fleet.prices(stack.region, types)}, ()
    except TranscriptionError as error:
        return {}, (f"the cost is unknown: {error}",)


def _instance(found: Any, state: str, prices: dict[str, fleet.Price], now: datetime) -> Instance:
    spot = found.get("InstanceLifecycle") == "spot"
    hours = max((now - found["LaunchTime"]).total_seconds(), 0.0) / 3600
    price = prices.get(found["InstanceType"])
    of_an_hour = None if price is None else price.spot if spot else price.on_demand
    return Instance(
        id=found["InstanceId"],
        type=found["InstanceType"],
        zone=found["Placement"]["AvailabilityZone"],
        state=state,
        spot=spot,
        image=found["ImageId"],
        hours=hours,
        cost=None if of_an_hour is None else of_an_hour * hours,
    )


def _failed_launches(stack: Stack) -> tuple[FailedLaunch, ...]:
    with aws.plainly(f"read the activities of {stack.group}"):
        found = aws.client("autoscaling", stack.region).describe_scaling_activities(
            AutoScalingGroupName=stack.group, MaxRecords=MOST_ACTIVITIES
        )["Activities"]
    return tuple(
        FailedLaunch(_time(each["StartTime"]), each.get("StatusMessage", ""))
        for each in found
        if each["StatusCode"] in {"Failed", "Cancelled"}
    )


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")


def _counts(stack: Stack, now: datetime) -> dict[str, float]:
    queries = [
        {
            "Id": name,
            "MetricStat": {
                "Metric": {"Namespace": f"Transcribe/{stack.name}", "MetricName": name},
                "Period": 300,
                "Stat": "Sum",
            },
        }
        for name in COUNTED
    ]
    with aws.plainly("read the metrics"):
        found = aws.client("cloudwatch", stack.region).get_metric_data(
            MetricDataQueries=queries, StartTime=now - SINCE, EndTime=now
        )["MetricDataResults"]
    return {each["Id"]: sum(each["Values"]) for each in found}


def _month_hours(stack: Stack, now: datetime) -> float:
    """Return the hours of all instances in service, as the group has counted them, which it does once a minute."""
    metric = {
        "Namespace": "AWS/AutoScaling",
        "MetricName": "GroupInServiceInstances",
        "Dimensions": [{"Name": "AutoScalingGroupName", "Value": stack.group}],
    }
    query = {"Id": "counted", "MetricStat": {"Metric": metric, "Period": 3600, "Stat": "Sum"}}
    with aws.plainly("read the metrics of the group"):
        found = aws.client("cloudwatch", stack.region).get_metric_data(
            MetricDataQueries=[query], StartTime=now - MONTH, EndTime=now
        )["MetricDataResults"]
    return float(sum(value for each in found for value in each["Values"])) / 60
