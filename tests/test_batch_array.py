from __future__ import annotations

import json
from pathlib import Path

import boto3
import permissions
import pytest
from click.testing import CliRunner
from moto import mock_aws

from run_transcription.batch_array import batch_array
from run_transcription.demo.emulator import clean_environment, environment

BATCH = Path(__file__).parents[1] / "infra/batch.yaml"
MOTO, REGION = "123456789012", "us-east-1"
OUTPUTS = ("LiveQueueUrl", "LiveQueueArn", "DeadLetterQueueUrl", "LogGroup")
EXPORTS = {"Bucket": "own", "BackfillQueueUrl": "https://more", "WorkerRoleArn": f"arn:aws:iam::{MOTO}:role/worker"}


def deploy(name, template, **parameters):
    """Deploy a template, and return its outputs."""
    client = boto3.client("cloudformation")
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
    client.create_stack(StackName=name, TemplateBody=template, Parameters=given, Capabilities=["CAPABILITY_IAM"])
    (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    return {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}


def deploy_ours(name):
    """Make a stack that says what ours says, which moto can't read, with two attached buckets."""
    template = {
        "Parameters": {each: {"Type": "String"} for each in ("ImageParameter", "AttachedBuckets")},
        "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
        "Outputs": {each: {"Value": each} for each in OUTPUTS}
        | {each: {"Value": value, "Export": {"Name": f"{name}-{each}"}} for each, value in EXPORTS.items()},
    }
    deploy(name, json.dumps(template), ImageParameter="/image", AttachedBuckets="calls,talks")


@pytest.fixture(scope="module")
def policy():
    """Be in an account with two stacks, and infra/batch.yaml beside the first one; return what it lets people do."""
    variables = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}
    with environment(clean_environment() | variables), mock_aws(config={"batch": {"use_docker": False}}):
        role = boto3.client("iam").create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        subnet = boto3.client("ec2").describe_subnets()["Subnets"][0]
        # AWS has a role of its own for Batch, moto has not
        template = BATCH.read_text().replace(
            "      Type: MANAGED\n", f"      Type: MANAGED\n      ServiceRole: {role}\n"
        )
        deploy_ours("transcribe")
        deploy_ours("bare")
        given = {"Image": "registry/worker:1", "VpcId": subnet["VpcId"], "SubnetIds": subnet["SubnetId"]}
        made = deploy("transcribe-batch", template, **given)["SubmitPolicy"]
        versions = boto3.client("iam").list_policy_versions(PolicyArn=made)["Versions"]
        yield versions[0]["Document"]


@pytest.mark.parametrize("size", [1, 7])
def test_an_array_has_as_many_children_as_workers_were_asked_for(policy, size):
    """One worker is a job of its own, since an array has two children at least; all are told where to work."""
    done = CliRunner().invoke(batch_array, [str(size)])
    assert done.exit_code == 0, done.output
    (job,) = boto3.client("batch").describe_jobs(jobs=[done.stdout.strip()])["jobs"]
    assert job.get("arrayProperties", {}).get("size", 1) == size
    told = {each["name"]: each["value"] for each in job["container"]["environment"]}
    assert told["TRANSCRIBE_BUCKET"] == "own calls talks"


def test_the_definition_is_a_worker_of_the_stack(policy):
    """What it imports from the stack is where it works and what it may do."""
    (found,) = boto3.client("batch").describe_job_definitions(jobDefinitionName="transcribe")["jobDefinitions"]
    container = found["containerProperties"]
    told = {each["name"]: each["value"] for each in container["environment"]}
    assert told["TRANSCRIBE_QUEUE_URL"] == EXPORTS["BackfillQueueUrl"]
    assert told["TRANSCRIBE_OUTPUT_DIR"] == "s3://own"
    assert container["jobRoleArn"] == EXPORTS["WorkerRoleArn"]
    assert (container["image"], container["command"]) == (
        "registry/worker:1",
        ["run-transcription", "worker", "--once"],
    )


def test_whoever_has_the_policy_may_start_an_array(policy, monkeypatch):
    """Only finding the stack is left to the policy of its operators, and nothing is granted that is never called."""
    monkeypatch.setattr(permissions, "ACCOUNT", MOTO)
    with permissions.recorded(monkeypatch) as calls:
        assert CliRunner().invoke(batch_array, ["2"]).exit_code == 0
    granted = permissions.grants(policy)
    assert {call.action for call in permissions.missing(calls, granted)} == {"cloudformation:DescribeStacks"}
    assert permissions.idle(calls, granted) == set()


def test_without_a_stack_nothing_is_started(policy):
    """Nobody could say which buckets the workers may read."""
    done = CliRunner().invoke(batch_array, ["2", "--stack", "absent"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: there is no stack absent in us-east-1")


def test_without_a_job_definition_it_says_what_makes_one(policy):
    """One line, and nothing is started."""
    done = CliRunner().invoke(batch_array, ["2", "--stack", "bare"])
    assert done.exit_code == 1
    assert done.stderr == "Error: there is no job definition bare: deploy infra/batch.yaml first\n"
