from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cfnlint.decode import decode

from run_transcription import changes, fleet, fleet_report, names, preflight
from run_transcription.journal import UNITS

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "infra/stack.yaml"


@pytest.fixture(scope="module")
def template():
    """Read the template, with its short tags written out."""
    found, problems = decode(str(TEMPLATE))
    assert not problems
    return found


@pytest.fixture(scope="module")
def resources(template):
    """Return the resources' properties by type and name."""
    found: dict = {}
    for name, resource in template["Resources"].items():
        found.setdefault(resource["Type"].removeprefix("AWS::"), {})[name] = resource.get("Properties", {})
    return found


def statements(document):
    """Yield the statements of a policy, those under a condition of the template too."""
    for each in document["Statement"]:
        yield each["Fn::If"][1] if "Fn::If" in each else each


def test_cfn_lint_has_nothing_to_say():
    """No error and no warning in any template, and no check is left out."""
    files = [TEMPLATE, ROOT / "infra/batch.yaml"]
    program = Path(sys.executable).with_name("cfn-lint")
    done = subprocess.run([program, "--", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert not [file for file in files if "ignore_checks" in file.read_text()]


def test_the_package_brings_the_template():
    """What is deployed is infra/stack.yaml, and CloudFormation takes it without a bucket for it."""
    assert changes.TEMPLATE.read_bytes() == TEMPLATE.read_bytes()
    assert TEMPLATE.stat().st_size < 51_200


def test_every_parameter_is_described_and_has_a_default(template):
    """A deployment without any parameter is a good one; at most two instances cost something."""
    assert len(template["Parameters"]) <= 12
    for name, parameter in template["Parameters"].items():
        assert "Default" in parameter, name
        assert parameter["Description"].endswith("."), name
    assert template["Parameters"]["MaxWorkers"]["Default"] == 2


@pytest.mark.parametrize(("kind", "service"), [("S3::BucketPolicy", "s3"), ("SQS::QueuePolicy", "sqs")])
def test_whoever_comes_without_tls_is_refused(resources, kind, service):
    """The bucket and every queue have a policy that denies whatever is not encrypted on its way."""
    guarded = set()
    for policy in resources[kind].values():
        (target,) = policy.get("Queues", [policy.get("Bucket")])
        (deny,) = [each for each in policy["PolicyDocument"]["Statement"] if each.get("Effect") == "Deny"]
        assert deny["Principal"] == "*"
        assert deny["Action"] == f"{service}:*"
        assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        guarded.add(target["Ref"])
    assert guarded == set(resources["S3::Bucket" if service == "s3" else "SQS::Queue"])


def test_only_s3_may_send_and_only_for_this_account(resources):
    """The bucket is named in the policy of the live queue, and the account too: a name can be taken by others."""
    policy = resources["SQS::QueuePolicy"]["QueuePolicy"]["PolicyDocument"]
    allowed = [each for each in statements(policy) if each["Effect"] == "Allow"]
    assert len(allowed) == 2
    for statement in allowed:
        assert statement["Principal"] == {"Service": "s3.amazonaws.com"}
        assert statement["Action"] == "sqs:SendMessage"
        assert statement["Condition"]["StringEquals"] == {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
        assert "aws:SourceArn" in statement["Condition"]["ArnEquals"]


def test_no_role_has_a_wildcard_on_s3_or_sqs(resources):
    """Every action is named, and so is each bucket and queue; * stands only where a service knows no resources."""
    (role,), (operator,) = resources["IAM::Role"].values(), resources["IAM::ManagedPolicy"].values()
    for document in (role["Policies"][0]["PolicyDocument"], operator["PolicyDocument"]):
        for statement in statements(document):
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert not [action for action in actions if "*" in action]
            if statement["Resource"] in ("*", ["*"]):
                assert not [action for action in actions if action.startswith(("s3:", "sqs:", "sns:", "kms:", "logs:"))]


def test_whoever_deploys_may_make_what_the_template_has(template):
    """CloudFormation makes resources in the deployer's name: every service of the template, and none beyond."""
    statements = json.loads((ROOT / "infra/deploy-policy.json").read_text())["Statement"]
    (through,) = [each for each in statements if "Condition" in each]
    assert through["Condition"] == {"ForAnyValue:StringEquals": {"aws:CalledVia": "cloudformation.amazonaws.com"}}
    granted = {action.split(":")[0] for action in through["Action"]}
    kinds = {resource["Type"].split("::")[1].lower() for resource in template["Resources"].values()}
    assert granted == kinds | {"ssm"}  # EC2 looks whether the image's parameter is there


@pytest.mark.parametrize("service", ["ec2", "ecs-tasks"])
def test_the_role_is_for_workers_of_this_account(resources, service):
    """Instances have it, and containers of this account; nobody else can take it."""
    (role,) = resources["IAM::Role"].values()
    trusts = role["AssumeRolePolicyDocument"]["Statement"]
    assert len(trusts) == 2
    (trust,) = [each for each in trusts if each["Principal"] == {"Service": f"{service}.amazonaws.com"}]
    own = {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}
    assert trust.get("Condition") == (own if service == "ecs-tasks" else None)


def test_what_batch_imports_is_exported(template):
    """The job definition needs no output of the stack to be typed."""
    batch, _ = decode(str(ROOT / "infra/batch.yaml"))
    exported = {each["Export"]["Name"]["Fn::Sub"] for each in template["Outputs"].values() if "Export" in each}
    imported = set(re.findall(r"Fn::ImportValue': {'Fn::Sub': '([^']+)'", str(batch)))
    assert {name.replace("${Stack}", "${AWS::StackName}") for name in imported} == exported
    (definition,) = [each for each in batch["Resources"].values() if each["Type"] == "AWS::Batch::JobDefinition"]
    container = definition["Properties"]["ContainerProperties"]
    assert {"TRANSCRIBE_QUEUE_URL", "TRANSCRIBE_OUTPUT_DIR"} <= {each["Name"] for each in container["Environment"]}
    log = container["LogConfiguration"]["Options"]["awslogs-group"]["Fn::Sub"].replace("${Stack}", "${AWS::StackName}")
    assert {"Fn::Sub": log} == template["Resources"]["LogGroup"]["Properties"]["LogGroupName"]


def test_the_bucket_is_private_versioned_and_encrypted(resources):
    """Nobody can make it public; what was overwritten is kept for a while."""
    (bucket,) = resources["S3::Bucket"].values()
    assert all(bucket["PublicAccessBlockConfiguration"].values())
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert "BucketEncryption" in bucket
    (rule,) = [rule for rule in bucket["LifecycleConfiguration"]["Rules"] if rule.get("Prefix")]
    assert rule["Prefix"] in names.OWN_PREFIXES
    events = bucket["NotificationConfiguration"]
    assert events["EventBridgeConfiguration"]["EventBridgeEnabled"] is True
    (queue,) = events["QueueConfigurations"]
    assert queue["Filter"]["S3Key"]["Rules"] == [{"Name": "prefix", "Value": names.UPLOADS}]


def test_nothing_comes_in(resources):
    """No security group lets anything in, no key opens a shell, and facts about the instance need a token."""
    assert "EC2::SecurityGroupIngress" not in resources
    for group in resources["EC2::SecurityGroup"].values():
        assert "SecurityGroupIngress" not in group
        assert [(rule["FromPort"], rule["ToPort"]) for rule in group["SecurityGroupEgress"]] == [(443, 443)]
    (data,) = [each["LaunchTemplateData"] for each in resources["EC2::LaunchTemplate"].values()]
    assert "KeyName" not in data
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["MetadataOptions"]["HttpPutResponseHopLimit"] == 1


def test_volumes_are_encrypted_and_filled_at_a_stated_rate(resources):
    """A volume that is made from a snapshot is slow until it is filled: how fast is asked for."""
    (data,) = [each["LaunchTemplateData"] for each in resources["EC2::LaunchTemplate"].values()]
    volumes = [each["Fn::If"][1] if "Fn::If" in each else each for each in data["BlockDeviceMappings"]]
    assert [each["DeviceName"] for each in volumes] == ["/dev/sda1", "/dev/sdf"]
    for volume in volumes:
        assert volume["Ebs"]["Encrypted"] is True
        assert volume["Ebs"]["Throughput"] >= 250
        assert volume["Ebs"]["VolumeInitializationRate"] >= 100


def test_instances_are_added_by_metrics_and_ended_by_their_workers(resources):
    """Whatever a metric says, no instance with a job is ended; the last one ends by itself."""
    (group,) = resources["AutoScaling::AutoScalingGroup"].values()
    assert group["NewInstancesProtectedFromScaleIn"] is True
    assert group["MinSize"] == "0"
    assert group["CapacityRebalance"] is True
    policies = resources["AutoScaling::ScalingPolicy"]
    assert policies["GrowPolicy"]["TargetTrackingConfiguration"]["DisableScaleIn"] is True
    assert policies["WakePolicy"]["ScalingAdjustment"] == 1
    (hook,) = group["LifecycleHookSpecificationList"]
    assert hook["LifecycleTransition"] == "autoscaling:EC2_INSTANCE_TERMINATING"
    assert hook["DefaultResult"] == "CONTINUE"


def test_a_broken_image_stops_the_fleet_and_the_next_try_waits(resources):
    """A step policy sets what is wanted to 0 at once; the cooldown of the waking policy outlasts the alarm."""
    policies, alarms = resources["AutoScaling::ScalingPolicy"], resources["CloudWatch::Alarm"]
    broken, wake, alarm = policies["BrokenPolicy"], policies["WakePolicy"], alarms["BrokenAlarm"]
    assert (broken["PolicyType"], broken["AdjustmentType"]) == ("StepScaling", "ExactCapacity")
    (step,) = broken["StepAdjustments"]
    assert (step["MetricIntervalLowerBound"], step["ScalingAdjustment"]) == (0, 0)  # at the threshold, and above
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    assert alarm["AlarmActions"][0] == {"Ref": "BrokenPolicy"}
    assert "self-test" in alarm["AlarmDescription"]
    assert "desired capacity is set to 0" in alarm["AlarmDescription"]
    assert wake["PolicyType"] == "SimpleScaling"  # no other kind has a cooldown
    (group,) = resources["AutoScaling::AutoScalingGroup"].values()
    boot = group["HealthCheckGracePeriod"]
    assert int(wake["Cooldown"]) > boot + alarm["Period"] * alarm["EvaluationPeriods"]
    grow = policies["GrowPolicy"]["TargetTrackingConfiguration"]
    assert grow["CustomizedMetricSpecification"]["Metrics"][0]["Expression"].startswith("IF(desired > 0, ")


def test_what_nobody_would_notice_has_an_alarm(resources):
    """Each says what to do, and tells the topic where there is one."""
    alarms = resources["CloudWatch::Alarm"]
    assert alarms.keys() >= {"OldestMessageAlarm", "DeadLetterAlarm", "IdleFleetAlarm", "BrokenAlarm"}
    for name in alarms.keys() - {"WakeAlarm"}:
        topic = alarms[name]["AlarmActions"][-1]
        assert topic == {"Fn::If": ["HasTopic", {"Ref": "NotificationTopic"}, {"Ref": "AWS::NoValue"}]}
        assert "run-transcription" in alarms[name]["AlarmDescription"]
    idle = alarms["IdleFleetAlarm"]
    assert idle["EvaluationPeriods"] * idle["Metrics"][1]["MetricStat"]["Period"] == 6 * 3600


def test_every_share_of_spot_has_its_rest(template):
    """What may be given is in the mapping, and both make a hundred."""
    allowed = template["Parameters"]["SpotPercentage"]["AllowedValues"]
    rest = {int(spot): row["Percentage"] for spot, row in template["Mappings"]["OnDemand"].items()}
    assert rest == {spot: 100 - spot for spot in allowed}


def test_every_expression_knows_its_metrics(resources):
    """A name that is no metric's would leave an alarm without data for ever."""
    metrics = [alarm["Metrics"] for alarm in resources["CloudWatch::Alarm"].values() if "Metrics" in alarm]
    tracking = resources["AutoScaling::ScalingPolicy"]["GrowPolicy"]["TargetTrackingConfiguration"]
    metrics.append(tracking["CustomizedMetricSpecification"]["Metrics"])
    assert len(metrics) == 3
    for group in metrics:
        expression, *stats = group
        used = set(re.findall(r"\b[a-z]\w*", expression["Expression"]))
        assert used == {each["Id"] for each in stats}
        assert all(each["ReturnData"] is False for each in stats)


def test_what_is_counted_is_what_workers_write(resources):
    """The names in the log's lines, in the metric filters and in `status` are the same."""
    transformations = [each["MetricTransformations"][0] for each in resources["Logs::MetricFilter"].values()]
    assert {each["MetricName"] for each in transformations} == set(fleet_report.COUNTED) <= set(UNITS)
    assert all(each["MetricValue"] == f"$.{each['MetricName']}" for each in transformations)


def test_the_kinds_of_instances_are_those_that_are_checked(resources):
    """What the preflight asks prices and offers for is what the group may start."""
    (group,) = resources["AutoScaling::AutoScalingGroup"].values()
    overrides = group["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]
    assert [each["InstanceType"] for each in overrides] == [kind.name for kind in fleet.KINDS]
    subnets = resources["EC2::Subnet"]
    assert len(subnets) == preflight.ZONES_OF_OURS


def test_the_dashboard_is_json(resources):
    """CloudFormation does not look into it: a comma too many would fail the deployment."""
    (dashboard,) = resources["CloudWatch::Dashboard"].values()
    assert len(json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]) >= 5


def test_whatever_costs_is_left_out_with_the_fleet(template):
    """MaxWorkers=0 makes bucket, queues, roles and log alone."""
    kinds = {resource["Type"] for resource in template["Resources"].values() if resource.get("Condition") is None}
    assert not [kind for kind in kinds if kind.startswith(("AWS::EC2", "AWS::AutoScaling"))]
