from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import permissions
import pytest
import recorded_program
import tiny_whisper
import user_data
import yaml
from click.testing import CliRunner
from emulated_group import IMAGE, WANTED, a_group, answering
from fakes import tone
from faults.imds import metadata
from permissions import Call, Grant
from policies import allows, denies

from run_transcription import __main__ as program
from run_transcription import aws, changes, dead_letters, ec2, fleet, fleet_report, preflight, sources, stacks, storage
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


class Life:
    """What happened to a stack from its first deployment to its end, and which calls were made by whom."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, str] = {}
        self.calls: dict[str, set[Call]] = {}
        self.policies: dict[str, dict] = {}  # of roles
        self.guards: dict[str, tuple[str, dict]] = {}  # of queues and bucket: whose, and what it says


@pytest.fixture(scope="module")
def patched():
    """Patch for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def life(emulator, patched, tmp_path_factory):
    """Deploy, attach, upload, work, look after it, remove it, and deploy it again beside the bucket that is left."""
    found = Life(tmp_path_factory.mktemp("life"))
    patched.setenv("TRANSCRIBE_STACK", NAME)
    patched.setattr(changes, "PAUSES", (0.05,))
    patched.setattr(dead_letters, "POLL_SECONDS", 0)  # the emulator has one server, which knows all
    topic = have_an_account()
    files = [found.folder / f"calls-{number}.json" for number in range(2)]
    with recorded_program.started(files) as workers:  # which import while the stack is made
        with permissions.recorded(patched) as found.calls["deployer"]:
            make(found, topic)
        stack = stacks.find(NAME, permissions.REGION)
        read_policies(found, stack)
        put_recordings(found, stack)
        with permissions.recorded(patched) as calls:
            run("submit", found.folder / "talk.wav", "--bucket", BUCKET)
            run("backfill", "s3://calls/old/")
            run("backfill", f"s3://{BUCKET}/uploads/")
            found.said["nothing to send"] = run("backfill", "s3://calls/nothing/", status=1).stderr
        found.calls["operator"] = set(calls)
        found.calls["worker"] = give_back(stack, patched) | calls_of_an_instance(patched)
        work(found, stack, topic, workers)
    found.calls["worker"] |= set().union(*(recorded_program.calls_in(file) for file in files))
    write_log(stack)
    with permissions.recorded(patched) as calls:
        look_after(found)
    found.calls["operator"] |= calls
    found.objects = [each.removeprefix(f"s3://{BUCKET}/") for each in storage.listing(f"s3://{BUCKET}/")]
    storage.remove_bucket("gone")
    with permissions.recorded(patched) as calls:
        found.said["destroy"] = run("destroy", "--yes").output
        let_import_be()
        found.said["deploy beside the bucket"] = run("deploy", "--max-workers", 0, "--yes").output
    found.heard = hears_of("uploads/new.wav")
    with permissions.recorded(patched) as more:
        found.said["destroy all"] = run("destroy", "--with-bucket", "--yes").output
    found.calls["deployer"] |= calls | more
    found.said["notifications after"] = notifications("calls")
    return found


def let_import_be():
    """Keep the emulator from looking for names that are taken, which it does without regard to what is imported."""
    events = aws.client("cloudformation", permissions.REGION).meta.events
    events.register("before-call.cloudformation.CreateChangeSet", lambda params, **_: params["body"].update(LENIENT))


LENIENT = {"DisableValidation": "true"}


def have_an_account():
    """Make what is there before us: buckets, one with notifications of others, and a topic; return the topic."""
    for name in ("calls", "gone"):
        aws.s3().create_bucket(Bucket=name)
    others = {"Id": "theirs", "TopicArn": aws.client("sns").create_topic(Name="theirs")["TopicArn"]}
    aws.s3().put_bucket_notification_configuration(
        Bucket="calls", NotificationConfiguration={"TopicConfigurations": [others | {"Events": ["s3:ObjectRemoved:*"]}]}
    )
    return aws.client("sns").create_topic(Name="done")["TopicArn"]


def make(found, topic):
    """Deploy, deploy again, change, and attach buckets."""
    found.said["rehearsal"] = run("deploy", "--max-workers", 0, "--dry-run").output
    found.said["refusal"] = run("deploy", "--max-workers", 0, status=1).stderr  # nobody answers
    found.said["after rehearsal"] = run("status", status=1).stderr
    found.said["deploy"] = run("deploy", "--max-workers", 0, "--yes").output
    found.said["again"] = run("deploy", "--yes").output
    found.said["change"] = run("deploy", "--yes", "--set", f"NotificationTopic={topic}").output
    found.said["attach"] = run("attach-bucket", "calls", "--prefix", "in/").output
    found.said["attach again"] = run("attach-bucket", "calls", "--prefix", "in/").output
    run("attach-bucket", "gone")
    found.said["notifications"] = notifications("calls")


def read_policies(found, stack):
    """Keep all policies as they were deployed: with all names filled in."""
    outputs = {each["OutputKey"]: each["OutputValue"] for each in stacks.describe(NAME, permissions.REGION)["Outputs"]}
    iam = aws.client("iam")
    worker = iam.get_role_policy(RoleName=outputs["WorkerRole"], PolicyName="worker")["PolicyDocument"]
    operator = outputs["OperatorPolicy"]
    version = iam.get_policy(PolicyArn=operator)["Policy"]["DefaultVersionId"]
    people = iam.get_policy_version(PolicyArn=operator, VersionId=version)["PolicyVersion"]["Document"]
    found.policies = {"worker": worker, "operator": people}
    bucket = json.loads(aws.s3().get_bucket_policy(Bucket=BUCKET)["Policy"])
    found.guards["bucket"] = (f"arn:aws:s3:::{BUCKET}", bucket)
    for name, url in (("live", stack.live_url), ("backfill", stack.backfill_url), ("dead", stack.dead_letter_url)):
        facts = aws.sqs().get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn", "Policy"])["Attributes"]
        found.guards[name] = (facts["QueueArn"], json.loads(facts["Policy"]))


def put_recordings(found, stack):
    """Put recordings into the attached bucket, before and after it has versions, and poison into the queue."""
    talk = tone(found.folder / "talk.wav", 1).read_bytes()
    aws.s3().put_object(Bucket="calls", Key="old/call.wav", Body=talk)
    aws.s3().put_bucket_versioning(Bucket="calls", VersioningConfiguration={"Status": "Enabled"})
    aws.s3().put_object(Bucket="calls", Key="in/call.wav", Body=talk)
    for _ in range(2):
        aws.sqs().send_message(QueueUrl=stack.live_url, MessageBody=json.dumps({"what": "is this"}))


def give_back(stack, patched):
    """Do what a worker does that is told to stop; return its calls."""
    aws.sqs().send_message(QueueUrl=stack.backfill_url, MessageBody='{"bucket": "calls", "key": "in/later.wav"}')
    with permissions.recorded(patched) as calls:
        sources.SqsSource(stack.backfill_url).receive().release()
    return set(calls)


def work(found, stack, topic, workers):
    """Let the worker processes do all there is, told what to do by the template's user data."""
    names = user_data.NAMES | {"LiveQueue": stack.live_url, "BackfillQueue": stack.backfill_url, "Bucket": BUCKET}
    (told, *_) = yaml.safe_load(user_data.text(names, topic, ("calls",)))["write_files"]
    model = tiny_whisper.make(found.folder / "tiny")
    options = ("--once", "--no-vad", "--device", "cpu", "--model", model, "--save-seconds", 0)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSCRIBE_")}
    environment |= user_data.environment(told["content"])
    environment |= {"TRANSCRIBE_HOME": str(found.folder / "home"), "OMP_NUM_THREADS": "1"}
    for worker in workers:
        recorded_program.tell(worker, "worker", *options, environment=environment)
    said = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said


def write_log(stack):
    """Write what the agent of an instance would."""
    aws.client("logs").create_log_stream(logGroupName=stack.log_group, logStreamName="i-1")
    event = {"timestamp": round(datetime.now(UTC).timestamp() * 1000), "message": '{"finished": 1}'}
    aws.client("logs").put_log_events(logGroupName=stack.log_group, logStreamName="i-1", logEvents=[event])


def look_after(found):
    """Ask for everything, and decide about the dead letters."""
    found.said["results"] = run("results", "uploads/talk.wav").output
    found.said["results elsewhere"] = run("results", "in/call.wav", "--bucket", "calls").output
    found.said["status"] = run("status").output
    found.said["json"] = run("status", "--json").stdout
    found.said["count"] = run("backfill", "s3://calls/old/", "--count").stdout
    found.said["dlq"] = run("dlq", "list").stdout
    first, second = (line.split()[0] for line in found.said["dlq"].splitlines())
    found.said["dlq show"] = run("dlq", "show", first).stdout
    run("dlq", "redrive", first)
    found.said["dlq refusal"] = run("dlq", "drop", "--all", status=1).stderr  # nobody answers
    run("dlq", "drop", second, "--yes")
    found.said["dlq left"] = run("dlq", "list").output
    found.said["dlq none"] = run("dlq", "redrive", "--all").output + run("dlq", "drop", "--all").output
    found.said["logs"] = run("logs").output
    found.said["no logs"] = run("logs", "--minutes", 0).output


def hears_of(key):
    """Put an object into the stack's bucket, and return what comes into the live queue."""
    storage.store(f"s3://{BUCKET}/{key}", b"sound")
    source = sources.SqsSource(stacks.find(NAME, permissions.REGION).live_url, poll_seconds=1)
    heard = []
    while (delivery := source.receive()) is not None:
        heard += [upload.address for upload in delivery.uploads]
        delivery.finish()
    return heard


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


def test_a_rehearsal_shows_what_would_be_made_before_there_is_an_image(emulator, monkeypatch):
    """The first thing that a newcomer types: what is lacking is said, and the stack is shown nevertheless."""
    monkeypatch.setattr(changes, "PAUSES", (0.05,))
    monkeypatch.setattr(preflight, "CHECKS", preflight.CHECKS[:2])  # the emulator has neither quotas nor prices
    done = run("deploy", "--stack", "first", "--dry-run", status=1)
    assert "TO DO image            cannot read /transcribe/ami/latest: " in done.stdout
    assert "Add     Group                    AWS::AutoScaling::AutoScalingGroup" in done.stdout
    assert done.stderr == "Error: nothing was done: see image above\n"
    assert stacks.describe("first", permissions.REGION) is None


def test_without_an_answer_nothing_is_done(life):
    """An end of the input is a no, and leaves no more than a rehearsal."""
    assert life.said["refusal"].startswith(f"carry that out on {NAME} in us-east-1? [y/N]: ")
    assert life.said["refusal"].endswith("Error: nothing was done\n")


def test_a_deployment_tells_its_progress_and_where_things_are(life):
    """Each resource is named as it comes, and at the end the bucket that takes recordings."""
    assert "CREATE_COMPLETE              LiveQueue" in life.said["deploy"]
    assert f"bucket {BUCKET}\n" in life.said["deploy"]


def test_a_second_deployment_changes_nothing(life):
    """What is not given stays as it is."""
    assert "nothing changes" in life.said["again"]
    assert "UPDATE" not in life.said["again"]


def test_a_change_changes_what_it_must(life):
    """A topic lets the role publish, and touches neither bucket nor queues."""
    assert "UPDATE_COMPLETE" in life.said["change"]
    assert not [line for line in life.said["change"].splitlines() if line.startswith("Modify") and "Queue " in line]


def test_recordings_of_all_ways_in_are_transcribed_into_the_stacks_bucket(life):
    """The stack's own bucket, an attached one and a backfill have their results in one place."""
    found = (re.fullmatch(r"(.+)/[0-9a-f]{16}/transcript\.json", path) for path in life.objects)
    done = {path[1] for path in found if path}
    assert done == {"results/uploads/talk.wav", "results/in/call.wav", "results/old/call.wav"}
    assert "COMPLETED" in life.said["results"]
    assert f"s3://{BUCKET}/results/in/call.wav/" in life.said["results elsewhere"]
    assert life.said["count"] == "1 of 1 done\n"


def test_a_backfill_of_nothing_says_so(life):
    """A prefix that was mistyped is no success."""
    assert life.said["nothing to send"].endswith("Error: s3://calls/nothing/ names no recording\n")


def test_an_attached_buckets_other_notifications_stay(life):
    """Ours comes beside theirs, once however often it is attached, and goes alone."""
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
    assert life.said["dlq refusal"].startswith("delete 1 of 1 messages for good? [y/N]: ")
    assert life.said["dlq left"] == "there are no dead letters\n"
    assert life.said["dlq none"] == 2 * life.said["dlq left"]  # and nobody is asked


def test_status_and_logs_say_what_is_there(life):
    """For people and for programs; a log line stands beside its instance."""
    assert "queue      dead     2 wait, 0 in work" in life.said["status"]
    assert "fleet      none: MaxWorkers is 0" in life.said["status"]
    assert json.loads(life.said["json"])["queues"][2] == {"role": "dead", "waiting": 2, "in_work": 0}
    assert life.said["logs"] == 'i-1 {"finished": 1}\n'
    assert life.said["no logs"] == "no line of the last 0 minutes: --minutes goes further back\n"


def test_the_bucket_outlives_the_stack_and_is_taken_up_again(life):
    """Recordings and results stay, unless all is to go."""
    assert f"{BUCKET} is kept" in life.said["destroy"]
    assert "Import  Bucket" in life.said["deploy beside the bucket"]
    assert f"{BUCKET} is removed" in life.said["destroy all"]


def test_a_bucket_that_was_taken_up_again_is_heard(life):
    """CloudFormation takes it up as it is, and the queue is another one: uploads are announced to that."""
    assert life.heard == [f"s3://{BUCKET}/uploads/new.wav"]


def test_an_attached_bucket_that_is_gone_keeps_nobody_from_removing_the_stack(life):
    """It is named and passed over."""
    assert "passed over: cannot change the notifications of gone: there is no such bucket" in life.said["destroy"]


S3 = "s3.amazonaws.com"


def event(bucket):
    """Return the circumstances in which S3 sends an event."""
    return {
        "aws:SourceArn": f"arn:aws:s3:::{bucket}",
        "aws:SourceAccount": permissions.ACCOUNT,
        "aws:SecureTransport": "true",
    }


def test_events_come_in_from_our_buckets_and_this_account_alone(life):
    """The deployed policy of the live queue lets S3 in for the stack's bucket and attached ones; no other does."""
    arn, guard = life.guards["live"]
    for bucket in (BUCKET, "calls"):
        assert allows(guard, S3, "sqs:SendMessage", arn, event(bucket))
        assert not allows(guard, S3, "sqs:SendMessage", arn, event(bucket) | {"aws:SourceAccount": "111111111111"})
    assert not allows(guard, S3, "sqs:SendMessage", arn, event("theirs"))
    assert not allows(guard, "sns.amazonaws.com", "sqs:SendMessage", arn, event(BUCKET))
    for name in ("backfill", "dead"):
        arn, guard = life.guards[name]
        assert not allows(guard, S3, "sqs:SendMessage", arn, event(BUCKET))


@pytest.mark.parametrize("name", ["bucket", "live", "backfill", "dead"])
def test_whoever_comes_without_tls_is_kept_out(life, name):
    """Whatever a role allows; with TLS the policy keeps no role out."""
    arn, guard = life.guards[name]
    role, action = f"arn:aws:iam::{permissions.ACCOUNT}:role/worker", "s3:GetObject" if name == "bucket" else "sqs:*"
    resource = f"{arn}/uploads/a" if name == "bucket" else arn
    assert denies(guard, role, action, resource, {"aws:SecureTransport": "false"})
    assert not denies(guard, role, action, resource, {"aws:SecureTransport": "true"})


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
            patched.setattr(fleet, "HEARD_SECONDS", 0.0)
            fleet.keep_zones_as_they_are(stack.group, stack.region)
            fleet.renew(stack.group, stack.region)
            fleet.let_instances_go(stack.group, stack.region)
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


def test_a_failed_change_says_why_and_leaves_the_stack_as_it_was(emulator, monkeypatch):
    """What was done of it is taken back, and the next deployment finds nothing to change."""
    monkeypatch.setattr(changes, "PAUSES", (0.05,))
    changes.carry_out(changes.prepare("steady", permissions.REGION, {"MaxWorkers": "0"}), lambda _event: None)
    before = stacks.find("steady", permissions.REGION)
    with pytest.raises(TranscriptionError, match="metric math") as failed:
        changes.carry_out(changes.prepare("steady", permissions.REGION, {"MaxWorkers": "2"}), lambda _event: None)
    assert str(failed.value).endswith("(the stack is UPDATE_ROLLBACK_COMPLETE)")
    assert replace(stacks.find("steady", permissions.REGION), status=before.status) == before
    assert changes.prepare("steady", permissions.REGION, {}).rows == ()
    changes.remove("steady", permissions.REGION, lambda _event: None)


def test_a_stack_that_cannot_be_prepared_leaves_nothing(emulator, monkeypatch):
    """CloudFormation has made an empty stack by the time that it says no: that is removed too."""
    monkeypatch.setattr(changes, "PAUSES", (0.05,))
    bucket = f"taken-{permissions.ACCOUNT}-{permissions.REGION}"
    body = {"Type": "AWS::S3::Bucket", "DeletionPolicy": "Delete", "Properties": {"BucketName": bucket}}
    client = aws.client("cloudformation", permissions.REGION)
    client.create_stack(StackName="owner", TemplateBody=json.dumps({"Resources": {"Theirs": body}}))
    client.get_waiter("stack_create_complete").wait(StackName="owner", WaiterConfig={"Delay": 1})
    with pytest.raises(TranscriptionError, match="cannot prepare the stack taken: "):
        changes.prepare("taken", permissions.REGION, {"MaxWorkers": "0"})
    assert stacks.describe("taken", permissions.REGION) is None
    client.delete_stack(StackName="owner")


def test_an_unknown_parameter_is_named_with_those_there_are(emulator):
    """A slip of the pen is found before anything is made."""
    with pytest.raises(TranscriptionError, match="has no parameter MaxWorker, but AttachedBuckets"):
        changes.prepare("typo", permissions.REGION, {"MaxWorker": "1"})
    assert stacks.describe("typo", permissions.REGION) is None
