"""Why a network is not compiled: the reason, not the line in front of it."""

from __future__ import annotations

import pytest

from blockshock.phases.compilers import why_not_compiled

QUOTED = """An exception occurred in a subprocess:

Traceback (most recent call last):
  File "compile.py", line 3, in do_job
    raise RuntimeError("no")
triton.compiler.errors.CompilationError: at 7:11: fp8e4nv is not supported
RuntimeError: no kernel was built

Set TORCHDYNAMO_VERBOSE=1 for more"""


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError("one\ntwo: Error: three"), "ValueError: one"),
        (RuntimeError(QUOTED), "RuntimeError: RuntimeError: no kernel was built"),
        (RuntimeError("it ended:\nwithout a word"), "RuntimeError: it ended:"),
        (KeyError(), "KeyError: "),
        (ValueError("x" * 300), "ValueError: " + "x" * 188),
    ],
)
def test_the_reason_is_said_in_a_line(error: Exception, why: str) -> None:
    assert why_not_compiled(error) == why
