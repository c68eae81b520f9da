from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.stub import Stubber
from faults.imds import FACTS, metadata
from moto import mock_aws

from run_transcription import aws, ec2
from run_transcription.demo.emulator import clean_environment, environment
from run_transcription.errors import TranscriptionError


@pytest.fixture
def service():
    """Run a metadata service, and let this process ask it."""
    with metadata() as server:
        variables = clean_environment() | {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        with environment(variables):
            yield server


def test_an_instance_knows_who_it_is(service):
    """Facts are asked for with a token: IMDSv2."""
    instance = ec2.instance()
    assert (instance.id, instance.image, instance.region) == tuple(FACTS.values())
    assert instance.notice() is None


def test_another_machine_is_no_instance(service):
    """Nobody answers, or nobody may be asked: then there is no instance to end."""
    with environment(os.environ | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}):
        assert ec2.instance() is None
    with environment(os.environ | {"AWS_EC2_METADATA_DISABLED": "true"}):
        assert ec2.instance() is None


def test_a_spot_notice_says_how_long_is_left(service):
    """Some seconds of the last two minutes are kept, to give everything back."""
    at = datetime.now(UTC) + timedelta(seconds=120)
    service.facts["spot/instance-action"] = json.dumps(
        {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    )
    notice = ec2.instance().notice()
    assert "spot notice: terminate" in notice.reason
    assert 120 - ec2.MARGIN - 3 < notice.seconds <= 120 - ec2.MARGIN


@pytest.mark.parametrize("said", ["no json", "{}", '{"action": "stop", "time": 7}', '{"time": "soon"}', "[]"])
def test_a_notice_that_cannot_be_read_is_one_nevertheless(service, said):
    """Something will happen to the instance: the shortest time is assumed."""
    service.facts["spot/instance-action"] = said
    assert ec2.instance().notice().seconds == ec2.MARGIN


def test_a_recommendation_leaves_the_job_its_time(service):
    """Rebalance is no deadline; the group taking the instance out is one; being in service is nothing."""
    service.facts["autoscaling/target-lifecycle-state"] = "InService"
    assert ec2.instance().notice() is None
    service.facts["events/recommendations/rebalance"] = '{"noticeTime": "2026-01-31T08:22:00Z"}'
    assert ec2.instance().notice().seconds is None
    service.facts["autoscaling/target-lifecycle-state"] = "Terminated"
    assert ec2.instance().notice().seconds == ec2.LIFECYCLE_SECONDS


def test_a_service_that_goes_away_says_nothing(service):
    """A metadata service that is silent for a moment ends no worker."""
    instance = ec2.instance()
    service.shutdown()
    service.server_close()
    assert instance.notice() is None


def test_an_instance_leaves_its_group_as_it_must(service):
    """Idle it ends and the group shrinks, at the minimum it stays; outdated or broken, another one takes its place."""
    with mock_aws():
        aws.forget_clients()
        client, parameters = (boto3.client(name, region_name="us-east-1") for name in ("autoscaling", "ssm"))
        client.create_launch_configuration(LaunchConfigurationName="l", ImageId="ami-1", InstanceType="t2.micro")
        size = {"MinSize": 1, "MaxSize": 3, "DesiredCapacity": 2, "AvailabilityZones": ["us-east-1a"]}
        client.create_auto_scaling_group(AutoScalingGroupName="g", LaunchConfigurationName="l", **size)

        def group():
            return client.describe_auto_scaling_groups(AutoScalingGroupNames=["g"])["AutoScalingGroups"][0]

        def one():
            service.facts["instance-id"] = group()["Instances"][0]["InstanceId"]
            return ec2.instance()

        assert one().end(smaller=True)
        assert group()["DesiredCapacity"] == 1
        assert not one().end(smaller=True)
        assert group()["DesiredCapacity"] == len(group()["Instances"]) == 1
        parameters.put_parameter(Name="/image", Value="ami-1", Type="String")
        assert not one().outdated("/image")
        parameters.put_parameter(Name="/image", Value="ami-2", Type="String", Overwrite=True)
        outdated = one()
        assert outdated.outdated("/image")
        assert outdated.end(smaller=False)
        assert group()["DesiredCapacity"] == 1
        broken = one()
        assert broken.id != outdated.id
        broken.out_of_service()
        assert [(each["InstanceId"], each["HealthStatus"]) for each in group()["Instances"]] == [
            (broken.id, "Unhealthy")
        ]
    aws.forget_clients()


def test_an_instance_that_its_group_wants_no_more_may_end(service):
    """A wanted capacity of 0 ends no protected instance: it goes by itself, and nothing is lowered below 0."""
    with mock_aws():
        aws.forget_clients()
        client = boto3.client("autoscaling", region_name="us-east-1")
        client.create_launch_configuration(LaunchConfigurationName="l", ImageId="ami-1", InstanceType="t2.micro")
        size = {"MinSize": 0, "MaxSize": 2, "DesiredCapacity": 2, "AvailabilityZones": ["us-east-1a"]}
        client.create_auto_scaling_group(
            AutoScalingGroupName="g", LaunchConfigurationName="l", NewInstancesProtectedFromScaleIn=True, **size
        )
        client.set_desired_capacity(AutoScalingGroupName="g", DesiredCapacity=0)
        for left in (1, 0):
            group = client.describe_auto_scaling_groups(AutoScalingGroupNames=["g"])["AutoScalingGroups"][0]
            service.facts["instance-id"] = group["Instances"][0]["InstanceId"]
            assert ec2.instance().end(smaller=True)
            group = client.describe_auto_scaling_groups(AutoScalingGroupNames=["g"])["AutoScalingGroups"][0]
            assert (group["DesiredCapacity"], len(group["Instances"])) == (0, left)
    aws.forget_clients()


def member(state):
    """Return what the group says of an instance in a state."""
    said = {"InstanceId": FACTS["instance-id"], "AutoScalingGroupName": "g", "AvailabilityZone": "us-east-1a"}
    said |= {"LifecycleState": state, "HealthStatus": "HEALTHY", "ProtectedFromScaleIn": True}
    return "describe_auto_scaling_instances", {"AutoScalingInstances": [said]}


def test_an_instance_that_ends_does_not_wait_for_its_hooks_time_out(service):
    """The hook that holds it is told, and no other; an instance that stays is left alone."""
    hooks = [
        {"LifecycleHookName": name, "LifecycleTransition": f"autoscaling:EC2_INSTANCE_{kind}"}
        for name, kind in (("begin", "LAUNCHING"), ("end", "TERMINATING"))
    ]
    group = {"AutoScalingGroupName": "g"}
    action = {"LifecycleHookName": "end", "LifecycleActionResult": "CONTINUE", "InstanceId": FACTS["instance-id"]}
    aws.forget_clients()
    instance = ec2.instance()
    with Stubber(aws.client("autoscaling", "us-east-1")) as stub:
        instance.let_go()  # in no group: nobody is asked
        service.facts["autoscaling/target-lifecycle-state"] = "InService"
        stub.add_response(*member("InService"))
        instance.let_go()
        stub.assert_no_pending_responses()
        service.facts["autoscaling/target-lifecycle-state"] = "Terminated"
        stub.add_response(*member("Terminating"))
        stub.add_response(*member("Terminating:Wait"))
        stub.add_response("describe_lifecycle_hooks", {"LifecycleHooks": hooks}, group)
        stub.add_response("complete_lifecycle_action", {}, group | action)
        instance.let_go()
        stub.assert_no_pending_responses()
    aws.forget_clients()


def test_an_instance_without_a_group_stays(service):
    """A machine that a person has started is not the worker's to end."""
    with mock_aws():
        aws.forget_clients()
        assert not ec2.instance().end(smaller=True)
        with pytest.raises(TranscriptionError, match="cannot read the parameter /absent"):
            ec2.instance().outdated("/absent")
    aws.forget_clients()
