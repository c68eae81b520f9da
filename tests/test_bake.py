"""The bake for real, and what is in its image: packer, an emulated EC2, and an sshd in an isolated root."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_whisper
from baking import PLANTED, TOKEN, leftovers
from booting import boot
from fake_hub import COMMIT, served
from isolated_machine import ROOT

from run_transcription import bake_parts, demo
from tools import require_tool

sys.path.append(str(ROOT / "packer" / "provisioners"))

import check_image

RECORDINGS = Path(demo.__file__).parent / "recordings"


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


def test_the_image_wants_tokens_before_it_is_marked_as_finished(baked, ec2_account):
    """Old packer can't set IMDSv2: it is set afterwards, read back from EC2, and only then the image is marked."""
    made, _, said = baked
    assert "can't ask for IMDSv2 on the builder" in said
    assert ec2_account.with_tokens[made["ami"]] == "v2.0"
    calls = [(action, str(given)) for action, given in ec2_account.calls if made["ami"] in given.values()]
    asked = next(at for at, (_, given) in enumerate(calls) if "ImdsSupport.Value" in given)
    marked = next(at for at, (_, given) in enumerate(calls) if made["state"]["sha256"] in given)
    assert "ec2:DescribeImages" in {action for action, _ in calls[asked:marked]}


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
    assert list((base / "upper/tmp").iterdir()) == []


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


def test_a_boot_ends_with_a_transcript_in_the_bucket(instance, stack, record_property):
    """Prefetch, then the worker, run as the units say, transcribe what is put into the queue.

    And since its user can't write bytecode, each module that the worker loads has been compiled for it.
    """
    booted = boot(instance, stack, RECORDINGS / "night-watch.ogg", PYTHONVERBOSE="1")
    assert re.search(r"^state  \d+\.\d MB in .*GB/s$", booted.prefetched, re.MULTILINE), booted.prefetched
    result = json.loads(booted.result)
    assert words(result["text"]) == words((RECORDINGS / "night-watch.txt").read_text())
    assert result["load"]["strategy"] == "gpu_state"
    compiled = [line for line in booted.said if re.match(r"# /opt/transcribe/venv/\S+\.pyc matches ", line)]
    sources = [line for line in booted.said if re.match(r"# code object from /opt/transcribe/venv/\S+\.py$", line)]
    assert (len(compiled) > 500, sources) == (True, [])
    for name, seconds in booted.timeline.items():
        record_property(name, round(seconds, 2))


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


PLANTS = {
    f"echo {TOKEN} >/opt/transcribe/cache/note": "/opt/transcribe/cache/note holds a secret",
    "echo ls >~/.bash_history": "/.bash_history belongs to the builder",
    "ssh-keygen -q -N '' -f /etc/ssh/ssh_host_ed25519_key": "/etc/ssh/ssh_host_ed25519_key belongs to the builder",
    "head -c 70000 /dev/zero >/var/log/build.log": "/var/log/build.log was not emptied",
    "export MINIMUM_FREE_GIGABYTES=1000000": "GB of disk are free instead of 1e+06",
    "export LOG_AGENT=/opt/aws/none": "there is no /opt/aws/none to ship the workers' log",
    "rm -rf /opt/transcribe/venv/lib/python3*/site-packages/av-*.dist-info": "av is installed in None",
}


def test_what_must_not_be_in_an_image_is_found(instance):
    """Validation names a secret, a key, a history, a log, a full disk, a version that is not locked: it fails."""
    done = check(instance, "; ".join(PLANTS))
    assert done.returncode == 1
    *problems, last = done.stderr.splitlines()
    assert [problem for problem in PLANTS.values() if not any(problem in line for line in problems)] == []
    assert last == f"this is no image to keep: {len(PLANTS)} checks failed"
    assert TOKEN not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("echo 580.95.05", None),
        ("echo 570.172.08", "the driver 570.172.08 is too old for CUDA 13.0: it wants 580"),
        ("exit 1", "there is no NVIDIA driver, and torch is built for CUDA 13.0"),
    ],
)
def test_the_driver_must_suit_torch(tmp_path, monkeypatch, module, problem):
    """The version of the module on disk is compared with what torch's CUDA wants, as torch's own note says it."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('nobody has time for this')")
    (tmp_path / "torch/version.py").write_text("cuda: str | None = '13.0'")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "modinfo").write_text(f"#!/bin/sh\n{module}\n")
    (tmp_path / "modinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("MINIMUM_DRIVER", "580")
    assert check_image.driver() == ([problem] if problem else [])


def test_an_image_without_a_flaw_passes(instance):
    """The same checks, with nothing planted, find nothing."""
    done = check(instance, "true")
    assert (done.returncode, done.stderr) == (0, "")


def check(instance, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line in an instance, and then the checks of validation."""
    bring(instance)
    return instance.run(
        "export BROUGHT=/tmp/brought TORCH_SOURCE=/opt MINIMUM_DRIVER=580 MINIMUM_FREE_GIGABYTES=1 LOG_AGENT=; "
        f"{line}; export PYTHONDONTWRITEBYTECODE=1; "
        "/opt/transcribe/venv/bin/python $BROUGHT/provisioners/check_image.py $BROUGHT"
    )


def bring(instance) -> None:
    """Copy packer/ to an instance, as a bake does."""
    packed = subprocess.run(["tar", "c", "-C", ROOT / "packer", "."], capture_output=True, check=True).stdout
    command = "mkdir -p /tmp/brought && tar x -C /tmp/brought"
    subprocess.run([*instance.ssh("")[:-1], command], input=packed, check=True)


def test_the_state_may_have_a_volume_of_its_own(fresh):
    """It is made, known by its label at the next boot, and mounted; where it is there already it is left alone."""
    bring(fresh)
    script = "STATE_VOLUME_GIGABYTES=1 STATE_DEVICE=/srv/volume /tmp/brought/provisioners/mount-state-volume.sh"
    fresh.run("mkdir -p /opt/transcribe/gpu_state && truncate -s 64M /srv/volume")
    done = fresh.run(f"{script} && touch /opt/transcribe/gpu_state/kept && {script}")
    assert (done.returncode, done.stdout) == (0, "the state stands on /srv/volume\n"), done.stderr
    assert fresh.run("ls /opt/transcribe/gpu_state").stdout.split() == ["kept", "lost+found"]
    assert fresh.run("blkid -o value -s LABEL /srv/volume").stdout == "transcribe-state\n"
    assert fresh.run("tail -n 1 /etc/fstab").stdout.split()[:3] == [
        *("LABEL=transcribe-state", "/opt/transcribe/gpu_state", "ext4"),
    ]
    assert fresh.run("umount /opt/transcribe/gpu_state").returncode == 0


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


def test_a_dry_run_needs_no_credentials(tmp_path):
    """`make ami`, ./build_ami.sh and the command are one thing; the templates are valid, and nothing is called."""
    require_tool("packer")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MAKE"))}
    clean |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
    clean["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"  # whoever asked it would fail
    (tmp_path / "bake-it").symlink_to(os.path.relpath(ROOT / "run_transcription/build_ami.sh", tmp_path))
    (tmp_path / "mine").symlink_to(ROOT / "packer")
    done = subprocess.run(
        ["./bake-it", "--dry-run", "--templates", "mine"],  # a link from elsewhere does too, with paths from there
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "templates and variables are valid" in done.stdout
    pinned = bake_parts.pins(ROOT / "packer")["base_image_name"]
    assert f"base image  {pinned or 'none is pinned: the newest that /aws/'}" in done.stdout
    assert "openai/whisper-large-v3-turbo at 41f01f3fe87f28c78e2fbf8b568835947dd65ed9" in done.stdout
    assert done.stdout.endswith("nothing was done: this was a dry run\n")
    for given, shown in (("DRY_RUN=1", "bake --dry-run"), ("DRY_RUN=0", "bake  \n")):
        printed = subprocess.run(
            ["make", "-n", "ami", given], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
        )
        assert f".venv/bin/run-transcription {shown}" in printed.stdout
