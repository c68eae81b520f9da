"""viewer: one page that plays, follows, jumps and searches, and takes nothing for more than text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import browser
from fakes import tone
from test_writers import completed, failed, segment, written

from run_transcription import viewer
from run_transcription.audit import Quality, Span
from run_transcription.records import Job, Word
from tools import require_tool

EVIL = (
    """ <script>alert("x")</script> 'quotes' & </script><!-- <img src=x onerror=alert(1)> --> \u2028 ${1} {{title}}"""
)


def spoken(text, start, rate=0.5, probability=0.9):
    """Return a segment whose words begin one after the other."""
    words = tuple(
        Word(f" {word}", start + i * rate, start + (i + 1) * rate, probability - 0.1 * (i % 6))
        for i, word in enumerate(text.split())
    )
    return segment("".join(word.word for word in words), words[0].start, words[-1].end, words=words)


def page_data(page: bytes):
    """Return the JSON that stands in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.decode(), re.DOTALL)
    return json.loads(found[1])


def result_of(path: Path, recording: Path, *segments, uncovered=()):
    """Return a result whose page lies at a path, of a recording."""
    made = completed(*segments)
    quality = Quality(0.9, uncovered, needs_review=bool(uncovered), reasons=("speech_without_text",) * bool(uncovered))
    transcript = replace(made.transcript, quality=quality, duration=30.0)
    return replace(made, job=Job(str(recording), str(path.with_suffix(""))), transcript=transcript)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser for all tests of this file."""
    with browser(require_tool("chromium"), tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def shown(chromium, tmp_path):
    """Show segments with half a minute of sound; return the browser."""

    def show(*segments, uncovered=(), query=""):
        sound = tone(tmp_path / "a tone: #1 %é.wav", 30)
        path = tmp_path / "results" / "page.html"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(viewer.page(result_of(path, sound, *segments, uncovered=uncovered)))
        chromium.requests.clear()
        chromium.said.clear()
        chromium.open(path, query)
        return chromium

    return show


TYPED = (
    "(() => {{ const box = document.getElementById('search'); box.value = '{}'; "
    "box.dispatchEvent(new Event('input')); }})()"
)
TALK = (spoken("alpha bravo charlie delta", 1.0), spoken("echo Bravo foxtrot", 5.0), spoken("golf hotel", 20.0))
NOW = "(document.querySelector('[aria-current] p')?.textContent ?? '')"
READY = "document.getElementById('audio').readyState > 0"
AT = "document.getElementById('audio').currentTime"


def test_what_comes_from_outside_is_data():
    """Nothing of a text or a name can end the script element that it stands in; it is read back unchanged."""
    result = completed(segment(EVIL))
    result = replace(result, job=replace(result.job, recording=f"s3://bucket/{EVIL.replace('/', '')}.wav"))
    page = viewer.page(result)
    assert page.count(b"<script") == page.count(b"</script>") == 2
    assert b"alert(" not in re.sub(rb'<script type="application/json".*?</script>|<title>.*?</title>', b"", page)
    data = page_data(page)
    assert "".join(word for word, _, _ in data["segments"][0]["words"]).split() == EVIL.split()
    assert "<" not in page.decode().split("<title>")[1].split("</title>")[0]


def test_a_failed_result_and_an_odd_name_have_a_page():
    """No transcript, or a name that is no text, is no error."""
    assert b"No speech was found" in written("html", failed())
    odd = replace(completed(), job=Job("/talks/\udcff.wav", "/talks/out/x"))
    assert written("html", odd)


@pytest.mark.parametrize(
    ("recording", "results", "address"),
    [
        (
            "s3://b/uploads/a b+é.mp3",
            "s3://b/results/uploads/a b+é.mp3/1f/transcript",
            "../../../../uploads/a%20b%2B%C3%A9.mp3",
        ),
        ("s3://b/a:b.mp3", "s3://b/results/a:b.mp3/1f/transcript", "../../../a%3Ab.mp3"),
        ("s3://b/a.mp3", "s3://other/results/a.mp3/1f/transcript", ""),
        ("s3://b/x/../a.mp3", "s3://b/results/0/1f/transcript", ""),
        ("s3://b/a.mp3", "/talks/a", ""),
        ("/talks/x/a.mp3", "/talks/texts/a", "../x/a.mp3"),
        ("/talks/a?b#c.mp3", "/talks/a", "a%3Fb%23c.mp3"),
    ],
)
def test_the_page_finds_the_recording_beside_it(recording, results, address):
    """By a relative address, quoted, and only where both lie in one place."""
    assert viewer.address_of(Job(recording, results)) == address


def test_it_plays_follows_and_jumps(shown):
    """A click on a word plays from there; the segment that is heard is marked, and the next one after it."""
    page = shown(*TALK)
    page.wait(READY)
    assert page.ask("document.getElementById('audio').duration") == pytest.approx(30, abs=0.1)
    page.click(".word", 5)
    page.wait(f"{AT} > 5.5")
    assert page.ask(NOW) == "echo Bravo foxtrot"
    assert page.ask("document.querySelector('.word.now').textContent") in {"Bravo", "foxtrot"}
    assert not page.ask("document.getElementById('audio').paused")
    page.click("li button", 2)
    page.wait(f"{AT} >= 20 && {NOW} === 'golf hotel'")
    page.ask("document.getElementById('audio').pause()")
    assert page.ask("document.querySelectorAll('[aria-current]').length") == 1


def test_it_follows_two_channels(shown):
    """A short answer inside a long sentence is marked while it is heard, and the sentence again behind it."""
    long = replace(spoken("alpha bravo charlie delta echo foxtrot golf hotel", 1.0, rate=1.0), channel=1)
    short = replace(spoken("india", 3.2, rate=0.3), channel=2)
    page = shown(long, short)
    page.wait(READY)
    for seconds, word in ((2.1, "bravo"), (3.3, "india"), (6.1, "foxtrot")):
        page.ask(f"document.getElementById('audio').currentTime = {seconds}")
        page.wait(f"document.querySelector('.word.now')?.textContent === '{word}'")
        assert word in page.ask(NOW)
    assert page.ask(NOW).startswith("channel 1")


def test_a_translation_is_read_aloud_in_english():
    """The text's language is said, not the one that was heard: the page's, and each segment's."""
    said = completed(segment(" Good morning.", language="ja"))
    heard = replace(said, transcript=replace(said.transcript, language="ja"))
    for task, language in (("translate", "en"), ("transcribe", "ja")):
        page = viewer.page(replace(heard, transcript=replace(heard.transcript, task=task)))
        assert f'<html lang="{language}">' in page.decode()
        assert page_data(page)["segments"][0]["language"] == language


def test_it_searches(shown):
    """Every match is counted and marked whatever its case; Enter goes from one to the next and jumps there."""
    page = shown(*TALK)
    page.wait(READY)
    page.press("/", 191, "/")
    for letter in "bravo":
        page.press(letter, ord(letter.upper()), letter)
    assert page.ask("document.getElementById('search').value") == "bravo"
    assert page.ask("document.getElementById('count').textContent") == "2 found"
    assert page.ask("[...document.querySelectorAll('.hit')].map((each) => each.textContent)") == ["bravo", "Bravo"]
    page.press("Enter", 13, "\r")
    page.press("Enter", 13, "\r")
    assert page.ask("document.getElementById('count').textContent") == "2 of 2"
    page.wait(f"Math.abs({AT} - 5.5) < 0.01")
    page.ask(TYPED.format("delta echo"))
    assert page.ask("document.getElementById('count').textContent") == "0 found"
    page.ask(TYPED.format("charlie  delta"))
    assert page.ask("[...document.querySelectorAll('.hit')].map((each) => each.textContent)") == ["charlie", "delta"]


def test_it_can_be_used_by_keyboard(shown):
    """Arrows move between segments and words, Enter plays from a word, space stops; each control has a name."""
    page = shown(*TALK)
    page.wait(READY)
    page.ask("document.querySelector('li button').focus()")
    page.press("ArrowDown", 40)
    page.press("ArrowRight", 39)
    page.press("ArrowRight", 39)
    assert page.ask("document.activeElement.textContent") == "Bravo"
    page.press("Enter", 13, "\r")
    page.wait(f"{AT} > 5.5 && !document.getElementById('audio').paused")
    page.ask("document.activeElement.blur()")
    page.press(" ", 32, " ")
    page.wait("document.getElementById('audio').paused")
    named = "(each) => each.ariaLabel || each.labels?.length"
    assert page.ask(f"[...document.querySelectorAll('button, input, audio, ol')].every({named})")
    assert page.ask("document.querySelector('li button').ariaLabel") == "Play from 00:01"


def test_doubt_and_lost_speech_are_seen(shown):
    """A word is the more shaded the less sure it is; speech without text has its own line at its time."""
    page = shown(*TALK, uncovered=(Span(10.0, 12.5),))
    shades = page.ask(
        "[...document.querySelectorAll('.word')].slice(0, 4).map((each) => getComputedStyle(each).backgroundColor)"
    )
    alphas = [float(shade.rstrip(")").rpartition(",")[2]) for shade in shades]
    assert alphas == sorted(alphas)
    assert alphas[0] < alphas[-1]
    rows = page.ask("[...document.querySelectorAll('li p')].map((each) => each.textContent)")
    assert rows == ["alpha bravo charlie delta", "echo Bravo foxtrot", "speech without text, 2.5 s", "golf hotel"]
    assert "speech without text" in page.ask("document.getElementById('legend').textContent")
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 249)"


def test_evil_text_stays_text(shown):
    """A transcript with scripts, quotes and comments in it is shown letter by letter, and runs nothing."""
    page = shown(segment(EVIL, 1.0, 4.0), segment(" second", 5.0, 6.0, words=(Word(" second", 5.0, 6.0, 1.0),)))
    assert " ".join(page.ask("document.querySelector('li p').textContent").split()) == " ".join(EVIL.split())
    assert page.ask("document.querySelectorAll('main script, main img').length") == 0
    assert page.ask("document.scripts.length") == 2
    assert page.said == []


def test_it_asks_nobody_for_anything(shown):
    """Its own file and the recording are all that is opened; a given address is tried, and what fails is said."""
    page = shown(*TALK)
    page.wait(READY)
    opened = {address for address in page.requests if not address.startswith("data:")}
    assert len(opened) == 2
    assert all(address.startswith("file:") for address in opened)
    assert page.ask("fetch('https://example.org/').then(() => 'asked', () => 'refused')") == "refused"
    shown(*TALK, query="#audio=nowhere.wav?x=1&y=2")
    page.wait("!document.getElementById('trouble').hidden")
    assert page.ask("document.getElementById('audio').src").endswith("/nowhere.wav?x=1&y=2")


def test_pictures_can_be_looked_at(shown, tmp_path):
    """Light and dark are different pages; the pictures are kept where TRANSCRIBE_PICTURES says."""
    import os

    page = shown(*TALK, uncovered=(Span(10.0, 12.5),))
    page.wait(READY)
    folder = Path(os.environ.get("TRANSCRIBE_PICTURES", tmp_path))
    for name, dark in (("light", False), ("dark", True)):
        page.picture(folder / f"viewer-{name}.png", dark=dark)
    assert (folder / "viewer-light.png").read_bytes() != (folder / "viewer-dark.png").read_bytes()
