"""A clock that pytest-benchmark reads and that we set: samples measured elsewhere become its rounds."""

from __future__ import annotations

from collections import deque
from typing import Any

from blockshock.measure import check_durations


class VirtualClock:
    """Give it to ``@pytest.mark.benchmark(timer=clock)``; ``replay`` then makes each sample one round.

    pytest-benchmark reads the timer before and after each call of its target; our target moves the clock from zero to
    one sample. Minimum, median, IQR, saving and comparing all follow, through its public interface alone.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ahead: deque[float] = deque()

    def __call__(self) -> float:
        return self._now

    def _rewind(self) -> None:
        self._now = 0.0  # so that a round, being a difference of two readings, is its sample to the last bit

    def _advance(self) -> None:
        if self._ahead:
            self._now = self._ahead.popleft()

    def replay(self, benchmark: Any, samples: list[float]) -> None:
        """Make the samples (seconds) the rounds of this benchmark.

        Raises:
            ValueError: one of them is no duration.
        """
        check_durations(samples, "the samples")
        self._ahead = deque(samples)
        benchmark.pedantic(self._advance, setup=self._rewind, rounds=len(samples))


clock = VirtualClock()
