"""The instance that this process runs on: what it is told (IMDSv2), and how it leaves its Auto Scaling group."""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from run_transcription import aws

if TYPE_CHECKING:
    from collections.abc import Callable

ENDPOINT = "http://169.254.169.254"
TOKEN_SECONDS = 21_600  # the longest that a token may live
ANSWER_SECONDS = 1.0  # the service is on the machine itself
MARGIN = 15.0  # seconds kept of a spot instance's last two minutes
LIFECYCLE_SECONDS = 60.0  # left to a job when the group takes the instance out
LETTING_GO_SECONDS = 10  # that the group may take to wait for its hook, once it ends an instance
TARGET_STATE = "autoscaling/target-lifecycle-state"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """Why the instance will end, and in how many seconds; None: at no known time."""

    reason: str
    seconds: float | None


class Metadata:
    """The instance metadata service, asked with a token (IMDSv2)."""

    def __init__(self, endpoint: str | None = None) -> None:
        """Address the service, which need not be there."""
        found = urlsplit(endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)
        self._place = (found.hostname or "", found.port or 80)
        self._token, self._expires = "", 0.0

    def get(self, path: str) -> str | None:
        """Return what stands at meta-data/PATH, None where nothing does; raises OSError where nobody answers."""
        if time.monotonic() > self._expires:
            wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            status, self._token = self._ask("PUT", "/latest/api/token", wanted)
            if status != http.HTTPStatus.OK:
                raise OSError(f"the metadata service gives no token: status {status}")
            self._expires = time.monotonic() + TOKEN_SECONDS / 2
        status, text = self._ask("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
        if status == http.HTTPStatus.UNAUTHORIZED:
            self._expires = 0.0
        return text if status == http.HTTPStatus.OK else None

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self._place, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(10_000).decode(errors="replace").strip()
        except http.client.HTTPException as error:
            raise OSError(f"the metadata service answers in no HTTP: {error!r}") from error
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class Instance:
    """An EC2 instance: its service of facts, and who it is."""

    metadata: Metadata
    id: str
    image: str
    region: str

    def notice(self) -> Notice | None:
        """Return what the instance is told about its end, the most pressing first; None while it may stay."""
        for path, read in NOTICES:
            said = self._told(path)
            if said and (notice := read(said)) is not None:
                return notice
        return None

    def end(self, *, smaller: bool) -> bool:
        """End this instance; False where it is in no group, or with `smaller` in one that must not shrink.

        With `smaller` its group wants one less from then on, unless it has more instances than it wants.
        """
        group = self._group()
        if group is None:
            return False
        wanted, alive = group["DesiredCapacity"], [each for each in group["Instances"] if not _ends(each)]
        shrinks = smaller and len(alive) <= wanted
        if shrinks and wanted <= group["MinSize"]:
            return False
        with aws.plainly(f"end the instance {self.id}"):
            aws.client("autoscaling", self.region).terminate_instance_in_auto_scaling_group(
                InstanceId=self.id, ShouldDecrementDesiredCapacity=shrinks
            )
        return True

    def let_go(self) -> None:
        """Tell the hooks that hold this instance while it ends that its worker holds nothing any more.

        Without that a group waits for their time-out. An instance that stays is left alone.
        """
        if self._told(TARGET_STATE) is None:
            return  # it is in no group
        client = aws.client("autoscaling", self.region)
        with aws.plainly(f"let the instance {self.id} go"):
            for _ in range(LETTING_GO_SECONDS):
                member = self._member()
                if member is None or member["LifecycleState"] != "Terminating":
                    break
                time.sleep(1)
            if member is None or member["LifecycleState"] != "Terminating:Wait":
                return
            group = {"AutoScalingGroupName": member["AutoScalingGroupName"]}
            for hook in client.describe_lifecycle_hooks(**group)["LifecycleHooks"]:
                if hook["LifecycleTransition"] == "autoscaling:EC2_INSTANCE_TERMINATING":
                    client.complete_lifecycle_action(
                        **group,
                        LifecycleHookName=hook["LifecycleHookName"],
                        LifecycleActionResult="CONTINUE",
                        InstanceId=self.id,
                    )

    def out_of_service(self) -> None:
        """Tell the group that this instance is broken, so that another one takes its place."""
        with aws.plainly(f"take the instance {self.id} out of service"):
            aws.client("autoscaling", self.region).set_instance_health(
                InstanceId=self.id, HealthStatus="Unhealthy", ShouldRespectGracePeriod=False
            )

    def outdated(self, parameter: str) -> bool:
        """Tell whether an SSM parameter names another image than the one that this instance runs."""
        with aws.plainly(f"read the parameter {parameter}"):
            found = aws.client("ssm", self.region).get_parameter(Name=parameter)
        return bool(found["Parameter"]["Value"] != self.image)

    def _told(self, path: str) -> str | None:
        try:
            return self.metadata.get(path)
        except OSError as error:  # a service that is gone for a moment says nothing
            log.debug("no word from the metadata service: %s", error)
            return None

    def _member(self) -> Any:
        client = aws.client("autoscaling", self.region)
        with aws.plainly(f"find the group of the instance {self.id}"):
            found = client.describe_auto_scaling_instances(InstanceIds=[self.id])["AutoScalingInstances"]
        return found[0] if found else None

    def _group(self) -> Any:
        if (member := self._member()) is None:
            return None
        client, names = aws.client("autoscaling", self.region), [member["AutoScalingGroupName"]]
        with aws.plainly(f"find the group of the instance {self.id}"):
            return client.describe_auto_scaling_groups(AutoScalingGroupNames=names)["AutoScalingGroups"][0]


def instance() -> Instance | None:
    """Return the instance that this process runs on, None where it is none or must not ask."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    metadata = Metadata()
    try:
        paths = ("instance-id", "ami-id", "placement/region")
        facts = [metadata.get(path) or "" for path in paths]
    except OSError as error:
        log.debug("this is no EC2 instance: %s", error)
        return None
    return Instance(metadata, *facts) if facts[0] else None


def _ends(member: Any) -> bool:
    return bool(member["LifecycleState"].startswith("Terminat"))


def _spot(said: str) -> Notice | None:
    """Read a spot notice: {"action": "terminate", "time": "2026-01-31T08:22:00Z"}."""
    try:
        found = json.loads(said)
        at = datetime.fromisoformat(found["time"])
    except (ValueError, TypeError, KeyError):
        return Notice("a spot notice", MARGIN)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    left = (at - datetime.now(UTC)).total_seconds() - MARGIN
    return Notice(f"a spot notice: {found.get('action', 'terminate')}", max(left, 0.0))


def _rebalance(_said: str) -> Notice:
    return Notice("a rebalance recommendation", None)


def _lifecycle(said: str) -> Notice | None:
    return Notice("the group takes the instance out", LIFECYCLE_SECONDS) if said.startswith("Terminated") else None


NOTICES: tuple[tuple[str, Callable[[str], Notice | None]], ...] = (
    ("spot/instance-action", _spot),
    (TARGET_STATE, _lifecycle),
    ("events/recommendations/rebalance", _rebalance),
)
