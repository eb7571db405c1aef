"""What the fuzz tests share: how many examples they run and how many ran, and which errors are an answer.

Profiles: ``ci``, the default, runs the same examples every time; ``--hypothesis-profile=long`` runs four times as
many, drawn anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dis import opmap
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from reliability import FUZZED

import blockshock
from blockshock.errors import BlockShockError

PACKAGE = Path(blockshock.__file__).parent
Result = TypeVar("Result")

# A busy machine is no failure: no example has a deadline, and none is too slow to be drawn.
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", settings.get_profile("ci"), max_examples=400, derandomize=False, print_blob=True)
# Of tests/mutants: that an example fails is all that is asked, not which one is the smallest.
settings.register_profile("first", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("ci")


def examples(count: int) -> settings:
    """So many examples under the profile ``ci``, and as many times more as another profile runs."""
    return settings(max_examples=max(count * settings().max_examples // 100, 1))


def attempt(call: Callable[..., Result], *args: Any, **kwargs: Any) -> Result | None:
    """What the call returns; None if it refuses in the way a user is to meet.

    That is a ValueError, a TypeError or an error of the package, raised by the package and not by what it calls, with a
    sentence. All else is a failure of the test.
    """
    try:
        return call(*args, **kwargs)
    except (ValueError, TypeError, BlockShockError, pytest.UsageError) as error:
        innermost = error.__traceback__
        while innermost is not None and innermost.tb_next is not None:
            innermost = innermost.tb_next
        assert innermost is not None
        code = innermost.tb_frame.f_code
        # Raised by a raise of ours, not by a function of Python's or of torch's that a line of ours calls.
        meant = PACKAGE in Path(code.co_filename).parents and code.co_code[innermost.tb_lasti] == opmap["RAISE_VARARGS"]
        if not meant or len(str(error).split()) < 4:
            raise
        return None


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Counts the examples that a test ran to their end: those that were rejected are none."""
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    if handle is None:
        return (yield)
    inner, ran = handle.inner_test, 0

    @wraps(inner)
    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal ran
        inner(*args, **kwargs)
        ran += 1

    handle.inner_test = counted
    try:
        return (yield)
    finally:
        handle.inner_test = inner
        pyfuncitem.user_properties.append((FUZZED, ran))
