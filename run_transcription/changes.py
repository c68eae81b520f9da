"""Changes of a stack: prepared and shown first, then carried out, with the reason in one line where that fails."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_transcription import aws, stacks
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TEMPLATE = Path(__file__).parent / "stack.yaml"  # a link to infra/ in a checkout, the file itself in a wheel
PAUSES = (0.2, 0.5, 1.0)  # seconds between looks at what CloudFormation does; then the last one for ever
BUCKET_NAME = 'BucketName: !Sub "${AWS::StackName}-${AWS::AccountId}-${AWS::Region}"'
MADE = frozenset({"CREATE_COMPLETE", "FAILED"})  # what a change set ends as
NOTHING = ("didn't contain changes", "No updates are to be performed")
CANCELLED = "Resource creation cancelled"  # what CloudFormation says of those beside the one that failed
REMOVABLE = frozenset({"ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"})


@dataclass(frozen=True, slots=True)
class Row:
    """One resource that a change set touches."""

    action: str
    resource: str
    kind: str
    replaced: bool


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """What would be done to a stack; without rows, nothing."""

    stack: str
    region: str
    id: str
    stack_id: str
    creates: bool
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """What CloudFormation says while it works."""

    resource: str
    status: str
    reason: str


def prepare(name: str, region: str, given: Mapping[str, str]) -> ChangeSet:
    """Make the change set from the template and parameters; those not given stay as they are.

    Raises TranscriptionError, also where the stack can't be changed now.
    """
    found = stacks.describe(name, region)
    status = found["StackStatus"] if found else "REVIEW_IN_PROGRESS"
    creates = status == "REVIEW_IN_PROGRESS"  # not there, or nothing of it but a change set
    if status in REMOVABLE:
        raise TranscriptionError(f"the stack {name} is {status}: run-transcription destroy removes it")
    if status.endswith("_IN_PROGRESS") and not creates:
        raise TranscriptionError(f"the stack {name} is being changed ({status}): wait for that")
    known = defaults(region).keys()
    if unknown := given.keys() - known:
        raise TranscriptionError(
            f"the template has no parameter {', '.join(sorted(unknown))}, but {', '.join(sorted(known))}"
        )
    kept = set() if creates else known & stacks.parameters_of(found).keys() - given.keys()
    parameters: list[Any] = [{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()]
    parameters += [{"ParameterKey": key, "UsePreviousValue": True} for key in sorted(kept)]
    client = aws.client("cloudformation", region)
    with aws.plainly(f"prepare the stack {name}"):
        made = _create(client, name, region, parameters, creates=creates)
        if reason := _reason_against(client, made.id):
            discard(made)
            if any(each in reason for each in NOTHING):
                return made
            raise TranscriptionError(f"cannot prepare the stack {name}: {reason}")
        return replace(made, rows=_rows(client, made.id))


def defaults(region: str) -> dict[str, str]:
    """Return the template's parameters as they are without a stack; raises TranscriptionError."""
    with aws.plainly("read the template"):
        found = aws.client("cloudformation", region).validate_template(
            TemplateBody=TEMPLATE.read_text(encoding="utf-8")
        )
    return {each["ParameterKey"]: each.get("DefaultValue", "") for each in found["Parameters"]}


def discard(changes: ChangeSet) -> None:
    """Remove a change set that is not carried out, and the empty stack that was made for it."""
    client = aws.client("cloudformation", changes.region)
    with aws.plainly(f"remove the change set of {changes.stack}"):
        client.delete_change_set(ChangeSetName=changes.id)
        if changes.creates:
            client.delete_stack(StackName=changes.stack_id)


def carry_out(changes: ChangeSet, say: Callable[[Event], None]) -> None:
    """Carry out a change set and wait for its end; raises TranscriptionError with the first reason of a failure."""
    client = aws.client("cloudformation", changes.region)
    seen = {each["EventId"] for each in _events(client, changes.stack_id)}
    with aws.plainly(f"change the stack {changes.stack}"):
        client.execute_change_set(ChangeSetName=changes.id)
    wanted = "CREATE_COMPLETE" if changes.creates else "UPDATE_COMPLETE"
    status, reason = _follow(client, changes.stack_id, seen, say)
    if status != wanted:
        now = "nothing of it is left" if status == "DELETE_COMPLETE" else f"the stack is {status}"
        raise TranscriptionError(f"cannot change the stack {changes.stack}: {reason or 'for no stated reason'} ({now})")


def remove(name: str, region: str, say: Callable[[Event], None]) -> None:
    """Delete a stack and wait for its end; raises TranscriptionError with the first reason of a failure."""
    found = stacks.describe(name, region)
    if found is None:
        return
    client = aws.client("cloudformation", region)
    seen = {each["EventId"] for each in _events(client, found["StackId"])}
    with aws.plainly(f"delete the stack {name}"):
        client.delete_stack(StackName=found["StackId"])
    status, reason = _follow(client, found["StackId"], seen, say)
    if status != "DELETE_COMPLETE":
        raise TranscriptionError(f"the stack {name} is {status}: {reason or 'for no stated reason'}")


def _body(name: str, region: str) -> str:
    """Return the template with the bucket's name written out: only so does CloudFormation find one that is there."""
    text = TEMPLATE.read_text(encoding="utf-8")
    account = aws.client("sts", region).get_caller_identity()["Account"]
    if BUCKET_NAME not in text:
        raise TranscriptionError(f"{TEMPLATE} has another bucket name than {BUCKET_NAME}")
    return text.replace(BUCKET_NAME, f"BucketName: {name}-{account}-{region}")


def _pauses() -> Iterator[float]:
    return chain(PAUSES, repeat(PAUSES[-1]))


def _create(client: Any, name: str, region: str, parameters: list[Any], *, creates: bool) -> ChangeSet:
    """Let CloudFormation begin to make a change set; its rows come later."""
    made = client.create_change_set(
        StackName=name,
        ChangeSetName=f"c-{uuid.uuid4()}",
        ChangeSetType="CREATE" if creates else "UPDATE",
        TemplateBody=_body(name, region),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=parameters,
        ImportExistingResources=True,  # the bucket that an earlier stack of this name has left
        **({"OnStackFailure": "DELETE"} if creates else {}),
    )
    return ChangeSet(name, region, made["Id"], made["StackId"], creates, ())


def _reason_against(client: Any, change_set: str) -> str:
    """Wait until a change set is made; return why it can't be, "" where it can."""
    pauses = _pauses()
    while (found := client.describe_change_set(ChangeSetName=change_set))["Status"] not in MADE:
        time.sleep(next(pauses))
    return "" if found["Status"] == "CREATE_COMPLETE" else found.get("StatusReason") or "for no stated reason"


def _rows(client: Any, change_set: str) -> tuple[Row, ...]:
    pages = client.get_paginator("describe_change_set").paginate(ChangeSetName=change_set)
    changes = [each["ResourceChange"] for page in pages for each in page["Changes"]]
    return tuple(
        Row(each["Action"], each["LogicalResourceId"], each["ResourceType"], each.get("Replacement") == "True")
        for each in changes
    )


def _follow(client: Any, stack_id: str, seen: set[str], say: Callable[[Event], None]) -> tuple[str, str]:
    """Tell each new event until the stack rests; return its status, and why the first resource failed."""
    reason = ""
    for pause in _pauses():
        with aws.plainly("follow the stack"):
            status = client.describe_stacks(StackName=stack_id)["Stacks"][0]["StackStatus"]
        for each in reversed(_events(client, stack_id)):
            if each["EventId"] in seen:
                continue
            seen.add(each["EventId"])
            why = each.get("ResourceStatusReason", "")
            event = Event(each["LogicalResourceId"], each["ResourceStatus"], why)
            say(event)
            if event.status.endswith("FAILED") and not reason and CANCELLED not in why:
                reason = f"{event.resource}: {why}"
        if not status.endswith("_IN_PROGRESS"):
            break
        time.sleep(pause)
    return status, (_invalid(client, stack_id) or reason) if "DescribeEvents" in reason else reason


def _invalid(client: Any, stack_id: str) -> str:
    """Return what CloudFormation found wrong before it began, which its other events only allude to."""
    with aws.plainly("read the stack's events"):
        found = client.describe_events(StackName=stack_id, Filters={"FailedEvents": True})["OperationEvents"]
    return next((str(each["ValidationStatusReason"]) for each in found if each.get("ValidationStatusReason")), "")


def _events(client: Any, stack_id: str) -> list[Any]:
    with aws.plainly("read the stack's events"):
        pages = client.get_paginator("describe_stack_events").paginate(StackName=stack_id)
        return [each for page in pages for each in page["StackEvents"]]
