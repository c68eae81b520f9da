from __future__ import annotations

import threading
import time

import pytest
from fakes import counts

from run_transcription import aws, leases
from run_transcription.leases import Heart, Keeper, Lease
from run_transcription.sources import SqsSource


@pytest.fixture
def queue_url(emulator):
    """Make a queue with one message."""
    url = aws.sqs().create_queue(QueueName=f"leases-{time.monotonic_ns()}")["QueueUrl"]
    aws.sqs().send_message(QueueUrl=url, MessageBody='{"bucket": "bucket", "key": "a.wav"}')
    return url


def received(queue_url, seconds):
    """Receive the message for so many seconds; None where it is hidden."""
    answer = aws.sqs().receive_message(QueueUrl=queue_url, VisibilityTimeout=seconds)
    return next(
        (Lease(aws.sqs(), queue_url, found["ReceiptHandle"], seconds) for found in answer.get("Messages", ())), None
    )


def test_a_message_stays_hidden_while_there_is_progress(queue_url):
    """A long job's message is renewed, and the thread that does it ends with the block."""
    with Keeper(2) as keeper:
        keeper.hold(received(queue_url, 2))
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            assert counts(queue_url) == (0, 1)
            time.sleep(0.1)
    assert "leases" not in {thread.name for thread in threading.enumerate()}


def test_a_job_that_hangs_loses_its_message(queue_url):
    """Without progress nothing is renewed: another worker has its turn."""
    with Keeper(2, Heart(stall_seconds=0.1)) as keeper:
        keeper.hold(received(queue_url, 2))
        time.sleep(2.5)
        assert counts(queue_url) == (1, 0)


def test_a_message_is_renewed_for_half_a_day_at_most(queue_url, monkeypatch):
    """SQS ends it at 12 h whatever one asks for: the last renewals would be errors."""
    monkeypatch.setattr(leases, "LONGEST_SECONDS", 1.0)
    with Keeper(2) as keeper:
        keeper.hold(received(queue_url, 2))
        time.sleep(3.5)
        assert counts(queue_url) == (1, 0)


def test_a_message_that_was_lost_is_not_deleted(queue_url):
    """Its time ran out, so it may be somebody else's by now: what was made is stored, the message stays."""
    late = received(queue_url, 1)
    time.sleep(1.1)
    late.delete()
    assert counts(queue_url) == (1, 0)


def test_a_slow_answer_counts_against_the_lease(queue_url):
    """The message is hidden from the receipt on, not from the moment at which we hear of it."""
    source = SqsSource(queue_url, Keeper(30))
    poll = source._poll

    def slow():
        message = poll()
        time.sleep(1.0)
        return message

    source._poll = slow
    before = time.monotonic()
    lease = source.receive().lease
    assert lease.taken - before < 0.5
    assert lease.until - before < 30.5


def test_a_refused_receipt_is_a_lost_message(queue_url):
    """Whoever has received it since must not lose it to the one before."""
    ours = received(queue_url, 30)
    ours.release()
    theirs = received(queue_url, 30)
    ours.lost = False
    ours.renew()
    assert ours.lost
    ours.release()
    assert counts(queue_url) == (0, 1)
    theirs.delete()
    assert counts(queue_url) == (0, 0)


def test_everything_is_given_back_at_once(queue_url):
    """A worker that ends leaves nothing hidden."""
    keeper = Keeper(30)
    keeper.hold(received(queue_url, 30))
    assert keeper.release_all() == 1
    assert counts(queue_url) == (1, 0)
    assert keeper.release_all() == 0


def test_a_queue_that_does_not_answer_loses_no_message(queue_url):
    """A network that is away for a moment is no refused receipt: the next renewal may go well."""
    lease = received(queue_url, 30)

    class Away:
        def change_message_visibility(self, **_):
            raise ConnectionError("no route")

    lease.client = Away()
    lease.renew()
    assert not lease.lost
