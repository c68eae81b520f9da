from __future__ import annotations

from pathlib import Path

import boto3
import permissions
import pytest
from click.testing import CliRunner
from moto import mock_aws

from run_transcription.batch_array import batch_array
from run_transcription.demo.emulator import clean_environment, environment

INFRA = Path(__file__).parents[1] / "infra"
MOTO = "123456789012"  # the account
OURS = {"MaxWorkers": "0", "AttachedBuckets": "calls,talks"}


def make(name, template, **parameters):
    """Deploy a template, and return its outputs."""
    client = boto3.client("cloudformation")
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
    client.create_stack(StackName=name, TemplateBody=template, Parameters=given, Capabilities=["CAPABILITY_IAM"])
    (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}


@pytest.fixture(scope="module")
def policies():
    """Be in an account with two stacks of ours, and Batch beside the first one; return what people may there."""
    variables = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with environment(clean_environment() | variables), mock_aws(config={"batch": {"use_docker": False}}):
        role = boto3.client("iam").create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        subnet = boto3.client("ec2").describe_subnets()["Subnets"][0]
        given = {"Image": "registry/worker:1", "VpcId": subnet["VpcId"], "SubnetIds": subnet["SubnetId"]}
        ours, batch = ((INFRA / name).read_text() for name in ("stack.yaml", "batch.yaml"))
        # AWS has a role of its own for Batch, moto has not
        batch = batch.replace("      Type: MANAGED\n", f"      Type: MANAGED\n      ServiceRole: {role}\n")
        outputs = make("transcribe", ours, **OURS) | make("transcribe-batch", batch, **given)
        make("bare", ours, **OURS)
        yield {name: document(outputs[name]) for name in ("OperatorPolicy", "SubmitPolicy")}


def document(policy):
    """Return what a policy says."""
    client = boto3.client("iam")
    version = client.get_policy(PolicyArn=policy)["Policy"]["DefaultVersionId"]
    return client.get_policy_version(PolicyArn=policy, VersionId=version)["PolicyVersion"]["Document"]


@pytest.mark.parametrize("size", [1, 7])
def test_an_array_has_as_many_children_as_workers_were_asked_for(policies, size):
    """One worker is a job of its own, since an array has two children at least; all are told where to work."""
    done = CliRunner().invoke(batch_array, [str(size)])
    assert done.exit_code == 0, done.output
    (job,) = boto3.client("batch").describe_jobs(jobs=[done.stdout.strip()])["jobs"]
    assert job.get("arrayProperties", {}).get("size", 1) == size
    container = job["container"]
    own = f"transcribe-{MOTO}-us-east-1"
    told = {each["name"]: each["value"] for each in container["environment"]}
    assert told["TRANSCRIBE_BUCKET"] == f"{own} calls talks"
    assert told["TRANSCRIBE_OUTPUT_DIR"] == f"s3://{own}"
    assert "BackfillQueue" in told["TRANSCRIBE_QUEUE_URL"]
    assert (container["image"], container["command"]) == ("registry/worker:1", ["run-transcription", "worker", "--once"])
    assert "WorkerRole" in container["jobRoleArn"]


def test_whoever_has_both_policies_may_start_an_array(policies, monkeypatch):
    """Nothing that is called is missing from them, and nothing of the one for Batch is never called."""
    monkeypatch.setattr(permissions, "ACCOUNT", MOTO)
    with permissions.recorded(monkeypatch) as calls:
        assert CliRunner().invoke(batch_array, ["2"]).exit_code == 0
    operator, submit = (permissions.grants(policies[name]) for name in ("OperatorPolicy", "SubmitPolicy"))
    assert permissions.missing(calls, operator + submit) == set()
    assert permissions.idle(calls, submit) == set()


def test_without_a_stack_nothing_is_started(policies):
    """Nobody could say which buckets the workers may read."""
    done = CliRunner().invoke(batch_array, ["2", "--stack", "absent"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: there is no stack absent in us-east-1")


def test_without_a_job_definition_it_says_what_makes_one(policies):
    """One line, and nothing is started."""
    done = CliRunner().invoke(batch_array, ["2", "--stack", "bare"])
    assert done.exit_code == 1
    assert done.stderr == "Error: there is no job definition bare: deploy infra/batch.yaml first\n"
