"""What becomes of images: published, rolled back, listed and removed, on an emulated EC2."""

from __future__ import annotations

import base64
import itertools
import json
import os

import boto3
import permissions
import pytest
from click.testing import CliRunner
from emulated_ec2 import account
from isolated_machine import ROOT

from run_transcription import fleet_images, images, smoke
from run_transcription.ami import ami
from run_transcription.demo.emulator import environment
from run_transcription.errors import TranscriptionError

REGION = "eu-west-3"
numbers = itertools.count()


@pytest.fixture(scope="module")
def aws_account(tmp_path_factory):
    """Run EC2 and parameters for this file."""
    with account(tmp_path_factory.mktemp("account")) as found:
        yield found


@pytest.fixture
def region(aws_account, monkeypatch):
    """Let this process use the account, in a region that no other test uses."""
    regions = (
        "eu-west-1",
        "eu-west-2",
        "eu-west-3",
        "us-east-1",
        "us-east-2",
        "us-west-1",
        "us-west-2",
        "eu-central-1",
        "eu-north-1",
        "ap-northeast-1",
        "ap-southeast-1",
        "ap-southeast-2",
        "ca-central-1",
        "sa-east-1",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_CONFIG_FILE": os.devnull}
    with environment(kept | keys | {"AWS_ENDPOINT_URL": aws_account.endpoint, "NO_PROXY": "127.0.0.1"}):
        yield regions[next(numbers)]


@pytest.fixture
def ec2(region):
    """Call EC2 in the test's region."""
    return boto3.client("ec2", region_name=region)


def make_images(ec2, count: int) -> list[str]:
    """Make images as a bake leaves them, the oldest first."""
    base = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    instance = ec2.run_instances(ImageId=base, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    made = [ec2.create_image(InstanceId=instance, Name=f"transcribe-{number}")["ImageId"] for number in range(count)]
    marks = {images.ROLE: "image", images.STATE: "0" * 64}
    ec2.create_tags(Resources=made, Tags=[{"Key": key, "Value": value} for key, value in marks.items()])
    ec2.terminate_instances(InstanceIds=[instance])
    return made


def images_of(ec2) -> set[str]:
    """Return the ids of all images of the account."""
    return {image["ImageId"] for image in ec2.describe_images(Owners=["self"])["Images"]}


def run(region: str, *words: str):
    """Run a command of the group."""
    return CliRunner().invoke(ami, [*words, "--region", region])


def console(aws_account, text: str) -> None:
    """Let the next instance that is asked say a line on its console."""
    output = base64.b64encode(text.encode()).decode()
    answer = (
        f"<GetConsoleOutputResponse><instanceId>i-1</instanceId><output>{output}</output></GetConsoleOutputResponse>"
    )
    aws_account.answers.setdefault("ec2:GetConsoleOutput", []).append((200, answer))


def parameter(region: str, name: str) -> str:
    """Return what a parameter names."""
    return boto3.client("ssm", region_name=region).get_parameter(Name=name)["Parameter"]["Value"]


def running(ec2) -> list[str]:
    """Return the instances that were not ended."""
    groups = [each for found in ec2.describe_instances()["Reservations"] for each in found["Instances"]]
    return [each["InstanceId"] for each in groups if each["State"]["Name"] not in ("terminated", "shutting-down")]


def test_an_image_is_published_after_its_smoke_test(region, ec2, aws_account):
    """An instance of it says that all is well, and only then new instances start from it; the instance is ended."""
    first, second = make_images(ec2, 2)
    for image in (first, second):
        console(aws_account, f"cloud-init done\n{smoke.PASSED}\n")
        done = run(region, "publish", image)
        assert done.exit_code == 0, done.output
        assert parameter(region, "/transcribe/ami/latest") == image
    assert running(ec2) == []
    assert run(region, "publish", "--rollback").output == f"/transcribe/ami/latest is {first} again\n"
    assert parameter(region, "/transcribe/ami/latest") == first
    again = run(region, "publish", "--rollback")
    assert (again.exit_code, "/transcribe/ami/latest has named no image before" in again.output) == (1, True)
    assert parameter(region, "/transcribe/ami/latest") == first


@pytest.mark.parametrize(
    ("past", "way"),
    [
        ("a", "a"),
        ("abc", "abc"),
        ("abcb", "ab"),
        ("abcba", "a"),
        ("abcbd", "abd"),
        ("abab", "ab"),
        ("aab", "ab"),
    ],
)
def test_each_roll_back_goes_one_image_further(past, way):
    """What was rolled back is no way back any more, until it is published anew."""
    assert "".join(fleet_images._way(list(past))) == way


def test_a_smoke_test_takes_the_next_place_and_type(region, ec2, aws_account):
    """Where EC2 has no instance left, another zone and then another type is tried; after another error none is."""
    (image,) = make_images(ec2, 1)
    subnets = {each["AvailabilityZone"]: each["SubnetId"] for each in ec2.describe_subnets()["Subnets"]}
    first, second, *_ = sorted(subnets)
    for _ in range(2):
        aws_account.refuse("ec2:RunInstances", "InsufficientInstanceCapacity", "There is none left")
    console(aws_account, smoke.PASSED)
    before = len(aws_account.calls)
    done = run(region, "publish", image, "--zone", first, "--zone", second)
    assert done.exit_code == 0, done.output
    calls = [given for action, given in aws_account.calls[before:] if action == "ec2:RunInstances"]
    tried = [(call["InstanceType"], call["Placement.AvailabilityZone"]) for call in calls]
    assert tried == [("g5.xlarge", first), ("g5.xlarge", second), ("g6.xlarge", first)]
    aws_account.refuse("ec2:RunInstances", "VcpuLimitExceeded", "You have requested more than your limit")
    done = run(region, "publish", image, "--instance-type", "g4dn.xlarge", "--subnet", subnets[second])
    assert (done.exit_code, "You have requested more than your limit" in done.output) == (1, True)
    (_, given) = next(call for call in reversed(aws_account.calls) if call[0] == "ec2:RunInstances")
    assert (given["SubnetId"], "Placement.AvailabilityZone" in given) == (subnets[second], False)


NO_SUBNETS = "<DescribeSubnetsResponse><subnetSet/></DescribeSubnetsResponse>"


def test_a_place_that_is_none_is_said(region, ec2, aws_account):
    """A zone without a default subnet, an account without a default network, a subnet that is not there."""
    subnet = ec2.describe_subnets()["Subnets"][0]
    assert images.places(region, (), (subnet["SubnetId"],)) == [
        images.Place(subnet["AvailabilityZone"], subnet["SubnetId"])
    ]
    with pytest.raises(TranscriptionError, match=f"--zone {region}y: only {region}a, .* have a default subnet"):
        images.places(region, (f"{region}y",), ())
    with pytest.raises(TranscriptionError, match="subnet-00000000"):
        images.places(region, (), ("subnet-00000000",))
    aws_account.answers["ec2:DescribeSubnets"] = [(200, NO_SUBNETS)]
    with pytest.raises(TranscriptionError, match=f"no default network in {region}: name a subnet with --subnet"):
        images.places(region, (), ())


def test_latest_is_said_only_when_it_is(region, ec2, aws_account, monkeypatch):
    """Parameter Store answers first and looks at the image then: what it dropped is an error."""
    first, second = make_images(ec2, 2)
    fleet_images.name(region, "/transcribe/ami/latest", first)
    monkeypatch.setattr(images, "SETTLE_SECONDS", 0)
    aws_account.answers["ssm:PutParameter"] = [(200, json.dumps({"Version": 2, "Tier": "Standard"}))]
    with pytest.raises(TranscriptionError, match=f"latest does not take {second} and names {first}"):
        fleet_images.name(region, "/transcribe/ami/latest", second)


def test_an_image_that_fails_its_smoke_test_is_no_more_than_a_candidate(region, ec2, aws_account):
    """`latest` stays what it was, and the instance is ended."""
    good, bad = make_images(ec2, 2)
    console(aws_account, smoke.PASSED)
    run(region, "publish", good)
    console(aws_account, smoke.FAILED)
    done = run(region, "publish", bad)
    assert done.exit_code == 1
    assert f"{bad} fails its smoke test" in done.output
    assert parameter(region, "/transcribe/ami/candidate") == bad
    assert parameter(region, "/transcribe/ami/latest") == good
    assert running(ec2) == []


def test_an_image_that_no_bake_has_finished_is_not_published(region, ec2):
    """What packer made but the driver did not mark is no candidate."""
    (made,) = make_images(ec2, 1)
    ec2.delete_tags(Resources=[made], Tags=[{"Key": images.STATE}])
    done = run(region, "publish", made, "--minutes", "0.01")
    assert (done.exit_code, "not an image that `bake` has finished" in done.output) == (1, True)


def test_an_image_is_finished_only_when_ec2_shows_that_it_wants_tokens(region, ec2, aws_account, monkeypatch):
    """EC2 may have lost what it was told: then the image gets no mark."""
    lost, kept = make_images(ec2, 2)
    monkeypatch.setattr(images, "SETTLE_SECONDS", 0)
    aws_account.answers["ec2:ModifyImageAttribute"] = [
        (200, "<ModifyImageAttributeResponse><return>true</return></ModifyImageAttributeResponse>")
    ]
    with pytest.raises(TranscriptionError, match=f"{lost} is made, but EC2 does not show IMDSv2 on it"):
        images.complete(region, lost, {"by": "test"}, imds=True)
    images.complete(region, kept, {"by": "test"}, imds=True)
    assert "by" not in images.one(region, lost).tags
    assert images.one(region, kept).tags["by"] == "test"


def test_there_is_no_way_back_from_the_first(region, ec2, aws_account):
    """What never named another image can't be rolled back, and that is said."""
    (only,) = make_images(ec2, 1)
    console(aws_account, smoke.PASSED)
    run(region, "publish", only)
    done = run(region, "publish", "--rollback")
    assert (done.exit_code, "has named no image before: publish one by its id" in done.output) == (1, True)


def test_what_is_used_is_never_removed(region, ec2, aws_account):
    """An image of a launch template, of a parameter or its last value, or of an instance stays; others go."""
    template, resolved, labelled, typed, mentioned, before, latest, instance, old, newest = make_images(ec2, 10)
    for image in (before, latest):
        console(aws_account, smoke.PASSED)
        run(region, "publish", image)
    ssm = boto3.client("ssm", region_name=region)
    for name, value in (("/other/ami", resolved), ("/mentions/one", json.dumps({"image": mentioned}))):
        ssm.put_parameter(Name=name, Value=value, Type="String")
    ssm.put_parameter(Name="/their/ami", Value=typed, Type="String", DataType="aws:ec2:image")
    for value in (labelled, "nothing", "nothing at all"):
        ssm.put_parameter(Name="/labelled", Value=value, Type="String", Overwrite=True)
    ssm.label_parameter_version(Name="/labelled", ParameterVersion=1, Labels=["good"])
    ec2.create_launch_template(LaunchTemplateName="three", LaunchTemplateData={"ImageId": "resolve:ssm:/labelled:good"})
    ec2.create_launch_template(LaunchTemplateName="one", LaunchTemplateData={"ImageId": template})
    ec2.create_launch_template(LaunchTemplateName="two", LaunchTemplateData={"ImageId": "resolve:ssm:/other/ami"})
    ec2.run_instances(ImageId=instance, MinCount=1, MaxCount=1)
    listed = run(region, "list").output
    assert "launch template one 1" in next(line for line in listed.splitlines() if template in line)
    snapshots = snapshots_of(ec2, old)
    planned = run(region, "gc", "--keep", "0", "--dry-run")
    assert planned.exit_code == 0, planned.output
    used = {template, resolved, labelled, typed, mentioned, before, latest, instance}
    assert images_of(ec2) == used | {old, newest}
    done = run(region, "gc", "--keep", "0")
    assert done.output == planned.output.replace("would remove", "removes")
    assert images_of(ec2) == used
    left = {each["SnapshotId"] for each in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    assert snapshots
    assert not snapshots & left


def snapshots_of(ec2, image: str) -> set[str]:
    """Return the snapshots that an image is made of."""
    (found,) = ec2.describe_images(ImageIds=[image])["Images"]
    return {mapping["Ebs"]["SnapshotId"] for mapping in found["BlockDeviceMappings"] if "Ebs" in mapping}


def test_the_newest_images_stay(region, ec2):
    """So many as --keep says are left alone, whether anybody uses them or not."""
    made = make_images(ec2, 4)
    assert run(region, "gc", "--keep", "4").output == "nothing to remove\n"
    assert images_of(ec2) == set(made)


def test_what_no_bake_has_finished_is_shown_and_goes(region, ec2):
    """It is none of those that are kept, no bake starts from it, and it goes once no bake can still be at it."""
    assert run(region, "list").output == f"there is no image of a bake in {region}\n"
    good, unfinished = make_images(ec2, 2)
    ec2.delete_tags(Resources=[unfinished], Tags=[{"Key": images.STATE}])
    lines = {line.split()[0]: line for line in run(region, "list").output.splitlines()}
    assert {image: "  not finished  " in line for image, line in lines.items()} == {good: False, unfinished: True}
    ec2.create_tags(Resources=[unfinished], Tags=[{"Key": images.LAYER, "Value": "layer"}])
    assert images.reusable(region, "layer") is None
    found = {each["id"]: each["finished"] for each in json.loads(run(region, "list", "--json").output)}
    assert found == {good: True, unfinished: False}
    assert run(region, "gc", "--keep", "1").output == "nothing to remove\n"
    run(region, "gc", "--keep", "1", "--hours", "0")
    assert images_of(ec2) == {good}


def test_a_builder_that_was_left_behind_is_ended(region, ec2):
    """An instance with a builder's tag that is too old for a bake is ended, another one is not."""
    base = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "transcribe:role", "Value": "builder"}]}]
    builder = ec2.run_instances(ImageId=base, MinCount=1, MaxCount=1, TagSpecifications=tags)["Instances"][0][
        "InstanceId"
    ]
    other = ec2.run_instances(ImageId=base, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    assert run(region, "gc").output == "nothing to remove\n"
    assert run(region, "gc", "--hours", "0", "--dry-run").output == f"would end the builder {builder}, left behind\n"
    assert set(running(ec2)) == {builder, other}
    run(region, "gc", "--hours", "0")
    assert running(ec2) == [other]


def test_the_builders_policy_allows_what_these_commands_call(region, ec2, aws_account):
    """Every call of publish, rollback, list and gc is in it; and what it has for them alone, they call."""
    first, second = make_images(ec2, 2)
    ec2.create_launch_template(LaunchTemplateName="one", LaunchTemplateData={"ImageId": first})
    boto3.client("ssm", region_name=region).put_parameter(Name="/other", Value="anything", Type="String")
    before = len(aws_account.calls)
    for image in (first, second):
        console(aws_account, smoke.PASSED)
        assert run(region, "publish", image).exit_code == 0
    for words in (["publish", "--rollback"], ["list"]):
        assert run(region, *words).exit_code == 0
    made = len(aws_account.calls)
    make_images(ec2, 1)
    removed = len(aws_account.calls)
    assert "removes" in run(region, "gc", "--keep", "0").output
    theirs = [*aws_account.calls[before:made], *aws_account.calls[removed:]]
    groups = [each for found in ec2.describe_instances()["Reservations"] for each in found["Instances"]]
    tags = {each["InstanceId"]: {tag["Key"]: tag["Value"] for tag in each.get("Tags", ())} for each in groups}
    calls = {permissions.requested(action, given, tags) for action, given in theirs}
    allowed = permissions.grants(json.loads((ROOT / "docs/builder-policy.json").read_text()))
    assert permissions.missing(calls, allowed) == set()
    assert not {action for _, action in permissions.idle(calls, allowed)} & OURS


# what no bake calls
OURS = {
    *("ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions", "ec2:GetConsoleOutput"),
    *("ssm:DescribeParameters", "ssm:GetParameters", "ssm:GetParameterHistory", "ssm:PutParameter"),
}
