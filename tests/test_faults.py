from __future__ import annotations

from faults.run import Plan, run


def test_exactly_one_result_for_each_recording_whatever_fails(emulator, tmp_path):
    """Workers are killed, stopped, paused and robbed of disk and S3: each recording has one result, the right one."""
    counts = run(Plan(recordings=40, strikes=6, most_seconds=240), tmp_path, "faults")
    assert counts.clean, counts
    assert sum(counts.strikes.values()) >= 4, counts
    assert sum(counts.s3_faults.values()) > 0
