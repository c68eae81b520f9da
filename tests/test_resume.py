from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pytest

from run_transcription import resume, storage
from run_transcription.records import Advance, Chunk, Row
from run_transcription.resume import NOTHING, Progress, load, restored

ROWS = tuple((Chunk(i * 100, i * 100 + 100), Row((1, i), "en", 0.5, 0.1, float("-inf"))) for i in range(3))


@pytest.fixture(params=["folder", "bucket"])
def address(request, tmp_path):
    """Name a place for progress, on disk and on S3."""
    root = str(tmp_path) if request.param == "folder" else f"s3://{request.getfixturevalue('stack').bucket}"
    return f"{root}/work/0123456789abcdef/rows.json"


def test_what_was_finished_is_there_for_the_next_try(address):
    """Rows come back as they were, and those of the next try are added to them."""
    first = Progress(address)
    first.add(Advance(10.0, ROWS[:1]))
    first.save()
    second = Progress(address, load(address))
    assert second.finished == dict(ROWS[:1])
    second.add(Advance(10.0, ROWS[:1]))  # they come by again, and are still the same
    second.add(Advance(20.0, ROWS[1:]))
    second.save()
    assert load(address) == Advance(20.0, ROWS)
    resume.forget(address)
    assert load(address) == NOTHING


def test_what_could_not_be_stored_is_stored_the_next_time(address, monkeypatch, caplog):
    """A moment without S3 costs nothing: all rows are there after the next saving, each once."""
    progress = Progress(address)
    progress.add(Advance(10.0, ROWS[:1]))
    with monkeypatch.context() as away:
        away.setattr(storage, "_put_object", fail)
        away.setattr(storage, "_put_file", fail)
        progress.save()
    assert "no route" in caplog.text
    assert not progress.kept
    progress.save()
    progress.add(Advance(20.0, ROWS[1:]))
    progress.save()
    assert load(address) == Advance(20.0, ROWS)


def fail(*_arguments, **_named):
    """Be a storage that is away."""
    raise OSError("no route")


def test_nothing_new_is_not_saved(address):
    """A job that has not come further leaves what is there alone."""
    Progress(address).save()
    assert not storage.exists(address)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"seconds": 1, "rows": [[1, 2]]}', '{"seconds": "x", "rows": []}']
)
def test_what_is_of_no_use_is_said_and_passed_over(address, content, caplog):
    """Anybody who may write there can't make a worker fail: it begins anew."""
    storage.store(address, content.encode())
    assert load(address) == NOTHING
    assert "of no use" in caplog.text


@dataclass(frozen=True)
class Inner:
    value: float
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    items: tuple[Inner, ...]
    pair: tuple[int, str]
    flag: bool = True


def test_records_in_records_come_back():
    """Whatever fields a row has one day, nested or with defaults, JSON and back is the same record."""
    outer = Outer((Inner(1.0, "é"), Inner(2.0)), (7, "x"), flag=False)
    assert restored(Outer, json.loads(json.dumps(dataclasses.asdict(outer)))) == outer


def test_fields_of_another_release_are_tolerated():
    """A field that is lacking has its default; one that nobody knows is passed over."""
    assert restored(Inner, {"value": 1, "colour": "red"}) == Inner(1.0)


@pytest.mark.parametrize("value", [{"value": "1"}, {"value": True}, {"value": 1.0, "name": 7}, [], {}])
def test_another_type_is_an_error(value):
    """Rows are input like any other."""
    with pytest.raises(TypeError):
        restored(Inner, value)
