from __future__ import annotations

import json

import boto3
import pytest
from click.testing import CliRunner
from moto import mock_aws

from run_transcription.batch_array import batch_array
from run_transcription.demo.emulator import clean_environment, environment

OUTPUTS = ("LiveQueueUrl", "LiveQueueArn", "BackfillQueueUrl", "DeadLetterQueueUrl", "LogGroup")


def deploy():
    """Make a stack that says what ours says, with two attached buckets."""
    template = {
        "Parameters": {name: {"Type": "String"} for name in ("ImageParameter", "AttachedBuckets")},
        "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
        "Outputs": {name: {"Value": name} for name in OUTPUTS} | {"Bucket": {"Value": "own"}},
    }
    given = {"ImageParameter": "/image", "AttachedBuckets": "calls,talks"}
    parameters = [{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()]
    boto3.client("cloudformation").create_stack(
        StackName="transcribe", TemplateBody=json.dumps(template), Parameters=parameters
    )


@pytest.fixture
def batch():
    """Be in an account with a stack and a job queue, in which jobs wait."""
    variables = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with environment(clean_environment() | variables), mock_aws(config={"batch": {"use_docker": False}}):
        role = boto3.client("iam").create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        client = boto3.client("batch")
        place = client.create_compute_environment(
            computeEnvironmentName="place", type="UNMANAGED", state="ENABLED", serviceRole=role
        )["computeEnvironmentArn"]
        order = [{"order": 1, "computeEnvironment": place}]
        client.create_job_queue(jobQueueName="transcribe", state="ENABLED", priority=1, computeEnvironmentOrder=order)
        deploy()
        yield client


def define(client):
    """Make the job definition."""
    properties = {"image": "worker", "vcpus": 1, "memory": 128, "command": ["true"]}
    client.register_job_definition(jobDefinitionName="transcribe", type="container", containerProperties=properties)


@pytest.mark.parametrize("size", [1, 7])
def test_an_array_has_as_many_children_as_workers_were_asked_for(batch, size):
    """One worker is a job of its own, since an array has two children at least."""
    define(batch)
    done = CliRunner().invoke(batch_array, [str(size)])
    assert done.exit_code == 0, done.output
    (job,) = batch.describe_jobs(jobs=[done.stdout.strip()])["jobs"]
    assert job.get("arrayProperties", {}).get("size", 1) == size
    assert {"name": "TRANSCRIBE_BUCKET", "value": "own calls talks"} in job["container"]["environment"]


def test_without_a_stack_nothing_is_started(batch):
    """Nobody could say which buckets the workers may read."""
    define(batch)
    done = CliRunner().invoke(batch_array, ["2", "--stack", "absent"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: there is no stack absent in us-east-1")


def test_without_a_job_definition_it_says_what_makes_one(batch):
    """One line, and nothing is started."""
    done = CliRunner().invoke(batch_array, ["2"])
    assert done.exit_code == 1
    assert done.stderr == "Error: there is no job definition transcribe: deploy infra/batch.yaml first\n"
