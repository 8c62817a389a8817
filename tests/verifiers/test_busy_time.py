"""verifiers/pool_stats.py: the time in which there was something to judge."""

from verigrad.verifiers import pool_stats
from verigrad.verifiers.pool_stats import BusyTime


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


def test_overlapping_checks_count_once_and_pauses_do_not(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pool_stats, "time", clock)
    busy = BusyTime()
    assert busy.take() == 0.0
    for now, what in [(1, busy.begin), (2, busy.begin), (4, busy.end), (5, busy.end), (9, busy.begin)]:
        clock.now = float(now)
        what()
    clock.now = 10.0
    assert busy.take() == 4.0 + 1.0  # from 1 to 5, and the one that is open since 9
    clock.now = 12.0
    busy.end()
    assert busy.take() == 2.0
