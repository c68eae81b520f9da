"""A group of instances in moto, and answers that no emulator has."""

from __future__ import annotations

import json
from contextlib import contextmanager

import boto3
from moto import mock_aws
from permissions import ACCOUNT, GROUP, REGION

from run_transcription import aws, preflight, stacks
from run_transcription.demo.emulator import clean_environment, environment

IMAGE = "/transcribe/ami/latest"
PRICE = {"terms": {"OnDemand": {"t": {"priceDimensions": {"d": {"pricePerUnit": {"USD": "1.0000000000"}}}}}}}
ENDING = {"AutoScalingGroupName": GROUP, "LifecycleState": "Terminating:Wait"}  # moto's instances wait for no hook
ANSWERS = {
    ("autoscaling", "DescribeAutoScalingInstances"): {"AutoScalingInstances": [ENDING]},
    ("autoscaling", "CompleteLifecycleAction"): {},
    ("pricing", "GetProducts"): {"PriceList": [json.dumps(PRICE)]},
    ("service-quotas", "GetServiceQuota"): {"Quota": {"Value": 64.0}},
}
WANTED = preflight.Wanted(GROUP, REGION, 10, 80, IMAGE, "", ())


@contextmanager
def a_group():
    """Run a group of two instances in moto; give the first one's id and the stack that it belongs to."""
    variables = clean_environment() | {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
    }
    with environment(variables), mock_aws():
        client, images = boto3.client("autoscaling"), boto3.client("ec2")
        image = images.describe_images()["Images"][0]["ImageId"]
        boto3.client("ssm").put_parameter(Name=IMAGE, Value=image, Type="String")
        client.create_launch_configuration(LaunchConfigurationName="l", ImageId=image, InstanceType="g5.xlarge")
        client.create_auto_scaling_group(
            AutoScalingGroupName=GROUP,
            LaunchConfigurationName="l",
            MinSize=0,
            MaxSize=2,
            DesiredCapacity=2,
            AvailabilityZones=["us-east-1a"],
            NewInstancesProtectedFromScaleIn=True,
        )
        ends = "autoscaling:EC2_INSTANCE_TERMINATING"
        client.put_lifecycle_hook(AutoScalingGroupName=GROUP, LifecycleHookName="end", LifecycleTransition=ends)
        urls = [boto3.client("sqs").create_queue(QueueName=name)["QueueUrl"] for name in ("live", "more", "dead")]
        group = client.describe_auto_scaling_groups()["AutoScalingGroups"][0]
        live, more, dead = urls
        stack = stacks.Stack(
            GROUP,
            REGION,
            "id",
            "CREATE_COMPLETE",
            f"{GROUP}-{ACCOUNT}-{REGION}",
            live,
            "",
            more,
            dead,
            "log",
            GROUP,
            IMAGE,
            (),
        )
        yield group["Instances"][0]["InstanceId"], stack


@contextmanager
def answering(patch):
    """Give the answers; the calls are made, and recorded, like all others."""
    before = aws.client

    def client(service, region=None):
        found = before(service, region)
        for (of, operation), answer in ANSWERS.items():
            if of == service:
                found.meta.events.register(
                    f"before-call.{of}.{operation}", lambda answer=answer, **_: (_Answer, answer)
                )
        return found

    with patch.context() as inner:
        inner.setattr(aws, "client", client)
        yield
    aws.forget_clients()


class _Answer:
    status_code = 200
