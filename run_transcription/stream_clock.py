"""Where decoded frames lie on the time line of their container: gaps, overlaps, and clocks that can't be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

MAX_SECONDS = 24 * 3600.0  # no recording is longer; a timestamp beyond it is damage
GAP_SECONDS = 0.1  # timestamps this far from the count of samples are a gap or an overlap, nearer ones are rounding
OVERLAP_SECONDS = 0.9  # a clock that goes back by less drifts or repeats itself; by more, it was set anew


class StreamClock:
    """Counts the seconds of a recording, and compares them with the timestamps of its frames."""

    def __init__(self, origin: float) -> None:
        """Begin at a time of the container's clock, in seconds."""
        self.seconds = 0.0  # placed so far, gaps included
        self.gaps = 0.0  # silent seconds put where the stream had none
        self._origin = origin
        self._dropped = 0.0
        self._warnings: Counter[str] = Counter()

    def place(self, time: float | None, length: float, following: float | None) -> float:
        """Place a frame of a length in seconds; return the seconds of silence before it.

        A negative number is how much of the frame's beginning lies where there is sound already: it is to be dropped.
        `following` is the time of the frame after this one: if that fits without a change, this one's time is wrong.
        """
        shift = self._shift(time, length, following)
        self.gaps += max(shift, 0.0)
        self._dropped += max(-shift, 0.0)
        self.seconds += length + shift
        return shift

    @property
    def warnings(self) -> list[str]:
        """What was wrong with the timestamps, and how often."""
        dropped = [f"{self._dropped:.2f} s that overlap what precedes them were left out"] if self._dropped else []
        return [*dropped, *counted(self._warnings)]

    def _shift(self, time: float | None, length: float, following: float | None) -> float:
        ahead = self._ahead(time)
        if abs(ahead) < GAP_SECONDS:
            return 0.0
        if following is not None and abs(self._ahead(following) - length) < GAP_SECONDS:
            self._warnings["a wrong timestamp was passed over"] += 1
            return 0.0
        if ahead <= -OVERLAP_SECONDS or self.seconds + ahead > MAX_SECONDS:
            self._origin += ahead  # a clock set anew: what follows joins on here
            self._warnings[f"the timestamps jump {'back' if ahead < 0 else 'beyond a day'}"] += 1
            return 0.0
        return max(ahead, -length)  # what overlaps more than this frame meets the next one

    def _ahead(self, time: float | None) -> float:
        """Return how far a timestamp is after the seconds that were counted; without one nothing is amiss."""
        return 0.0 if time is None else time - self._origin - self.seconds


def counted(warnings: Counter[str]) -> Iterator[str]:
    """Yield each warning once, with the number of times where there were several."""
    return (text if n == 1 else f"{text} ({n} times)" for text, n in warnings.items())
