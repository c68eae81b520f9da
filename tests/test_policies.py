from __future__ import annotations

import pytest
from policies import allows, denies

QUEUE = "arn:aws:sqs:us-east-1:1:q"
DOCUMENT = {
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "s3.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": QUEUE,
            "Condition": {
                "StringEquals": {"aws:SourceAccount": "1"},
                "ArnEquals": {"aws:SourceArn": ["arn:aws:s3:::a", "arn:aws:s3:::b"]},
            },
        },
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "sqs:*",
            "Resource": QUEUE,
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        },
    ]
}
EVENT = {"aws:SourceAccount": "1", "aws:SourceArn": "arn:aws:s3:::b", "aws:SecureTransport": "true"}


def test_all_of_a_condition_must_hold():
    """Several operators are an and, several values of one key are an or, and a denial beats all."""
    assert allows(DOCUMENT, "s3.amazonaws.com", "sqs:SendMessage", QUEUE, EVENT)
    assert denies(DOCUMENT, "s3.amazonaws.com", "sqs:SendMessage", QUEUE, EVENT | {"aws:SecureTransport": "false"})


@pytest.mark.parametrize(
    "changed",
    [
        {"aws:SourceAccount": "2"},
        {"aws:SourceArn": "arn:aws:s3:::c"},
        {"aws:SecureTransport": "false"},
    ],
)
def test_whatever_differs_keeps_out(changed):
    """One circumstance that is another is enough."""
    assert not allows(DOCUMENT, "s3.amazonaws.com", "sqs:SendMessage", QUEUE, EVENT | changed)


def test_what_is_not_known_fulfils_no_condition():
    """A call that does not say whose it is, is nobody's."""
    unsaid = {key: value for key, value in EVENT.items() if key != "aws:SourceAccount"}
    assert not allows(DOCUMENT, "s3.amazonaws.com", "sqs:SendMessage", QUEUE, unsaid)
    assert not allows(DOCUMENT, "sns.amazonaws.com", "sqs:SendMessage", QUEUE, EVENT)
    assert not allows(DOCUMENT, "s3.amazonaws.com", "sqs:ReceiveMessage", QUEUE, EVENT)
    assert not allows(DOCUMENT, "s3.amazonaws.com", "sqs:SendMessage", f"{QUEUE}2", EVENT)
