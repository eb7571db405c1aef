"""What workers of pytest-xdist found goes to the process that distributes the tests, for that says it at the end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pytest_benchmark.utils import safe_dumps

FOUND = "blockshock"


class Workers:
    """A pytest plugin for both sides of it.

    Args:
        records: what the session found, in the form in which it is saved; those of workers are added to it.
    """

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._records = records

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[FOUND] = safe_dumps(self._records)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """One has ended; of a worker that died there is nothing."""
        self._records += json.loads(getattr(node, "workeroutput", {}).get(FOUND, "[]"))
