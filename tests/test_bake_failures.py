"""What can go wrong with a bake, from a packer that is too old to Ctrl-C in the middle; and the rights it needs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

import permissions
import pytest
from baking import PLANTED, REGION, TOKEN, Bakery, interrupt, leftovers
from isolated_machine import ROOT, free_port, machine

from run_transcription import bake_parts, images, recipe

LIKELY = list(recipe.BUILDERS["cpu"])


def test_a_failing_script_fails_the_bake(baker, fresh, ec2):
    """The step is named with what it said last; no image is made, and nothing is left in the account."""
    broken = baker.without("mount-state-volume")
    broken.spoil("prepare-builder", "echo the disk is on fire >&2; exit 7")
    images = len(ec2.describe_images(Owners=["self"])["Images"])
    done = broken.bake("--no-reuse", made_on=fresh)
    assert done.returncode == 1
    assert re.search(
        r"^Error: prepare-builder fails: the disk is on fire; the log is \S+\.log$", done.stderr, re.MULTILINE
    )
    assert len(ec2.describe_images(Owners=["self"])["Images"]) == images
    assert leftovers(ec2) == []


def test_without_capacity_the_next_type_is_tried(baker, ec2, ec2_account):
    """A type that is not to be had is passed over, and said so; another error is not tried again."""
    ec2_account.refuse(
        "ec2:RunInstances", "InsufficientInstanceCapacity", "We currently do not have sufficient capacity"
    )
    ec2_account.refuse("ec2:RunInstances", "UnauthorizedOperation", "You may not")
    subnet = next(each for each in ec2.describe_subnets()["Subnets"] if each["AvailabilityZone"] == f"{REGION}b")
    before = len(ec2_account.calls)
    done = baker.bake(
        "--no-reuse", "--instance-type", "m5.xlarge", "--instance-type", "m5a.xlarge", "--subnet", subnet["SubnetId"]
    )
    calls = [given for action, given in ec2_account.calls[before:] if action == "ec2:RunInstances"]
    assert [call["InstanceType"] for call in calls] == ["m5.xlarge", "m5a.xlarge"]
    assert {call["Placement.AvailabilityZone"] for call in calls} == {f"{REGION}b"}
    assert {call["SubnetId"] for call in calls} == {subnet["SubnetId"]}
    assert "there is no m5.xlarge in eu-west-1b to be had" in done.stderr
    assert done.returncode == 1
    assert "You may not" in done.stderr
    assert leftovers(ec2) == []


@pytest.fixture(scope="session")
def spot(tmp_path_factory, baker, ec2, ec2_account):
    """Bake on spot instances, as is usual, where the first zone has none; the first script ends the bake."""
    ec2_account.answers["ec2:CreateFleet"] = [(200, NO_SPOT)]
    before = len(ec2_account.calls)
    with machine(tmp_path_factory.mktemp("spot") / "machine") as made:
        hollow = baker.hollow(prepare_builder="echo it is as far as it should >&2; exit 7")
        done = hollow.bake("--spot", "--no-reuse", made_on=made)
    return done, ec2_account.calls[before:], leftovers(ec2)


# EC2's answer where a fleet finds nothing: no error, but errors in it
NO_SPOT = """<CreateFleetResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><fleetId>fleet-1</fleetId><errorSet><item>
<errorCode>InsufficientInstanceCapacity</errorCode>
<errorMessage>We currently do not have sufficient m7i.xlarge capacity in the zone you requested.</errorMessage>
</item></errorSet><fleetInstanceSet/></CreateFleetResponse>"""


def test_a_spot_builder_is_sought_in_every_zone(spot):
    """All types at once, one zone after the other; what was made to ask for it goes with it."""
    done, calls, left = spot
    templates = [given for action, given in calls if action == "ec2:CreateLaunchTemplate"]
    zones = [each["LaunchTemplateData.Placement.AvailabilityZone"] for each in templates]
    assert zones == [f"{REGION}a", f"{REGION}b"]
    fleets = [given for action, given in calls if action == "ec2:CreateFleet"]
    asked = [value for name, value in fleets[1].items() if name.endswith("InstanceType")]
    assert asked == LIKELY
    assert f"there is no {' or '.join(LIKELY)} in eu-west-1a to be had" in done.stderr
    assert "prepare-builder fails: it is as far as it should" in done.stderr
    assert left == []


@pytest.fixture(scope="session")
def unmarked(tmp_path_factory, baker, ec2, ec2_account):
    """Bake an image that packer may not put its tags on."""
    images = len(ec2.describe_images(Owners=["self"])["Images"])
    before = len(ec2_account.calls)
    with machine(tmp_path_factory.mktemp("unmarked") / "machine") as made:
        ec2_account.refuse("ec2:CreateTags", "UnauthorizedOperation", "You may not")
        done = baker.hollow().bake("--no-reuse", made_on=made)
    return done, ec2_account.calls[before:], len(ec2.describe_images(Owners=["self"])["Images"]) - images


def test_an_image_that_fails_at_the_very_end_is_removed(unmarked):
    """It was there already: it goes, with its snapshots."""
    done, calls, more = unmarked
    assert done.returncode == 1
    assert "You may not" in done.stderr
    assert {"ec2:CreateImage", "ec2:DeregisterImage", "ec2:DeleteSnapshot"} <= {action for action, _ in calls}
    assert more == 0


@pytest.fixture(scope="session")
def interrupted(baker, ec2):
    """Press Ctrl-C while packer waits for a builder's ssh; give what was there before, and after."""
    nobody = ("--var", "ssh_host=127.0.0.1", "--var", f"ssh_port={free_port()}")
    return interrupt(
        baker.command("--no-reuse", *nobody), baker, ec2, signal.SIGINT, lambda line: line.endswith("  connect\n")
    )


def test_an_interrupt_leaves_nothing_behind(interrupted):
    """Ctrl-C ends packer in order: instance, security group and key are gone."""
    status, stood, left = interrupted
    assert (status, len(stood), left) == (130, 3, [])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_a_script_that_runs(baker, fresh, ec2, number, status):
    """Ctrl-C, and a stop from outside, don't wait for a script of minutes: instance and group are gone at once."""
    slow = baker.hollow(install_python="touch /srv/slow; sleep 300")

    def runs(line: str) -> bool:
        """Wait until the script runs, once packer says so."""
        until = time.monotonic() + 30
        while line.endswith("  install-python\n") and time.monotonic() < until:
            if (fresh.upper / "srv/slow").exists():
                return True
            time.sleep(0.05)
        return False

    found, stood, left = interrupt(slow.command("--no-reuse", made_on=fresh), baker, ec2, number, runs)
    assert (found, len(stood), left) == (status, 2, [])


def test_a_bake_that_takes_too_long_is_interrupted(baker, ec2):
    """After its minutes the bake ends with an error that names the step, and cleans up."""
    nobody = ("--var", "ssh_host=127.0.0.1", "--var", f"ssh_port={free_port()}")
    done = baker.bake("--no-reuse", "--minutes", "0.05", *nobody)
    assert done.returncode == 1
    assert "was interrupted in" in done.stderr
    assert leftovers(ec2) == []


def test_a_name_that_is_taken_is_said_in_one_line(baker, baked, ec2):
    """Packer looks before it starts anything, and the driver says what it found."""
    name = baked[0]["name"]
    done = baker.bake("--no-reuse", "--name", name)
    assert done.returncode == 1
    assert f"AMI Name: '{name}' is used by an existing AMI" in done.stderr.splitlines()[-1]
    assert leftovers(ec2) == []


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (None, "is not here: install it"),
        ("Packer v1.6.5", "is packer 1.6.5, and the oldest that works is 1.6.6"),
        ("cracklib", "is not HashiCorp's packer"),
    ],
)
def test_a_packer_that_does_not_serve_is_named(baker, tmp_path, said, problem):
    """No packer, one that is too old, or another program of that name."""
    path = tmp_path / "packer"
    if said is not None:
        path.write_text(f"#!/bin/sh\necho {said}\n")
        path.chmod(0o755)
    done = baker.bake(PACKER=str(path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert problem in done.stderr


@pytest.mark.parametrize(
    ("options", "removed", "problem"),
    [
        ((), "AWS_ACCESS_KEY_ID", "there are no AWS credentials"),
        (
            ("--model", "openai/whisper-tiny", "--revision", "main"),
            "",
            "wants a commit of 40 hex digits, which main is not",
        ),
        (("--var", f"hf_token={TOKEN}"), "", "--var hf_token: use HF_TOKEN instead"),
    ],
)
def test_what_can_not_be_baked_is_said_at_once(baker, ec2_account, options, removed, problem):
    """Before an instance is started, in one line."""
    before = len(ec2_account.calls)
    baker = Bakery(baker.account, baker.templates, {k: v for k, v in baker.environment.items() if k != removed})
    done = baker.bake(*options)
    assert done.returncode == 1
    assert problem in done.stderr
    assert TOKEN not in done.stderr
    assert "ec2:RunInstances" not in {action for action, _ in ec2_account.calls[before:]}


def test_only_the_script_that_fetches_the_model_gets_the_token(baker, fresh):
    """It is in that one's environment, on no command line, and in no file when the next script begins."""
    seeing = baker.hollow(
        cache_model='printf %s "$HF_TOKEN" >/srv/seen; cat /proc/[0-9]*/cmdline >/srv/commands',
        persist_gpu_state='echo "after it ${HF_TOKEN:-nothing}: $(grep -rlF hf_""Planted /tmp /run)" >&2; exit 7',
    )
    done = seeing.bake("--no-reuse", made_on=fresh, **PLANTED)
    assert (fresh.upper / "srv/seen").read_text() == TOKEN
    assert b"script_" in (fresh.upper / "srv/commands").read_bytes()
    assert TOKEN.encode() not in (fresh.upper / "srv/commands").read_bytes()
    assert "persist-gpu-state fails: after it nothing:; the log is" in done.stderr


def test_a_modern_packer_gets_its_plugins_before_it_builds(baker, tmp_path):
    """It is given the modern source with its plugins, and told to fetch them; what it refuses is said, but no token."""
    said = tmp_path / "said"
    packer = tmp_path / "packer"
    packer.write_text(
        f'#!/bin/sh\necho "$1 $(ls "$2" "$3" 2>/dev/null | tr "\\n" " ")" >>{said}\n'
        'case $1 in version) echo "Packer v1.11.2";; build) echo "1,,ui,error,for $PKR_VAR_hf_token"; exit 3;; esac\n'
    )
    packer.chmod(0o755)
    done = baker.bake("--no-reuse", "--zone", f"{REGION}a", PACKER=str(packer), HF_TOKEN=TOKEN)
    _, init, validate, build = said.read_text().splitlines()
    assert [line.split()[0] for line in (init, validate, build)] == ["init", "validate", "build"]
    assert "plugins.pkr.hcl" in init
    assert done.returncode == 1
    assert "start fails: for <HF_TOKEN>; the log is" in done.stderr
    assert "IMDSv2" not in done.stderr
    assert TOKEN not in Path(re.search(r"the log is (\S+)\n", done.stderr)[1]).read_text()


@pytest.fixture(scope="session")
def pinned(tmp_path_factory, baker, ec2_account):
    """Let `bake` write the newest base image down."""
    folder = tmp_path_factory.mktemp("pinned") / "packer"
    shutil.copytree(ROOT / "packer", folder)
    answer = {"Parameter": {"Name": images.BASE_PARAMETER, "Value": bake_parts.pins(baker.templates)["base_image_id"]}}
    ec2_account.answers["ssm:GetParameter"] = [(200, json.dumps(answer))]
    return Bakery(baker.account, folder, baker.environment).bake("--pin-base"), folder


def test_the_newest_base_image_is_written_down(baker, pinned):
    """AWS's public parameter names it; its id and name are the release's from then on."""
    done, folder = pinned
    assert bake_parts.pins(folder) == bake_parts.pins(baker.templates)
    wanted = bake_parts.pins(baker.templates)
    assert (done.returncode, done.stdout) == (0, f"{wanted['base_image_id']}  {wanted['base_image_name']}\n")


@pytest.fixture(scope="session")
def calls(baked, pinned, spot, unmarked, interrupted, ec2, ec2_account):
    """Return what packer and driver have called, with the tags of what they named."""
    groups = [each for found in ec2.describe_instances()["Reservations"] for each in found["Instances"]]
    tags = {each["InstanceId"]: {tag["Key"]: tag["Value"] for tag in each.get("Tags", ())} for each in groups}
    return {permissions.requested(action, given, tags) for action, given in ec2_account.calls}


# what no call of these tests needs, each with who does
OTHERS = {
    **dict.fromkeys(
        (
            ("Look", "ec2:DescribeLaunchTemplates"),
            ("Look", "ec2:DescribeLaunchTemplateVersions"),
            ("Look", "ec2:GetConsoleOutput"),
            ("Look", "ssm:DescribeParameters"),
            ("ReadWhatNamesImages", "ssm:GetParameterHistory"),
            ("ReadWhatNamesImages", "ssm:GetParameters"),
            ("Publish", "ssm:PutParameter"),
        ),
        "ami, and test_ami.py",
    ),
}


def test_the_policy_allows_what_a_bake_calls_and_no_more(calls):
    """Each call that reaches EC2 is compared with the builder's policy: none is missing, and what is idle is named."""
    allowed = permissions.grants(json.loads((ROOT / "docs/builder-policy.json").read_text()))
    assert permissions.missing(calls, allowed) == set()
    assert permissions.idle(calls, allowed) == OTHERS.keys()
