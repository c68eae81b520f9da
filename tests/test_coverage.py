"""coverage: speech that was found is held against the text that was written."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from letters import segment

from run_transcription.coverage import length, merged, stretches, uncovered
from run_transcription.hearing import Region
from run_transcription.records import SAMPLE_RATE


def at(*spans):
    """Return regions at these seconds."""
    return [Region(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in spans]


def test_speech_with_text_is_covered():
    """Segments cover the speech that they lie over, and 0.3 s beside."""
    assert uncovered(at((0.8, 3.2), (5, 6)), [segment(1, 3, *range(8)), segment(5, 6, 1)]) == []


def test_speech_without_text_is_found():
    """What no segment lies over is returned with its edges; of a region's edge what is shorter than a word is not."""
    left = uncovered(at((0, 1.5), (2, 8), (9, 9.3)), [segment(0, 1, 1, 2), segment(4, 5, 3, 4)])
    assert left == at((2, 3.7), (5.3, 8), (9, 9.3))


def test_a_word_cannot_account_for_half_a_minute():
    """Text much shorter than the speech that its segment spans covers only the beginning; silence costs nothing."""
    (left,) = uncovered(at((0, 30)), [segment(0, 30, 1)])
    assert left.start < 4 * SAMPLE_RATE
    assert left.end == 30 * SAMPLE_RATE
    assert uncovered(at((0, 1), (29, 30)), [segment(0, 30, 1)]) == []
    assert uncovered(at((0, 30)), [segment(0, 30, *range(40))]) == []


def test_regions_that_overlap_count_once():
    """Both sides of a seam know of the same speech."""
    found = merged(at((5, 9), (0, 6), (10, 11)))
    assert found == at((0, 9), (10, 11))
    assert length(found) == 10 * SAMPLE_RATE


def test_speech_without_text_is_one_stretch_up_to_the_next_text():
    """What lies between two texts is heard again in one go, however often somebody paused there."""
    left = at((2, 3), (3.5, 5), (9, 10), (11, 12))
    assert stretches(left, [segment(0, 1.5, 1), segment(6, 8.5, 2)]) == at((2, 5), (9, 12))
    assert stretches(left, []) == at((2, 12))
    assert stretches([], [segment(0, 1, 1)]) == []


TENTHS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30)), max_size=12)


@given(speech=TENTHS, texts=TENTHS)
def test_speech_is_what_has_text_and_what_has_none(speech, texts):
    """Of any speech those tenths of a second are left that no text lies over, but for parts shorter than 0.4 s."""
    regions = merged(at(*((start / 10, (start + tenths) / 10) for start, tenths in speech)))
    segments = [segment(start / 10, (start + tenths) / 10, *range(20)) for start, tenths in texts]
    covered = np.zeros(260, bool)
    for start, tenths in texts:
        covered[max(0, start - 3) : start + tenths + 3] = True
    wanted = []
    for region in regions:
        places = range(region.start // 1600, region.end // 1600)
        parts = merged(Region(1600 * i, 1600 * i + 1600) for i in places if not covered[i])
        wanted += [part for part in parts if part.end - part.start >= 4 * 1600 or part == region]
    assert uncovered(regions, segments) == wanted
