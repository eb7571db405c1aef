"""Loads the suite's pytest plugin. Your own workloads, masks and methods come by --extend: the README shows how."""

import gc
import sys
from contextlib import nullcontext

import pytest

from blockshock.doctor.extras import need

need("the suite", "suite")
pytest_plugins = ["blockshock.plugin"]
gc.disable()  # until that is imported: all that torch makes stays, and to look for garbage in it takes its time


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Says at once what takes the first seconds; pytest's own first line takes its place."""
    capture = pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        if sys.stderr.isatty():
            print("blockshock: loading torch ...", end="\r", file=sys.stderr, flush=True)


def pytest_configure() -> None:
    if not __debug__:
        raise pytest.UsageError(
            "python -O and PYTHONOPTIMIZE drop the assertions that the tests are made of: run without them"
        )
    gc.freeze()  # nor is it looked through later, or at the end
    gc.enable()
