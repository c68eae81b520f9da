"""Speech that was found against text that was written: which speech has none."""

from __future__ import annotations

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
    """Return the speech that no segment lies over: whole regions, and parts of at least 0.4 s.

    A text much shorter than the speech that its segment spans accounts only for the beginning of it.
    """
    left = list(speech)
    for segment in segments:
        left = _without(left, _accounted(segment, speech))
    return [region for region in left if length([region]) >= SHORTEST or region in speech]


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


def _accounted(segment: Segment, speech: Iterable[Region]) -> Region:
    """Return the stretch of the recording that a segment's text accounts for."""
    start, end = round(segment.start * SAMPLE_RATE) - COLLAR, round(segment.end * SAMPLE_RATE) + COLLAR
    allowed = AT_LEAST + SLOWEST_LETTER * len(segment.text.strip())
    for region in speech:
        inside = min(region.end, end) - max(region.start, start)
        if inside > allowed:
            return Region(start, max(region.start, start) + allowed)
        allowed -= max(0, inside)
    return Region(start, end)


def _without(regions: Iterable[Region], taken: Region) -> list[Region]:
    parts = (
        part
        for region in regions
        for part in (
            Region(region.start, min(region.end, taken.start)),
            Region(max(region.start, taken.end), region.end),
        )
    )
    return [part for part in parts if part.start < part.end]
