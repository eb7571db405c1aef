"""Tests marked ``gpu`` or ``gpu2`` hold their GPUs while they run, against other workers and other sessions."""

from __future__ import annotations

import functools
import sys
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

import pytest

from blockshock.machine import environment, turns
from blockshock.plugin.settings import Settings
from blockshock.ranks import Place


class Devices:
    """A pytest plugin that gives each test its turn. Each test, not the session: so workers take turns."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        place = Place.here()
        # Of the ranks that torchrun started on a machine one holds the GPUs for all, and the others wait for it.
        self._waits = place is None or place.local_rank == 0
        self._two = (place.local_size if place else settings.ranks) if settings.marker == "gpu2" else 2
        self._first = functools.cache(environment.first_gpus)

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # outside pytest-timeout's clock: to wait is no fault of the test
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        # What has both markers needs one alone.
        count = 1 if item.get_closest_marker("gpu") else self._two if item.get_closest_marker("gpu2") else 0
        if not self._waits or not count or not (gpus := self._first(count)):
            return (yield)
        with turns.turn(gpus, self._say):
            return (yield)

    def _say(self, text: str) -> None:
        capture: Any = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            # Standard error, for that of a worker is the session's.
            print(f"\n{text}", file=sys.stderr, flush=True)
