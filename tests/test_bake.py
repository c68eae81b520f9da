"""The bake for real: packer, an emulated EC2, and an sshd in an isolated root as the instance."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import pytest
import tiny_whisper
from baking import REGION, Bakery, bakery, pin, report
from emulated_ec2 import account
from fake_hub import COMMIT, served
from isolated_machine import ROOT, free_port, machine, require_machine

from run_transcription import demo, storage
from run_transcription.results import documents
from tools import require_tool

TOKEN = "hf_" + "PlantedTokenThatMustNotStay0123456"
PLANTED = {
    "HF_TOKEN": TOKEN,
    "GITHUB_TOKEN": "ghp_" + "p1AnTeD" * 5 + "x",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-of-aws",
}
RECORDINGS = Path(demo.__file__).parent / "recordings"
WORKER = "/opt/transcribe/venv/bin/run-transcription"
OUTSIDE = [
    Path(name) for name in ("/opt/transcribe", "/etc/transcribe.env", "/etc/systemd/system/transcribe-worker.service")
]


@pytest.fixture(scope="session")
def ec2_account(tmp_path_factory):
    """Run an EC2 whose calls are watched, for the whole session."""
    require_machine()
    with account(tmp_path_factory.mktemp("account")) as found:
        yield found


@pytest.fixture(scope="session")
def ec2(ec2_account):
    """Call the emulated EC2 past the watch."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.client("ec2", region_name=REGION, endpoint_url=f"http://{ec2_account.moto}", **keys)


@pytest.fixture(scope="session")
def baker(tmp_path_factory, ec2_account, ec2) -> Bakery:
    """Copy the templates, with a base image of the account pinned."""
    made = bakery(tmp_path_factory.mktemp("baker"), ec2_account)
    base = next(
        image for image in ec2.describe_images(Owners=["amazon"])["Images"] if image["RootDeviceName"] == "/dev/sda1"
    )
    pin(made.templates, base["ImageId"], base["Name"])
    return made


@pytest.fixture(scope="session")
def baked(tmp_path_factory, baker):
    """Bake once for all tests; give the report, the folder of the machine, and what was said on the way."""
    before = [path.exists() for path in OUTSIDE]
    base = tmp_path_factory.mktemp("baked") / "machine"
    with machine(base) as built:
        done = baker.bake("--instance-type", "m5.large", made_on=built, **PLANTED)
    assert [path.exists() for path in OUTSIDE] == before
    return report(done), base, done.stderr


@pytest.fixture
def fresh(tmp_path):
    """Run a machine on which nothing was done yet."""
    with machine(tmp_path / "fresh") as made:
        yield made


@pytest.fixture
def instance(tmp_path, baked):
    """Run a machine from the image that was baked."""
    with machine(tmp_path / "instance", baked[1]) as made:
        yield made


def leftovers(ec2) -> list[str]:
    """Return what runs or stands in the account that only a bake would have made there."""
    groups = [group for found in ec2.describe_instances()["Reservations"] for group in found["Instances"]]
    running = [each["InstanceId"] for each in groups if each["State"]["Name"] not in ("terminated", "shutting-down")]
    keys = [key["KeyName"] for key in ec2.describe_key_pairs()["KeyPairs"]]
    security = [each["GroupName"] for each in ec2.describe_security_groups()["SecurityGroups"]]
    return running + keys + [name for name in security if name != "default"]


def test_a_bake_makes_a_tagged_image(baked, ec2):
    """The image is in the account, says what it was made from, and so do its snapshots."""
    made, _, _ = baked
    (image,) = ec2.describe_images(ImageIds=[made["ami"]])["Images"]
    tags = {tag["Key"]: tag["Value"] for tag in image["Tags"]}
    assert tags["transcribe:role"] == "image"
    assert tags["transcribe:base-image"] == made["base_image"]
    assert tags["transcribe:commit"] == made["commit"]
    assert tags["transcribe:model"] == "demo"
    assert tags["transcribe:revision"] == made["model"]["revision"]
    assert tags["transcribe:torch"].startswith("2.")
    assert tags["transcribe:state-sha256"] == made["state"]["sha256"]
    snapshots = [mapping["Ebs"]["SnapshotId"] for mapping in image["BlockDeviceMappings"] if "Ebs" in mapping]
    for snapshot in ec2.describe_snapshots(SnapshotIds=snapshots)["Snapshots"]:
        marked = {tag["Key"]: tag["Value"] for tag in snapshot["Tags"]}
        assert marked["transcribe:state-sha256"] == made["state"]["sha256"]
    assert leftovers(ec2) == []


def test_a_bake_asks_for_tokens_of_whoever_asks_the_image(baked, ec2_account):
    """Old packer can't set IMDSv2, so it is set afterwards, and that is said."""
    made, _, said = baked
    calls = [given for action, given in ec2_account.calls if action == "ec2:ModifyImageAttribute"]
    assert {"ImageId": made["ami"], "ImdsSupport.Value": "v2.0"}.items() <= calls[-1].items()
    assert "can't ask for IMDSv2 on the builder" in said


def test_a_bake_says_where_its_time_went(baked):
    """Each step has its seconds, in the report and while it runs; the log is kept."""
    made, _, said = baked
    scripts = {path.stem for path in (ROOT / "packer/provisioners").glob("*.sh")}
    assert scripts | {"launch", "upload", "create image"} <= made["seconds"].keys()
    assert sum(made["seconds"].values()) <= made["total_seconds"] + 0.1
    assert re.search(r"^ +\d+:\d\d\.\d  persist-gpu-state$", said, re.MULTILINE)
    assert "Creating AMI" in Path(made["log"]).read_text()


def test_the_bill_names_everything_with_its_hash(baked, instance):
    """The manifest in the image has model, licence, state, locks and packages, and its hash of the state is right."""
    made, _, _ = baked
    bill = json.loads(instance.run("cat /opt/transcribe/manifest.json").stdout)
    assert bill["state"] == made["state"]
    assert instance.run(f"sha256sum {bill['state']['path']}").stdout.split()[0] == made["state"]["sha256"]
    assert bill["model"] == {**made["model"], "id": "demo", "licence": "MIT"}
    assert bill["locks"].keys() == {"worker.lock", "torch-cuda.lock"}
    assert (
        bill["packages"]["transformers"]
        == re.search(r"transformers==(\S+)", (ROOT / "requirements.lock").read_text())[1]
    )
    assert bill["loading"].keys() == {"gpu_state", "mmap", "standard"}
    assert instance.run("test -e /opt/transcribe/.setup_complete").returncode == 0


def test_the_image_transcribes(baked, instance):
    """A recording that the bake never saw is transcribed by the command of old, from the state, as its user."""
    shutil.copy(RECORDINGS / "night-watch.ogg", instance.base / "ssh")
    subprocess.run(
        [*instance.ssh("")[:-1], "cat > /tmp/night-watch.ogg"],
        input=(RECORDINGS / "night-watch.ogg").read_bytes(),
        check=True,
    )
    done = instance.run(
        "cd /opt/transcribe/run_transcription && HF_HUB_OFFLINE=1 runuser -u transcribe -- "
        "/opt/transcribe/venv/bin/python fast_transcribe.py /tmp/night-watch.ogg"
    )
    assert done.returncode == 0, done.stderr
    assert words(done.stdout) == words((RECORDINGS / "night-watch.txt").read_text())
    assert "loaded by gpu_state" in done.stderr


def words(text: str) -> list[str]:
    """Return the words of a text, without marks."""
    return re.findall(r"\w+", text.lower())


def test_no_secret_of_the_build_is_in_the_image(baked):
    """Tokens and keys of the environment in which the bake was started are nowhere, in the image or in the log."""
    made, base, said = baked
    for secret in PLANTED.values():
        found = subprocess.run(
            ["grep", "-rlF", "-e", secret, base / "upper", made["log"]], capture_output=True, text=True, check=False
        )
        assert found.stdout == ""
        assert secret not in said


def test_units_are_valid_and_enabled(instance):
    """The system that boots from the image takes the units, and starts both."""
    units = "/etc/systemd/system/transcribe-prefetch.service /etc/systemd/system/transcribe-worker.service"
    checked = instance.run(f"systemd-analyze verify --man=no --root=/ {units}")
    assert (checked.returncode, [line for line in checked.stderr.splitlines() if "transcribe" in line]) == (0, [])
    assert (
        instance.run("systemctl --root=/ is-enabled transcribe-prefetch transcribe-worker").stdout.split()
        == ["enabled"] * 2
    )
    assert instance.run("stat -c %U:%G:%a /etc/transcribe.env").stdout.strip() == "root:transcribe:640"


def test_a_boot_ends_with_a_transcript_in_the_bucket(baked, instance, stack, record_property):
    """Prefetch, then the worker, run as the units say, transcribe what is in the queue."""
    began = time.monotonic()
    lines = [f"TRANSCRIBE_QUEUE_URL={stack.queue_url}", "TRANSCRIBE_THREADS=1"]
    lines += [f"{name}={os.environ[name]}" for name in os.environ if name.startswith("AWS_")]
    subprocess.run(
        [*instance.ssh("")[:-1], "cat >> /etc/transcribe.env"], input="\n".join(lines), text=True, check=True
    )
    storage.upload(RECORDINGS / "night-watch.ogg", f"s3://{stack.bucket}/uploads/night-watch.ogg")
    prefetched = instance.run(as_unit_says("transcribe-prefetch"))
    timeline = {"prefetch": time.monotonic() - began}
    assert re.search(r"^state  \d+\.\d MB in .*GB/s$", prefetched.stdout, re.MULTILINE), prefetched
    worker = subprocess.Popen(instance.ssh(as_unit_says("transcribe-worker")), stderr=subprocess.PIPE, text=True)
    giving_up = threading.Timer(120, worker.kill)
    giving_up.start()
    try:
        for line in worker.stderr:
            if "ready" in line:
                timeline["ready"] = time.monotonic() - began
            if " done: " in line:
                break
        timeline["transcript"] = time.monotonic() - began
    finally:
        giving_up.cancel()
        instance.run("pkill -TERM -u transcribe")
        worker.wait(60)
    (address,) = documents(f"s3://{stack.bucket}", "uploads/night-watch.ogg")
    result = json.loads(storage.read(address))
    assert words(result["text"]) == words((RECORDINGS / "night-watch.txt").read_text())
    assert result["load"]["strategy"] == "gpu_state"
    assert list(timeline) == ["prefetch", "ready", "transcript"]
    for name, seconds in timeline.items():
        record_property(name, round(seconds, 2))


def as_unit_says(unit: str) -> str:
    """Return the shell command that runs a unit's program as its user, with its environment and nothing else."""
    text = (ROOT / f"packer/rootfs/etc/systemd/system/{unit}.service").read_text()
    settings = re.findall(r"^(User|ExecStart|Environment|TimeoutStopSec)=(.+)$", text, re.MULTILINE)
    user, program = dict(settings)["User"], dict(settings)["ExecStart"]
    given = " ".join(value for name, value in settings if name == "Environment")
    inherited = "$(grep -v '^#' /etc/transcribe.env)"
    return f"cd / && exec runuser -u {user} -- env -i PATH=/usr/bin:/bin {given} {inherited} {program}"


def test_a_second_bake_keeps_packages_and_a_flipped_bit_fails_it(baked, baker, instance, ec2, ec2_account):
    """With the same locks the image itself is the source; and a state that is damaged makes no image."""
    changed = baker.without("precompile-bytecode")
    changed.spoil(
        "persist-gpu-state",
        'file=$(echo /opt/transcribe/gpu_state/*/state.safetensors); size=$(stat -c %s "$file"); '
        'byte=$(dd if="$file" bs=1 skip=$((size - 1000)) count=1 status=none | od -An -tu1 | tr -d " "); '
        'printf "\\\\x$(printf %x $((byte ^ 1)))" | '
        'dd of="$file" bs=1 seek=$((size - 1000)) conv=notrunc status=none',
    )
    images = len(ec2.describe_images(Owners=["self"])["Images"])
    done = changed.bake(made_on=instance)
    launched = [given["ImageId"] for action, given in ec2_account.calls if action == "ec2:RunInstances"][-1]
    assert launched == baked[0]["ami"]
    log = Path(re.search(r"the log is (\S+)", done.stderr)[1]).read_text()
    assert "its packages are kept" in log
    assert done.returncode == 1
    assert "Error: validate-image fails: " in done.stderr
    assert "damaged" in done.stderr + log
    assert len(ec2.describe_images(Owners=["self"])["Images"]) == images
    assert instance.run("test -e /opt/transcribe/.setup_complete").returncode == 1
    assert leftovers(ec2) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f"echo {TOKEN} >/opt/transcribe/cache/note", "/opt/transcribe/cache/note holds a secret"),
        ("echo ls >~/.bash_history", "/.bash_history belongs to the builder"),
        ("head -c 70000 /dev/zero >/var/log/build.log", "/var/log/build.log was not emptied"),
        ("export MINIMUM_FREE_GIGABYTES=1000000", "GB of disk are free instead of 1e+06"),
        ("rm -rf /opt/transcribe/venv/lib/python3*/site-packages/av-*.dist-info", "av is installed in None"),
    ],
)
def test_what_must_not_be_in_an_image_is_found(instance, tmp_path, line, problem):
    """A secret, a history, a log, a full disk or another version than the locked one: validation names it and fails."""
    done = check(instance, line)
    assert done.returncode == 1
    assert problem in done.stderr
    assert TOKEN not in done.stderr + done.stdout


def test_an_image_without_a_flaw_passes(instance):
    """The same checks, with nothing planted, find nothing."""
    done = check(instance, "true")
    assert (done.returncode, done.stderr) == (0, "")


def check(instance, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line in an instance, and then the checks of validation."""
    bring(instance)
    return instance.run(
        "export BROUGHT=/tmp/brought TORCH_SOURCE=/opt MINIMUM_DRIVER=580 MINIMUM_FREE_GIGABYTES=1; "
        f"{line}; export PYTHONDONTWRITEBYTECODE=1; "
        "/opt/transcribe/venv/bin/python $BROUGHT/provisioners/check_image.py $BROUGHT"
    )


def bring(instance) -> None:
    """Copy packer/ to an instance, as a bake does."""
    packed = subprocess.run(["tar", "c", "-C", ROOT / "packer", "."], capture_output=True, check=True).stdout
    command = "mkdir -p /tmp/brought && tar x -C /tmp/brought"
    subprocess.run([*instance.ssh("")[:-1], command], input=packed, check=True)


def test_a_model_is_cached_at_its_revision(instance, tmp_path):
    """A model of the hub comes at the commit, takes the place of the one before, and is found without a network."""
    bring(instance)
    folder = tiny_whisper.make(tmp_path / "tiny")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    with served(folder) as hub:
        given = f"BROUGHT=/tmp/brought MODEL=example/whisper-tiny MODEL_REVISION={COMMIT} HF_ENDPOINT={hub.endpoint}"
        done = instance.run(f"{given} /tmp/brought/provisioners/cache-model.sh")
    assert done.returncode == 0, done.stderr
    facts = json.loads(instance.run("cat /opt/transcribe/models/model.json").stdout)
    assert (facts["id"], facts["revision"], facts["licence"]) == ("example/whisper-tiny", COMMIT, "apache-2.0")
    assert instance.run("ls /opt/transcribe/gpu_state").stdout == ""
    found = instance.run(
        "HF_HUB_OFFLINE=1 /opt/transcribe/venv/bin/python -c 'from run_transcription import options\n"
        "from run_transcription.engines import model_folder\nfrom run_transcription.records import ModelSpec\n"
        "print(model_folder.resolve(ModelSpec(options.default_model())).revision)'"
    )
    assert found.stdout.strip() == COMMIT, found.stderr


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
    before = len(ec2_account.calls)
    done = baker.bake(
        "--no-reuse", "--instance-type", "m5.xlarge", "--instance-type", "m5a.xlarge", "--zone", f"{REGION}b"
    )
    calls = [given for action, given in ec2_account.calls[before:] if action == "ec2:RunInstances"]
    assert [call["InstanceType"] for call in calls] == ["m5.xlarge", "m5a.xlarge"]
    assert {call["Placement.AvailabilityZone"] for call in calls} == {f"{REGION}b"}
    assert "there is no m5.xlarge in eu-west-1b to be had" in done.stderr
    assert done.returncode == 1
    assert "You may not" in done.stderr
    assert leftovers(ec2) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(baker, ec2, number):
    """Ctrl-C, and a stop from outside, end packer in order: instance, security group and key are gone."""
    command = baker.command("--no-reuse", "--var", "ssh_host=127.0.0.1", "--var", f"ssh_port={free_port()}")
    process = subprocess.Popen(
        command, env=baker.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stderr:
        if line.endswith("  connect\n"):
            break
    assert len(leftovers(ec2)) == 3
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert leftovers(ec2) == []


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
        (("--region", "eu-west-99"), "", "--region eu-west-99: AWS has no region of that name"),
        (
            ("--model", "openai/whisper-tiny", "--revision", "main"),
            "",
            "wants a commit of 40 hex digits, which main is not",
        ),
        (("--var", f"hf_token={TOKEN}"), "", "--var hf_token: set HF_TOKEN instead"),
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


def test_a_dry_run_needs_no_credentials():
    """`make ami`, ./build_ami.sh and the command are one thing; the templates are valid, and nothing is called."""
    require_tool("packer")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MAKE"))}
    clean |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
    clean["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"  # whoever asked it would fail
    done = subprocess.run(
        ["./build_ami.sh", "--dry-run"],
        cwd=ROOT / "run_transcription",
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "templates and variables are valid" in done.stdout
    assert "openai/whisper-large-v3-turbo at 41f01f3fe87f28c78e2fbf8b568835947dd65ed9" in done.stdout
    assert done.stdout.endswith("nothing was done: this was a dry run\n")
    printed = subprocess.run(
        ["make", "-n", "ami", "DRY_RUN=1"], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
    )
    assert ".venv/bin/run-transcription bake --dry-run" in printed.stdout


def test_a_dry_run_finds_a_variable_that_does_not_fit():
    """What packer refuses, the dry run says."""
    require_tool("packer")
    command = [sys.executable, "-m", "run_transcription", "bake", "--dry-run", "--var", "volume_gigabytes=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "The volume_gigabytes must be from 8 to 1000." in done.stderr


def test_the_policy_is_what_a_bake_calls(baked, ec2_account):
    """Every call of packer and of the driver is in the builder's policy, and of the rest each has its reason."""
    policy = json.loads((ROOT / "docs/builder-policy.json").read_text())
    allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
    called = {action for action in ec2_account.actions() if action.startswith(("ec2:", "ssm:"))}
    assert called <= allowed
    later = {
        *("ec2:CreateKeyPair", "ec2:DeleteKeyPair", "ec2:DescribeKeyPairs"),  # where packer makes the key
        *("ec2:CreateFleet", "ec2:CreateLaunchTemplate", "ec2:DeleteLaunchTemplate"),  # a spot builder
        *("ec2:DescribeSpotPriceHistory", "ec2:DescribeInstanceStatus", "ec2:DescribeSubnets", "ec2:DescribeTags"),
        *("ec2:DescribeSnapshots", "ec2:DescribeInstanceTypeOfferings", "ec2:DescribeVpcs"),  # newer packers ask
        "ssm:GetParameter",  # a base image that is not pinned
    }
    assert allowed - called <= later
