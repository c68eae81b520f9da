from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import permissions
import pytest
import tiny_whisper
from click.testing import CliRunner
from emulated_group import IMAGE, WANTED, a_group, answering
from fakes import tone
from faults.imds import metadata
from permissions import Call, Grant

from run_transcription import __main__ as program
from run_transcription import aws, changes, deploy, ec2, fleet_report, preflight, sources, stacks, storage
from run_transcription.errors import TranscriptionError

ROOT = Path(__file__).parents[1]
NAME = permissions.GROUP
BUCKET = f"{NAME}-{permissions.ACCOUNT}-{permissions.REGION}"
# what is granted to programs that are not ours, and what no emulator makes us call
OTHERS = {
    ("WriteLog", "logs:CreateLogStream"),  # the CloudWatch agent
    ("WriteLog", "logs:DescribeLogStreams"),
    ("WriteLog", "logs:PutLogEvents"),
    *(
        ("OpenSessions", action)  # the agent of Session Manager
        for action in (
            "ssm:UpdateInstanceInformation",
            "ssmmessages:CreateControlChannel",
            "ssmmessages:CreateDataChannel",
            "ssmmessages:OpenControlChannel",
            "ssmmessages:OpenDataChannel",
        )
    ),
    ("UseTheKey", "kms:Decrypt"),  # S3 and SQS, in the worker's name
    ("UseTheKey", "kms:GenerateDataKey"),
    ("WorkWithStacks", "cloudformation:DescribeEvents"),  # only what AWS itself refuses before it begins
}


def run(*arguments, status=0):
    """Call the program in this process."""
    done = CliRunner().invoke(program.main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done


def document_of(role):
    """Return the policy of a role or a managed policy, as it was deployed: with all names filled in."""
    iam = aws.client("iam")
    if not role.startswith("arn:"):
        return iam.get_role_policy(RoleName=role, PolicyName="worker")["PolicyDocument"]
    version = iam.get_policy(PolicyArn=role)["Policy"]["DefaultVersionId"]
    return iam.get_policy_version(PolicyArn=role, VersionId=version)["PolicyVersion"]["Document"]


class Life:
    """What happened to a stack from its first deployment to its end, and which calls were made by whom."""

    said: dict[str, str]
    calls: dict[str, set[Call]]
    policies: dict[str, dict]


@pytest.fixture(scope="module")
def patched():
    """Patch for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def life(emulator, patched, tmp_path_factory):  # noqa: PLR0915 - a life is long
    """Deploy, attach, upload, work, look after it, change it, and remove it."""
    folder = tmp_path_factory.mktemp("life")
    patched.setenv("TRANSCRIBE_STACK", NAME)
    patched.setenv("TRANSCRIBE_HOME", str(folder / "home"))
    patched.setattr(changes, "PAUSES", (0.05,))
    found = Life()
    found.said, found.calls, found.policies = {}, {}, {}
    aws.s3().create_bucket(Bucket="calls")
    others = {"Id": "theirs", "TopicArn": aws.client("sns").create_topic(Name="theirs")["TopicArn"]}
    aws.s3().put_bucket_notification_configuration(
        Bucket="calls", NotificationConfiguration={"TopicConfigurations": [others | {"Events": ["s3:ObjectRemoved:*"]}]}
    )
    topic = aws.client("sns").create_topic(Name="done")["TopicArn"]
    with permissions.recorded(patched) as found.calls["deployer"]:
        found.said["rehearsal"] = run("deploy", "--max-workers", 0, "--dry-run").output
        found.said["after rehearsal"] = run("status", status=1).stderr
        found.said["deploy"] = run("deploy", "--max-workers", 0, "--yes").output
        found.said["again"] = run("deploy", "--yes").output
        run("deploy", "--yes", "--set", f"NotificationTopic={topic}")
        found.said["attach"] = run("attach-bucket", "calls", "--prefix", "in/").output
    found.said["notifications"] = notifications("calls")
    stack = stacks.find(NAME, permissions.REGION)
    outputs = stacks.describe(NAME, permissions.REGION)["Outputs"]
    names = {each["OutputKey"]: each["OutputValue"] for each in outputs}
    found.policies = {who: document_of(names[key]) for who, key in POLICIES.items()}
    talk, poison = tone(folder / "talk.wav", 1), json.dumps({"what": "is this"})
    aws.s3().put_object(Bucket="calls", Key="old/call.wav", Body=talk.read_bytes())
    aws.s3().put_bucket_versioning(Bucket="calls", VersioningConfiguration={"Status": "Enabled"})
    aws.s3().put_object(Bucket="calls", Key="in/call.wav", Body=talk.read_bytes())
    for body in (poison, poison):
        aws.sqs().send_message(QueueUrl=stack.live_url, MessageBody=body)
    patched.setenv("TRANSCRIBE_BUCKET", BUCKET)
    with permissions.recorded(patched) as found.calls["operator"]:
        run("submit", talk)
        run("backfill", "s3://calls/old/")
        run("backfill", f"s3://{BUCKET}/uploads/")
    later = '{"bucket": "calls", "key": "in/later.wav"}'
    aws.sqs().send_message(QueueUrl=stack.backfill_url, MessageBody=later)
    patched.setenv("TRANSCRIBE_BUCKET", f"{BUCKET} calls")
    model = tiny_whisper.make(folder / "tiny")
    with permissions.recorded(patched) as calls:
        arguments = ("--queue-url", stack.live_url, "--backfill-url", stack.backfill_url, "-o", f"s3://{BUCKET}")
        sources.SqsSource(stack.backfill_url).receive().release()  # as a worker does that is told to stop
        run("worker", "--once", "--no-vad", *arguments, "--model", model, "--save-seconds", 0, "--notify-topic", topic)
    found.calls["worker"] = calls | calls_of_an_instance(patched)
    patched.setenv("TRANSCRIBE_BUCKET", BUCKET)
    with permissions.recorded(patched) as calls:
        found.said["results"] = run("results", "uploads/talk.wav").output
        found.said["status"] = run("status").output
        found.said["json"] = run("status", "--json").stdout
        found.said["count"] = run("backfill", "s3://calls/old/", "--count").stdout
        found.said["dlq"] = run("dlq", "list").stdout
        first, second = (line.split()[0] for line in found.said["dlq"].splitlines())
        found.said["dlq show"] = run("dlq", "show", first).stdout
        run("dlq", "redrive", first)
        run("dlq", "drop", second, "--yes")
        found.said["dlq left"] = run("dlq", "list").stdout
        aws.client("logs").create_log_stream(logGroupName=stack.log_group, logStreamName="i-1")
        event = {"timestamp": round(datetime.now(UTC).timestamp() * 1000), "message": '{"finished": 1}'}
        aws.client("logs").put_log_events(logGroupName=stack.log_group, logStreamName="i-1", logEvents=[event])
        found.said["logs"] = run("logs").stdout
    found.calls["operator"] |= {
        call for call in calls if call.action not in {"logs:CreateLogStream", "logs:PutLogEvents"}
    }
    found.objects = [each.removeprefix(f"s3://{BUCKET}/") for each in storage.listing(f"s3://{BUCKET}/")]
    with permissions.recorded(patched) as calls:
        found.said["destroy"] = run("destroy", "--yes").output
        found.kept = aws.s3().head_bucket(Bucket=BUCKET)["ResponseMetadata"]["HTTPStatusCode"]
        found.import_row = changes.prepare(NAME, permissions.REGION, {"MaxWorkers": "0"})
        changes.discard(found.import_row)
        storage.remove_bucket(BUCKET)
        run("deploy", "--max-workers", 0, "--yes")
        found.said["destroy all"] = run("destroy", "--with-bucket", "--yes").output
    found.calls["deployer"] |= calls
    found.said["notifications after"] = notifications("calls")
    return found


POLICIES = {"worker": "WorkerRole", "operator": "OperatorPolicy"}


def notifications(bucket):
    """Return a bucket's notifications."""
    answer = aws.s3().get_bucket_notification_configuration(Bucket=bucket)
    return {key: value for key, value in answer.items() if key.endswith("Configurations")}


def calls_of_an_instance(patched):
    """Do what only a worker on an instance of the group does, against moto."""
    with a_group() as (instance, _), metadata() as server:
        server.facts[ec2.TARGET_STATE] = "Terminated"
        with permissions.recorded(patched) as calls, answering(patched):
            here = ec2.Instance(ec2.Metadata(server.endpoint), instance, "ami-1", permissions.REGION)
            assert here.outdated(IMAGE)
            here.out_of_service()
            assert here.end(smaller=True)
            here.let_go()
        return set(calls)


def test_a_rehearsal_shows_all_and_leaves_nothing(life):
    """Checks and change set are printed; no stack is there afterwards."""
    assert "ok    credentials      account 000000000000" in life.said["rehearsal"]
    assert "Add     Bucket                   AWS::S3::Bucket" in life.said["rehearsal"]
    assert life.said["after rehearsal"].startswith(f"Error: there is no stack {NAME}")


def test_a_deployment_tells_its_progress_and_where_things_are(life):
    """Each resource is named as it comes, and at the end the bucket that takes recordings."""
    assert "CREATE_COMPLETE              LiveQueue" in life.said["deploy"]
    assert f"bucket {BUCKET}\n" in life.said["deploy"]


def test_a_second_deployment_changes_nothing(life):
    """What is not given stays as it is."""
    assert "nothing changes" in life.said["again"]
    assert "UPDATE" not in life.said["again"]


def test_recordings_of_all_ways_in_are_transcribed_into_the_stacks_bucket(life):
    """The stack's own bucket, an attached one and a backfill have their results in one place."""
    done = {path.split("/0")[0].rsplit("/", 2)[0] for path in life.objects if path.endswith("transcript.json")}
    assert done == {"results/uploads/talk.wav", "results/in/call.wav", "results/old/call.wav"}
    assert "COMPLETED" in life.said["results"]
    assert life.said["count"] == "1 of 1 done\n"


def test_an_attached_buckets_other_notifications_stay(life):
    """Ours comes beside theirs, and goes alone."""
    (theirs,) = life.said["notifications after"]["TopicConfigurations"]
    assert theirs["Id"] == "theirs"
    assert life.said["notifications"]["TopicConfigurations"] == [theirs]
    (ours,) = life.said["notifications"]["QueueConfigurations"]
    assert ours["Filter"]["Key"]["FilterRules"][0]["Value"] == "in/"
    assert "QueueConfigurations" not in life.said["notifications after"]


def test_dead_letters_are_listed_shown_sent_again_and_dropped(life):
    """Poison stands there with its reason, until a person says what becomes of it."""
    assert life.said["dlq"].count("unreadable: ") == 2
    assert json.loads(life.said["dlq show"]) == {"what": "is this"}
    assert life.said["dlq left"] == ""


def test_status_and_logs_say_what_is_there(life):
    """For people and for programs; a log line stands beside its instance."""
    assert "queue      dead     2 wait, 0 in work" in life.said["status"]
    assert "fleet      none: MaxWorkers is 0" in life.said["status"]
    assert json.loads(life.said["json"])["queues"][2] == {"role": "dead", "waiting": 2, "in_work": 0}
    assert life.said["logs"] == 'i-1 {"finished": 1}\n'


def test_the_bucket_outlives_the_stack_and_is_taken_up_again(life):
    """Recordings and results stay, unless all is to go."""
    assert life.kept == 200
    assert f"{BUCKET} is kept" in life.said["destroy"]
    (row,) = [row for row in life.import_row.rows if row.resource == "Bucket"]
    assert row.action == "Import"
    assert f"{BUCKET} is removed" in life.said["destroy all"]


@pytest.fixture(scope="module")
def calls(life, patched):
    """Return all calls by who makes them, with those that only a fleet needs."""
    found = {who: set(made) for who, made in life.calls.items()}
    with a_group() as (_, stack):
        with permissions.recorded(patched) as made, answering(patched):
            fleet_report.make(stack, datetime.now(UTC))
        found["operator"] |= {call for call in made if not call.action.startswith("sqs:")}  # other names in moto
        with permissions.recorded(patched) as made, answering(patched):
            preflight.run(WANTED)
            preflight.run(replace(WANTED, vpc_id="vpc-1", subnet_ids=("subnet-1",)))
            deploy._keep_zones_as_they_are(stack)
            deploy._let_instances_go(stack)
        found["deployer"] |= made
    return found


@pytest.mark.parametrize("who", ["worker", "operator", "deployer"])
def test_nothing_that_is_called_is_missing_from_the_policy(life, calls, who):
    """Emulators ask for no permission: each call of these tests is compared with the deployed policy instead."""
    assert len(calls[who]) > 10
    assert permissions.missing(calls[who], granted(life, who)) == set()


@pytest.mark.parametrize("who", ["worker", "operator", "deployer"])
def test_nothing_is_granted_that_is_never_called(life, calls, who):
    """What no code needs is taken away; what other programs on the instance need is named."""
    assert permissions.idle(calls[who], granted(life, who)) - OTHERS == set()


def granted(life, who):
    """Return the grants of a policy; a deployer may also do what an operator may."""
    if who != "deployer":
        return permissions.grants(life.policies[who])
    return permissions.grants(json.loads((ROOT / "infra/deploy-policy.json").read_text()))


def test_the_matcher_tells_what_is_missing_and_what_is_idle():
    """A right on another key, or on the bucket for a key, is no right; a wildcard may stand in the policy alone."""
    allowed = [Grant("a", "s3:Get*", ("arn:aws:s3:::b/in/*",)), Grant("b", "s3:PutObject", ("*",))]
    good, bad = Call("s3:GetObject", "arn:aws:s3:::b/in/a"), Call("s3:GetObject", "arn:aws:s3:::b/out/a")
    assert permissions.missing({good, bad}, allowed) == {bad}
    assert permissions.missing({Call("ec2:RunInstances", "*")}, allowed) == {Call("ec2:RunInstances", "*")}
    assert permissions.idle({good}, allowed) == {("b", "s3:PutObject")}


def test_a_failed_deployment_says_why_and_leaves_nothing(emulator, monkeypatch):
    """The first resource that failed is named with its reason, in one line; no stack and no bucket stay behind."""
    monkeypatch.setattr(changes, "PAUSES", (0.05,))
    prepared = changes.prepare("broken", permissions.REGION, {"MaxWorkers": "2"})
    with pytest.raises(TranscriptionError) as failed:
        changes.carry_out(prepared, lambda _event: None)
    text = str(failed.value)
    assert "metric math" in text
    assert text.endswith("(nothing of it is left)")
    assert "\n" not in text
    assert stacks.describe("broken", permissions.REGION) is None
    with pytest.raises(TranscriptionError, match="no such"):
        storage.require_bucket(f"broken-{permissions.ACCOUNT}-{permissions.REGION}")


def test_an_unknown_parameter_is_named_with_those_there_are(emulator):
    """A slip of the pen is found before anything is made."""
    with pytest.raises(TranscriptionError, match="has no parameter MaxWorker, but AttachedBuckets"):
        changes.prepare("typo", permissions.REGION, {"MaxWorker": "1"})
    assert stacks.describe("typo", permissions.REGION) is None
