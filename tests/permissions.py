"""IAM without AWS: calls are recorded as they leave botocore, or arrive at an emulator, and compared with policies."""

from __future__ import annotations

import functools
import re
from contextlib import contextmanager
from dataclasses import dataclass

from run_transcription import aws

ACCOUNT, REGION, GROUP = "000000000000", "us-east-1", "life"
# operations that need a permission of another name
ACTIONS = {
    "s3:HeadObject": "s3:GetObject",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:ListObjectVersions": "s3:ListBucketVersions",
    "s3:DeleteObjects": "s3:DeleteObjectVersion",
    "s3:GetBucketNotificationConfiguration": "s3:GetBucketNotification",
    "s3:PutBucketNotificationConfiguration": "s3:PutBucketNotification",
    "sqs:SendMessageBatch": "sqs:SendMessage",
}
PREFIXES = {"service-quotas": "servicequotas"}
TAG = "aws:ResourceTag/"
# what a request to EC2 names, and the kind of thing that it is
OF_EC2 = {
    "InstanceId": "instance",
    "KeyName": "key-pair",
    "GroupId": "security-group",
    "ImageId": "image",
    "SnapshotId": "snapshot",
    "LaunchTemplateName": "launch-template",
}
FREE = {"sts:GetCallerIdentity"}  # which needs no permission


@dataclass(frozen=True)
class Call:
    """A permission that a call needs, on a resource."""

    action: str
    resource: str
    tags: frozenset[tuple[str, str]] = frozenset()  # of the resource


@dataclass(frozen=True)
class Grant:
    """One action of a statement that allows it."""

    sid: str
    action: str
    resources: tuple[str, ...]
    tags: frozenset[tuple[str, str]] = frozenset()  # that the resource must have

    def covers(self, call: Call) -> bool:
        """Compare as IAM does: actions without case, resources with it, * and ? in both."""
        named = _like(self.action.lower(), call.action.lower())
        return named and self.tags <= call.tags and any(_like(resource, call.resource) for resource in self.resources)


def grants(document: dict) -> list[Grant]:
    """Return what a policy allows without a condition, or with one on tags of the resource."""
    found = []
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        tags = _tags_of(statement.get("Condition", {}))
        if tags is not None:
            resources = tuple(_list(statement["Resource"]))
            found += [Grant(statement["Sid"], action, resources, tags) for action in _list(statement["Action"])]
    return found


def _tags_of(condition: dict) -> frozenset[tuple[str, str]] | None:
    """Return the tags that a condition wants of a resource; None where it wants something else."""
    wanted = condition.get("StringEquals", {})
    if condition.keys() - {"StringEquals"} or not all(key.startswith(TAG) for key in wanted):
        return None
    return frozenset((key.removeprefix(TAG), value) for key, value in wanted.items())


def missing(calls: set[Call], allowed: list[Grant]) -> set[Call]:
    """Return the calls that nothing allows."""
    return {call for call in calls if call.action not in FREE and not any(grant.covers(call) for grant in allowed)}


def idle(calls: set[Call], allowed: list[Grant]) -> set[tuple[str, str]]:
    """Return the statement and the action of what is allowed and never called."""
    return {(grant.sid, grant.action) for grant in allowed if not any(grant.covers(call) for call in calls)}


def requested(action: str, given: dict, tags: dict[str, dict[str, str]]) -> Call:
    """Return the call that a request is, as it arrives at EC2 or SSM; tags are those of resources, by their ids."""
    if action.startswith("ssm:"):
        name = given.get("Name") or given.get("Names", ["*"])[0]
        owner = "" if name.startswith("/aws/") else ACCOUNT
        return Call(action, f"arn:aws:ssm:{REGION}:{owner}:parameter/{name.lstrip('/')}" if name != "*" else "*")
    for name, kind in OF_EC2.items():
        if found := given.get(name) or given.get(f"{name}.1"):
            owner = "" if kind in {"image", "snapshot"} else ACCOUNT
            return Call(action, f"arn:aws:ec2:{REGION}:{owner}:{kind}/{found}", frozenset(tags.get(found, {}).items()))
    return Call(action, "*")


@contextmanager
def recorded(monkeypatch):
    """Lend the set of all calls that this process's clients make while the block runs."""
    calls: set[Call] = set()
    make = aws._client.__wrapped__

    def listening(service, region):
        client = make(service, region)
        client.meta.events.register(
            "provide-client-params.*.*", lambda params, model, **_: calls.update(_calls(service, model.name, params))
        )
        return client

    with monkeypatch.context() as patched:
        patched.setattr(aws, "_client", functools.cache(listening))
        yield calls
    aws.forget_clients()


def _calls(service: str, operation: str, params: dict) -> set[Call]:
    """Return what an operation needs, which is a permission on each resource that it names."""
    action = f"{PREFIXES.get(service, service)}:{operation}"
    action = ACTIONS.get(action, action)
    if action == "s3:GetObject" and "VersionId" in params:
        action = "s3:GetObjectVersion"
    find = RESOURCES.get(service)
    return {Call(action, resource) for resource in _list(find(params) if find else "*")}


def _of_s3(params: dict) -> str:
    return f"arn:aws:s3:::{params['Bucket']}" + (f"/{params['Key']}" if "Key" in params else "")


def _of_sqs(params: dict) -> str:
    name = params["QueueUrl"].rpartition("/")[2] if "QueueUrl" in params else params["QueueName"]
    return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"


def _of_cloudformation(params: dict) -> str:
    name = params.get("StackName", "*")
    return name if name.startswith(("arn:", "*")) else f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{name}/id"


def _of_autoscaling(params: dict) -> str:
    """Descriptions know no resources; of an instance the group is meant, which in these tests is the stack's."""
    if "AutoScalingGroupNames" in params or "InstanceIds" in params or "MaxRecords" in params:
        return "*"
    name = params.get("AutoScalingGroupName", GROUP)
    return f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:id:autoScalingGroupName/{name}"


def _of_batch(params: dict) -> str | list[str]:
    """A job needs queue and definition; AWS's pages and its refusals differ on whether the revision is named."""
    if "jobQueue" not in params:
        return "*"
    root = f"arn:aws:batch:{REGION}:{ACCOUNT}"
    definition = f"{root}:job-definition/{params['jobDefinition']}"
    return [f"{root}:job-queue/{params['jobQueue']}", definition, f"{definition}:1"]


RESOURCES = {
    "batch": _of_batch,
    "s3": _of_s3,
    "sqs": _of_sqs,
    "cloudformation": _of_cloudformation,
    "autoscaling": _of_autoscaling,
    "ssm": lambda params: f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter{params['Name']}",
    "logs": lambda params: f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{params['logGroupName']}:log-stream:",
    "sns": lambda params: params["TopicArn"],
}


def _list(value) -> list:
    return value if isinstance(value, list) else [value]


def _like(pattern: str, text: str) -> bool:
    """Compare with a pattern; a wildcard in the text itself, which stands for all, needs one in the pattern."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text, re.DOTALL) is not None
