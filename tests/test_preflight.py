from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.stub import Stubber
from click.testing import CliRunner
from emulated_group import ANSWERS, IMAGE, WANTED, a_group, answering
from permissions import GROUP, REGION

from run_transcription import __main__ as program
from run_transcription import aws, fleet, fleet_report, preflight, status
from run_transcription.demo.emulator import clean_environment, environment
from run_transcription.errors import TranscriptionError

FILES = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")


@pytest.fixture(scope="module")
def account():
    """Be in an account of moto's with a published image, prices and a quota of 64 vCPUs."""
    with pytest.MonkeyPatch.context() as patch, a_group() as (_, stack), answering(patch):
        patch.setattr(
            fleet, "_spot_prices", lambda *_: {kind.name: 0.4 for kind in fleet.KINDS}
        )  # moto's are by chance
        yield stack


def table(**changed):
    """Return the checks by name."""
    return {check.name: check for check in preflight.run(replace(WANTED, **changed))}


def test_a_ready_account_passes_every_check(account):
    """All lines are ok, and the last one says what an hour costs at full size."""
    checks = table()
    assert [check.text for check in checks.values() if not check.ok] == []
    assert checks["price"].text == "10 instances cost $5.20 to $5.20 an hour, by their types"  # 2 at $1, 8 at $0.40
    assert checks["quota on demand"].text == "64 vCPUs of G and VT instances on demand, 2 instances need 8 at least"
    assert " of 8 in us-east-1a" in checks["instance types"].text


def test_a_small_quota_says_what_to_ask_for(account, monkeypatch):
    """New accounts have none: the quota's code and the size that would fit are named."""
    monkeypatch.setitem(ANSWERS[("service-quotas", "GetServiceQuota")], "Quota", {"Value": 16.0})
    check = table()["quota of spot"]
    assert not check.ok
    assert "lower MaxWorkers to 5" in check.text
    assert preflight.SPOT_QUOTA in check.text


def test_an_absent_image_says_how_to_make_one(account):
    """Nothing can start without it."""
    check = table(image_parameter="/no/such")["image"]
    assert not check.ok
    assert check.text.endswith("run-transcription bake, then ami publish")


def test_a_network_without_a_way_out_is_found(account):
    """Subnets of one's own need endpoints, or the internet: through its gateway only what has a public address gets."""
    client = boto3.client("ec2")
    network = client.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = client.create_subnet(VpcId=network, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    shut = table(vpc_id=network, subnet_ids=(subnet,))["route to S3, SQS"]
    assert not shut.ok
    assert "no endpoint for autoscaling, s3, sqs" in shut.text
    assert not table(vpc_id=network)["route to S3, SQS"].ok
    gateway = client.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    client.attach_internet_gateway(InternetGatewayId=gateway, VpcId=network)
    main = client.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [network]}])["RouteTables"][0]
    client.create_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    assert not table(vpc_id=network, subnet_ids=(subnet,))["route to S3, SQS"].ok
    client.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
    assert table(vpc_id=network, subnet_ids=(subnet,))["route to S3, SQS"].ok


@pytest.mark.parametrize("name", ["Upper", "a" * 35, "1st", "under_score"])
def test_a_name_that_no_bucket_can_have_is_refused(account, name):
    """The bucket's name begins with the stack's."""
    assert not table(stack=name)["name"].ok


def test_without_a_fleet_only_what_it_needs_is_checked(account):
    """No quota and no image matter to bucket and queues."""
    assert list(table(max_workers=0)) == ["name"]


@pytest.mark.parametrize("command", [["deploy", "--dry-run"], ["deploy", "--yes"]])
def test_without_credentials_that_is_the_first_line(command):
    """Nothing else can be checked, so nothing else is said, and what to do is not a traceback."""
    nobody = {"AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}
    with environment(clean_environment() | dict.fromkeys(FILES, os.devnull) | nobody):
        done = CliRunner().invoke(program.main, command)
    assert done.exit_code == 1
    assert re.fullmatch(
        r"TO DO credentials +cannot use these AWS credentials: there are no credentials: run .*\n", done.stdout
    )
    assert done.stderr == "Error: nothing was done: see credentials above\n"


@pytest.mark.parametrize("region", ["eu-wset-1", "eu-west-1a"])
def test_a_region_that_is_nowhere_is_said_before_anything_is_asked(account, region):
    """A slip of the pen, or a zone: calls to it would be tried for many seconds."""
    for command in ("status", "deploy"):
        done = CliRunner().invoke(program.main, [command, "--region", region])
        assert done.exit_code == 1
        assert done.output == f"Error: --region {region}: AWS has no region of that name: did you mean eu-west-1?\n"


def test_an_unknown_profile_is_one_line():
    """It is found out before there is a client that could say so."""
    with environment(clean_environment() | dict.fromkeys(FILES, os.devnull) | {"AWS_PROFILE": "nobodys"}):
        done = CliRunner().invoke(program.main, ["status"])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "there is no such profile: see AWS_PROFILE" in done.output


def test_credentials_are_told_with_their_account(account):
    """Whose account it is stands in the first line."""
    check = preflight.credentials(REGION)
    assert check.ok
    assert check.text.startswith("account 123456789012 as arn:aws:")


def test_status_tells_instances_hours_and_cost(account, monkeypatch):
    """The price is that of the list or of spot; without one the cost is unknown, never nothing."""
    report = fleet_report.make(account, datetime(2100, 1, 1, tzinfo=UTC))
    assert [each.type for each in report.instances] == ["g5.xlarge", "g5.xlarge"]
    assert report.cost == pytest.approx(report.hours)
    assert report.wanted == 2
    text = "\n".join(status.lines(report))
    assert "instances  2 of 2 wanted" in text
    assert f"so far     {report.hours:.1f} hours of these instances, ${report.cost:.2f}\n" in text
    monkeypatch.setattr(fleet, "prices", _refuse)
    unknown = fleet_report.make(account, datetime(2100, 1, 1, tzinfo=UTC))
    assert unknown.cost is None
    assert "the cost is unknown: not allowed" in "\n".join(status.lines(unknown))


def test_status_has_the_hours_of_instances_that_have_ended(account):
    """The group counts its instances each minute: two for an hour and a half are three hours, long after they ended."""
    metric = {
        "MetricName": "GroupInServiceInstances",
        "Dimensions": [{"Name": "AutoScalingGroupName", "Value": GROUP}],
        "Value": 2.0,
    }
    began = datetime(2099, 12, 10, tzinfo=UTC)
    counts = [metric | {"Timestamp": began + timedelta(minutes=minute)} for minute in range(90)]
    boto3.client("cloudwatch").put_metric_data(Namespace="AWS/AutoScaling", MetricData=counts)
    report = fleet_report.make(account, datetime(2100, 1, 1, tzinfo=UTC))
    assert report.month_hours == pytest.approx(3.0)
    assert "30 days    3.0 instance hours in service" in "\n".join(status.lines(report))


def test_status_says_which_alarms_stand_and_why(account):
    """Those of another stack whose name begins alike are not ours, and what is well is not told."""
    client = boto3.client("cloudwatch")
    for name in (f"{GROUP}-BrokenAlarm-1A2B", f"{GROUP}-DeadLetterAlarm-3C", f"{GROUP}-more-BrokenAlarm-4D"):
        client.put_metric_alarm(
            AlarmName=name,
            AlarmDescription="Mend it.",
            MetricName="m",
            Namespace="n",
            Statistic="Sum",
            Period=60,
            EvaluationPeriods=1,
            Threshold=1,
            ComparisonOperator="GreaterThanThreshold",
        )
        state = "OK" if "Dead" in name else "ALARM"
        client.set_alarm_state(AlarmName=name, StateValue=state, StateReason="so")
    report = fleet_report.make(account, datetime(2100, 1, 1, tzinfo=UTC))
    assert [(alarm.name, alarm.text) for alarm in report.alarms] == [("BrokenAlarm", "Mend it.")]
    assert re.search(r"^alarm +BrokenAlarm since 20\d\d-.+: Mend it\.$", "\n".join(status.lines(report)), re.MULTILINE)


def test_status_without_an_image_says_that_nothing_can_start(account):
    """All else is told nevertheless."""
    parameters = boto3.client("ssm")
    value = parameters.get_parameter(Name=IMAGE)["Parameter"]["Value"]
    parameters.delete_parameter(Name=IMAGE)
    text = "\n".join(status.lines(fleet_report.make(account, datetime(2100, 1, 1, tzinfo=UTC))))
    parameters.put_parameter(Name=IMAGE, Value=value, Type="String")
    assert "instances  2 of 2 wanted; new ones start from no image" in text
    assert f"no instance can start: cannot read {IMAGE}" in text


def _refuse(*_):
    raise TranscriptionError("not allowed")


def test_a_launch_that_failed_is_told_in_ec2s_own_words(account, monkeypatch):
    """The reason why no instance comes is what a person needs first."""
    words = "We currently do not have sufficient g5.xlarge capacity in the zone you requested"
    activity = {"StartTime": datetime(2026, 1, 1, tzinfo=UTC), "StatusCode": "Failed", "StatusMessage": words}
    client = boto3.client("autoscaling")
    with Stubber(client) as stub:
        stub.add_response(
            "describe_scaling_activities",
            {"Activities": [activity | {"ActivityId": "1", "AutoScalingGroupName": GROUP, "Cause": "c"}]},
        )
        monkeypatch.setattr(aws, "client", lambda *_: client)
        (failed,) = fleet_report._failed_launches(account)
    assert failed.reason == words
