"""Speech that was found against text that was written: which speech has none."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from run_transcription.hearing import Region
from run_transcription.records import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from run_transcription.records import Segment

COLLAR = round(0.3 * SAMPLE_RATE)  # a segment's times are not surer than this
SHORTEST = round(0.4 * SAMPLE_RATE)  # a part of a region that is shorter is a breath, or the edge of a word
SLOWEST_LETTER = round(0.4 * SAMPLE_RATE)  # a text accounts for so much speech with each letter …
AT_LEAST = round(1.5 * SAMPLE_RATE)  # … and for this much in any case


def uncovered(speech: Sequence[Region], segments: Iterable[Segment]) -> list[Region]:
    """Return of speech in order of time what no segment lies over: whole regions, and parts of at least 0.4 s.

    A text much shorter than the speech that its segment spans accounts only for the beginning of it. What is missing
    inside a text that is long enough is not seen.
    """
    ends = [region.end for region in speech]
    left = _without(speech, merged(_accounted(segment, speech, ends) for segment in segments))
    whole = frozenset(speech)
    return [region for region in left if length([region]) >= SHORTEST or region in whole]


def stretches(left: Iterable[Region], segments: Sequence[Segment]) -> list[Region]:
    """Return regions without text as stretches: those between which nothing was written are one."""
    found: list[Region] = []
    for region in left:
        before = found[-1].end / SAMPLE_RATE if found else 0.0
        if found and not any(before < each.end and each.start < region.start / SAMPLE_RATE for each in segments):
            found[-1] = Region(found[-1].start, region.end)
        else:
            found.append(region)
    return found


def length(regions: Iterable[Region]) -> int:
    """Return how many samples are in regions."""
    return sum(region.end - region.start for region in regions)


def merged(regions: Iterable[Region]) -> list[Region]:
    """Return regions in order of time, those that touch or overlap as one."""
    found: list[Region] = []
    for region in sorted(regions, key=lambda each: each.start):
        if found and region.start <= found[-1].end:
            found[-1] = Region(found[-1].start, max(found[-1].end, region.end))
        else:
            found.append(region)
    return found


def _accounted(segment: Segment, speech: Sequence[Region], ends: Sequence[int]) -> Region:
    """Return the stretch of the recording that a segment's text accounts for."""
    start, end = round(segment.start * SAMPLE_RATE) - COLLAR, round(segment.end * SAMPLE_RATE) + COLLAR
    allowed = AT_LEAST + SLOWEST_LETTER * len(segment.text.strip())
    for place in range(bisect_right(ends, start), bisect_left(speech, end, key=lambda region: region.start)):
        first = max(speech[place].start, start)
        inside = min(speech[place].end, end) - first
        if inside > allowed:
            return Region(start, first + allowed)
        allowed -= inside
    return Region(start, end)


def _without(regions: Iterable[Region], taken: Sequence[Region]) -> list[Region]:
    """Return the parts of regions that are not taken; both in order of time, and what is taken apart."""
    left: list[Region] = []
    place = 0
    for region in regions:
        at = region.start
        while place < len(taken) and taken[place].start < region.end:
            left.append(Region(at, taken[place].start))
            at = max(at, taken[place].end)
            if at >= region.end:
                break  # it may lie over the next region, too
            place += 1
        left.append(Region(at, region.end))
    return [part for part in left if part.start < part.end]
