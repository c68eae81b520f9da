"""Tests of the form that benchmarks share, and of the documents that are made from their records."""

from __future__ import annotations

import json

import charts
import common
import fixed_tokens
import numpy as np
import pytest
import quality
import residency
import sizing
import summary
import throughput
import tiny_whisper
import verdicts
from loads import Load
from scenes import Speech, demo_speech
from transcribers import Text
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from run_transcription import optimized_loader
from run_transcription.records import Decoding, ModelSpec


def test_the_document_holds_what_the_records_say():
    """No number of a table was written by hand, and none is older than its record."""
    document = summary.DOCUMENT.read_text(encoding="utf-8")
    assert summary.rendered(document, summary.RESULTS) == document
    assert "<!-- loading: begin -->" in document


def test_the_sizing_page_holds_what_was_measured_and_reckons_right():
    """Its table is made from a record, and each row is the page's own formula."""
    document = summary.SIZING.read_text(encoding="utf-8")
    assert summary.rendered(document, summary.RESULTS) == document
    rows = [line.strip("| ").split(" | ") for line in sizing.table(summary.RESULTS).splitlines()[2:]]
    measured, unknown, *examples = rows
    assert float(measured[0]) == sizing.measured(summary.RESULTS)[0]
    assert unknown[0] == "not measured"
    for rate, _, needed, time, cheap, dear in (measured, *examples):
        exact = 1_000_000 * 5 / 60 / (float(rate) * 0.9)
        assert float(needed.replace(",", "")) == pytest.approx(exact, abs=0.51)
        assert float(time.split()[0]) == pytest.approx(exact / 20, abs=0.051)
        assert float(cheap[1:].replace(",", "")) * 2 == pytest.approx(float(dear[1:].replace(",", "")), abs=1.01)


def test_the_pictures_are_those_of_the_records(tmp_path):
    """A picture drawn anew from its record is the one that is kept, byte for byte."""
    for name in charts.CHARTS:
        record = json.loads((summary.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        charts.draw(record, tmp_path / "again.svg")
        assert (tmp_path / "again.svg").read_bytes() == (summary.RESULTS / f"{name}.svg").read_bytes()


def test_every_record_has_every_timing():
    """A median is that of the timings beside it, and what has none says why."""
    kept = [path for path in summary.RESULTS.glob("*.json") if not path.stem.endswith("-quick")]
    assert kept
    for path in kept:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert {"name", "commit", "command", "machine", "versions", "conditions", "rows", "bars"} == record.keys()
        for row in record["rows"]:
            assert row["seconds"] or row["error"]
            assert row["median"] == common.row({}, row["seconds"]).median


def test_a_record_is_rendered(tmp_path):
    """Times, errors and bars come out; a place without a record says that nothing was measured."""
    rows = [common.row({"way": "ours"}, [0.5, 0.25, 1.0]), common.row({"way": "a|peer"}, [], "no such library")]
    record = common.record("some", {}, rows, [common.at_most("fast", [2.0], 1.3)], ["torch"])
    common.write(record, tmp_path / "some.json", quick=False)
    text = "<!-- some: begin -->\nold\n<!-- some: end -->\n<!-- other: begin -->\nold\n<!-- other: end -->\n"
    found = summary.rendered(text, tmp_path)
    assert "| ours | 0.500 | 0.250 | 1.000 |" in found
    assert "| a\\|peer | no such library |  |  |" in found
    assert "| fast | 2.0 | 1.3 | missed |" in found
    assert found.endswith("<!-- other: begin -->\nNot measured yet.\n<!-- other: end -->\n")
    assert summary.rendered(found, tmp_path) == found


@pytest.mark.parametrize(
    ("values", "floor", "verdict"),
    [
        ([1.0, 1.2, 9.0], [1.0, 1.1], "met"),
        ([1.4, 1.2, 1.4], [1.0, 1.1], "missed"),
        ([1.0], [1.0, 1.3], "not measurable here"),
        ([], [], "not measurable here"),
    ],
)
def test_a_bar_is_judged_by_the_median(values, floor, verdict):
    """The median counts; where the floor spreads over a quarter, or nothing ran, nothing is judged."""
    assert common.at_most("bar", values, 1.3, floor).verdict == verdict


def test_what_is_in_memory_is_known(tmp_path):
    """A file that was just read is resident in whole, and after its eviction not at all."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1_000_000))
    assert residency.resident(path) == -(-1_000_000 // 4096)
    if not residency.evict(path):
        pytest.skip("this file system keeps its files in memory")
    path.read_bytes()
    assert residency.resident(path) == -(-1_000_000 // 4096)


SAID = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")


@pytest.mark.parametrize(
    ("written", "errors", "lost", "doubled", "at_seams"),
    [
        ("alpha bravo charlie delta echo foxtrot golf hotel", 0, 0, 0, 0),
        ("alpha bravo charlie delta foxtrot golf hotel", 1, 1, 0, 1),
        ("alpha bravo charlie delta echo echo foxtrot golf hotel", 1, 0, 1, 1),
        ("bravo charlie delta echo foxtrot golf hotel hotel", 2, 1, 1, 0),
        ("alpha bravo charlie delta kilo foxtrot golf hotel", 1, 0, 0, 0),
        ("", 8, 8, 0, 2),
    ],
)
def test_words_are_counted_where_they_were_said(written, errors, lost, doubled, at_seams):
    """Words that are lost or doubled count at a seam in the four seconds behind the beginning of a chunk."""
    spoken = [demo_speech.Spoken(word, 2.0 * i, 2.0 * i + 0.5) for i, word in enumerate(SAID)]
    speech = Speech(np.zeros(16 * 16_000, np.float32), (tuple(spoken[:4]), tuple(spoken[4:])), "en")
    found = quality.score(speech, Text(written, [(0.1, 6.4), (8.0, 14.5)], [8.0]))
    assert (found.errors, found.words, found.lost, found.doubled) == (errors, 8, lost, doubled)
    assert found.at_seams == at_seams
    assert found.boundary == pytest.approx(0.05)


def test_words_written_on_silence_are_counted():
    """A recording in which nobody speaks has no word that could be lost, and each that is written was invented."""
    found = quality.score(Speech(np.zeros(9, np.float32), (), None), Text(" thank you", [(0.0, 1.0)], []))
    assert (found.words, found.lost, found.doubled, found.written) == (0, 0, 2, 2)


@pytest.mark.parametrize("tokens", [9, 20])
def test_a_window_gives_a_fixed_number_of_tokens(tmp_path, tokens):
    """Whatever is heard, in a batch and alone, ours and transformers' generate decode the same ids."""
    vocabulary = tiny_whisper.tokenizer()
    words = list(range(30, 30 + tokens - 2))
    first, last, end = (vocabulary.token_to_id(name) for name in ("<|0.00|>", "<|30.00|>", "<|endoftext|>"))
    ids = [first, *words, last, end]
    folder = fixed_tokens.save((64, 1, 1, 2, 80, 3), vocabulary, ids, tmp_path / "model")
    windows = [np.random.default_rng(i).standard_normal(160_000 * i).astype(np.float32) * 0.1 for i in (1, 2, 3)]
    engine = optimized_loader.load(ModelSpec(str(folder), dtype="float32", device="cpu", home=tmp_path)).engine
    assert [list(row.tokens) for row in engine.transcribe(windows, Decoding(language="en")).rows] == [ids[:-1]] * 3
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    heard = WhisperFeatureExtractor.from_pretrained(folder)(windows, sampling_rate=16_000, return_tensors="pt")
    asked = {"language": "en", "task": "transcribe", "return_timestamps": True}
    for part in (heard.input_features, heard.input_features[:1]):
        found = model.generate(part, **asked, force_unique_generate_call=True)
        assert found[:, fixed_tokens.PROMPT :].tolist() == [ids] * len(part)


def test_windows_are_counted_in_a_text():
    """A text that others have spaced otherwise still counts, and what is no window's text is told."""
    assert throughput.counted(" one two  one two", " one two") == (2, 0)
    assert throughput.counted("one two three one twoo", " one two") == (2, 6)
    assert throughput.counted("", " one two") == (0, 0)


def test_ours_is_judged_by_the_best_peer_of_each_round():
    """The ratio is that of one round, the peer may be another one in the next, and failed rounds don't count."""
    found = {
        "ours, float32": [{"seconds": 2.0}, {"seconds": 3.0}, {"seconds": 1.0}],
        "pipeline, float32": [{"seconds": 4.0}, {"seconds": 9.0}, {"error": "killed"}],
        "whisper.cpp, float32": [{"seconds": 8.0}, {"seconds": 6.0}, {"error": "killed"}],
        "generate, batched, float32": [{"seconds": 0.1}] * 3,
    }
    assert verdicts.fastest(found, verdicts.PEERS) == [4.0, 6.0, None]
    assert verdicts.fastest(found, verdicts.PEERS, "int8") == []
    ours = found["ours, float32"]
    both = {f"ours{short}, {dtype}": ours for short in ("", " --short-windows") for dtype in ("float32", "bfloat16")}
    long, short = verdicts.judge("tiny", Load(1000, 4.0), found | both)
    assert (long.value, long.limit, long.verdict) == (0.5, 0.5, "met")
    assert (short.value, short.limit, short.verdict) == (0.5, 0.25, "missed")
    assert verdicts.judge("turbo", Load(1, 120.0), found) == []
