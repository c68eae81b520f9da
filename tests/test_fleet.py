from __future__ import annotations

import boto3
import pytest
from emulated_group import a_group
from permissions import GROUP, REGION

from run_transcription import aws, fleet


@pytest.fixture
def group(monkeypatch):
    """Run a group of two protected instances in moto; give what looks at it."""
    monkeypatch.setattr(fleet, "HEARD_SECONDS", 0.0)
    with a_group():
        client = boto3.client("autoscaling")
        yield lambda: client.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"][0]
    aws.forget_clients()


def ids(group):
    """Return the ids of the instances."""
    return {each["InstanceId"] for each in group()["Instances"]}


def test_instances_that_run_are_replaced(group):
    """As many others come, protection or not; what is wanted stays."""
    before = ids(group)
    assert fleet.renew(GROUP, REGION) == 2
    assert len(ids(group)) == group()["DesiredCapacity"] == 2
    assert not ids(group) & before


def test_instances_that_end_already_are_left_alone(group, monkeypatch):
    """They are counted by the group until they are gone."""
    client = aws.client("autoscaling", REGION)
    whole = client.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])
    whole["AutoScalingGroups"][0]["Instances"][0]["LifecycleState"] = "Terminating:Wait"
    monkeypatch.setattr(client, "describe_auto_scaling_groups", lambda **_: whole)
    assert fleet.renew(GROUP, REGION) == 1


def test_a_group_that_is_removed_lets_its_instances_go(group):
    """Nothing more is wanted, and no protection keeps the group."""
    fleet.let_instances_go(GROUP, REGION)
    found = group()
    assert (found["MaxSize"], found["DesiredCapacity"]) == (0, 0)
    assert not [each for each in found["Instances"] if each["ProtectedFromScaleIn"]]


def test_zones_are_not_evened_out(group):
    """That would end instances at work."""
    fleet.keep_zones_as_they_are(GROUP, REGION)
    assert [each["ProcessName"] for each in group()["SuspendedProcesses"]] == ["AZRebalance"]
