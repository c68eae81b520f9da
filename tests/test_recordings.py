from __future__ import annotations

import os

import pytest

from run_transcription import recordings
from run_transcription.errors import TranscriptionError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.mp3", "A.WAV", "notes.txt", ".hidden.wav", "deep/er/c.opus", ".git/d.wav", "no-suffix"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_a_folder_gives_what_could_be_audio_in_it(folder):
    """All levels are searched; hidden files and folders, and what isn't audio by its name, are left out."""
    found = [os.path.relpath(path, folder) for path in recordings.find([str(folder)])]
    assert found == ["A.WAV", "b.mp3", "deep/er/c.opus"]


def test_a_file_that_is_named_is_taken_whatever_its_name(folder):
    """What a person names is tried, and what isn't there stays, so that it can fail by its name."""
    named = [str(folder / name) for name in ("notes.txt", ".hidden.wav", "none.wav")]
    assert recordings.find(named) == named


def test_a_recording_named_twice_is_taken_once(folder):
    """A file, the same file by another path and the folder that holds it are one recording."""
    again = os.path.join(folder, "deep", "..", "b.mp3")  # noqa: PTH118 - a Path would resolve nothing here either
    assert len(recordings.find([str(folder / "b.mp3"), again, str(folder)])) == 3


def test_nothing_to_transcribe_is_an_error(tmp_path):
    """A folder without recordings is said, not passed over."""
    with pytest.raises(TranscriptionError, match="no recording"):
        recordings.find([str(tmp_path)])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/b.mp3"], ["b"]),
        (["a/b.v1.mp3", "a/b.v2.mp3"], ["b.v1", "b.v2"]),
        (["a/b.mp3", "c/b.mp3", "c/d.mp3"], ["a/b", "c/b", "d"]),
        (["a/b.mp3", "a/b.wav"], ["b.mp3", "b.wav"]),
        (["a/b.mp3", "c/B.mp3"], ["a/b", "c/B"]),
        (["x/b.mp3", "x/b.wav", "x/b.mp3.ogg"], ["b.mp3", "b.wav", "b.mp3.ogg"]),
        (["s3://one/k/b.mp3", "s3://two/k/b.mp3"], ["one/k/b", "two/k/b"]),
        (["s3://b/p/q/x.wav", "s3://b/p/q/../../x.wav"], ["x", "__/__/x"]),
        (["s3://b/.."], ["__"]),
        ([".hidden"], [".hidden"]),
    ],
)
def test_names_of_results(paths, names):
    """A result bears its recording's name; names that would meet keep folder, then extension."""
    assert recordings.names(paths) == names


def test_names_never_meet(tmp_path):
    """No two recordings share a name, not even on a file system that ignores case."""
    paths = [f"{folder}/{stem}{suffix}" for folder in ("", "a", "a/a") for stem in "aAb" for suffix in (".mp3", ".a")]
    names = recordings.names([str(tmp_path / path) for path in paths])
    assert len({name.casefold() for name in names}) >= len({path.casefold() for path in paths})
    assert not any(name.startswith(("/", "..")) for name in names)


@pytest.mark.parametrize(
    "keys", [("a/x.wav", "a//x.wav"), ("../x.wav", "__/x.wav"), ("a/./x.wav", "a/x.wav"), ("x.wav", "../../x.wav")]
)
def test_keys_that_are_no_paths_have_names_of_their_own(keys, tmp_path):
    """Whatever S3's keys hold, two recordings never share a file, and none leaves the folder of results."""
    names = recordings.names([f"s3://bucket/p/q/{key}" for key in keys])
    places = {os.path.realpath(tmp_path / f"{name}.txt") for name in names}
    assert len(places) == 2
    assert all(place.startswith(f"{tmp_path}/") for place in places)


def test_what_cannot_be_looked_at_fails_by_its_name(emulator, tmp_path):
    """A bucket that isn't there, an address without one, a name too long for the system: the others go on."""
    (tmp_path / "good.wav").touch()
    named = [str(tmp_path / "good.wav"), "s3://no-such-bucket/x.wav", "s3://", str(tmp_path / f"{'n' * 300}.wav")]
    assert recordings.find(named) == named


def test_names_do_not_meet_in_the_file_of_another_format():
    """`b.aws.json` is b's file in AWS's shape, and would be the json of b.aws too."""
    assert recordings.names(["/x/b.mp3", "/x/b.aws.mp3"]) == ["b.mp3", "b.aws.mp3"]
