"""seams: two chunks that overlap become one text, in which no word is lost or doubled."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letters import Words, ids, segment

from run_transcription import seams
from run_transcription.audit import Span

OVERLAP = Span(26, 30)


def spoken(words, first, last, *, shift=0.0):
    """Return the segments of a chunk that hears words of half a second from `first` s to before `last` s.

    Each segment is eight words long; times are wrong by `shift`.
    """
    inside = [(i, word) for i, word in enumerate(words) if first <= i / 2 and (i + 1) / 2 <= last]
    groups = [inside[i : i + 8] for i in range(0, len(inside), 8)]
    return tuple(
        segment(group[0][0] / 2 + shift, (group[-1][0] + 1) / 2 + shift, *(word for _, word in group))
        for group in groups
    )


def joined(left, right, overlap=OVERLAP):
    """Join, and return the words and whether both sides agree."""
    found = seams.join(left, right, overlap, Words())
    times = [time for each in (*found.left, *found.right) for time in (each.start, each.end)]
    assert all(before <= after + 1e-3 for before, after in pairwise(times))
    return ids(found.left) + ids(found.right), found.agree


@given(
    seed=st.integers(0, 9999),
    shifts=st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)),
    edges=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_no_word_is_lost_or_doubled(seed, shifts, edges):
    """Words that both sides heard come out once and in order, digits for example, of which many are said twice.

    Times may be wrong by 0.2 s on each side, and the words at an edge may not have been heard.
    """
    words = random.Random(seed).choices(range(10), k=120)  # noqa: S311 - chance without secrets
    left = spoken(words, 0, 30 - edges[0] / 2, shift=shifts[0])
    right = spoken(words, 26 + edges[1] / 2, 60, shift=shifts[1])
    assert joined(left, right) == (words, True)


@given(
    seed=st.integers(0, 9999),
    shared=st.sampled_from([1.25, 1.5, 2.5]),
    shifts=st.tuples(st.floats(-0.05, 0.05), st.floats(-0.05, 0.05)),
)
def test_short_chunks_are_joined_too(seed, shared, shifts):
    """Chunks of 5 s, as where the language changes, share little more than a second: nobody can agree for longer."""
    words = random.Random(seed).choices(range(10), k=40)  # noqa: S311 - chance without secrets
    left, right = spoken(words, 0, 6 + shared, shift=shifts[0]), spoken(words, 6, 20, shift=shifts[1])
    assert joined(left, right, Span(6, 6 + shared)) == (words, True)


def test_a_word_cut_at_an_edge_is_not_taken():
    """What a side makes of the half word at its edge is left out: the other side heard it whole."""
    words = list(range(120))
    left, right = spoken(words, 0, 29.5), spoken(words, 26.5, 60)
    left = (*left, segment(29.6, 30, 900))
    right = (segment(26, 26.4, 901), *right)
    assert joined(left, right) == (words, True)


def test_sides_that_differ_do_not_agree():
    """Where one side heard other words in the middle of the overlap, it says so, and cuts by time."""
    words = list(range(120))
    other = [word + 500 if 52 <= i <= 60 else word for i, word in enumerate(words)]
    found, agree = joined(spoken(words, 0, 30), spoken(other, 26, 60))
    assert not agree
    assert len(found) == len(words)


def test_a_word_that_one_side_lacks_is_no_agreement():
    """A side that left a word out in the middle is not believed."""
    words = list(range(120))
    left = spoken(words, 0, 30)
    right = tuple(spoken(words, 26, 27.9)) + tuple(spoken(words, 28.5, 60))
    assert joined(left, right)[1] is False


@pytest.mark.parametrize("sides", [(True, False), (False, True), (False, False)])
def test_a_side_without_text(sides):
    """Where nobody wrote anything both sides agree; where only one did, they don't, and nothing of it is lost twice."""
    words = list(range(120))
    left = spoken(words, 0, 30) if sides[0] else ()
    right = spoken(words, 26, 60) if sides[1] else ()
    found, agree = joined(left, right)
    assert agree is (sides == (False, False))
    assert set(found) <= set(words)


def test_only_missing_words_are_put_in():
    """Of what was found in a span, words that stand there already are left out, also where their times differ."""
    found = spoken(list(range(20)), 0, 4)
    (new,) = seams.missing((), found, Span(1, 2.1), Words())
    assert (ids([new]), new.text) == ([2, 3], " w2 w3")
    assert (new.start, new.end) == pytest.approx((1, 2), abs=0.1)
    (new,) = seams.missing((segment(0.3, 0.9, 2),), found, Span(1, 2.1), Words())
    assert ids([new]) == [3]


def test_sides_that_differ_are_cut_at_a_word_that_both_have():
    """Times are a guess: by time alone a word that both heard would be lost, or come out twice."""
    words = list(range(120))
    left = [word + 500 if word in (54, 58) else word for word in words]
    right = [word + 600 if word in (54, 58) else word for word in words]
    for shift in (-0.6, 0.6):
        found, agree = joined(spoken(left, 0, 30), spoken(right, 26, 60, shift=shift))
        assert not agree
        assert [word % 100 if word >= 500 else word for word in found] == words
