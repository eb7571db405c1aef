"""An error that came through a file of the user's shows the user's frames and what it says; no other is touched."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from blockshock import registry
from blockshock.errors import InputError
from blockshock.matrices import WORKLOADS
from blockshock.plugin import blame
from blockshock.plugin.blame import told
from blockshock.ranks import RankError, Ranks, answers

pytest_plugins = ["pytester"]

MINE = """
from blockshock import METHODS, WORKLOADS, Workload

def called(back):
    return back()

def fails(words="my own words"):
    raise ValueError(words)

def chained():
    try:
        fails("the first")
    except ValueError as error:
        raise OSError("the second") from error

@WORKLOADS.register("faulty")
class Faulty(Workload):
    def __init__(self):
        fails()
"""


class OnlyHere(Exception):
    """Cannot be made anew from what it says."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def _raise(error: Exception) -> None:
    raise error


def _call(path: str, name: str) -> None:
    runpy.run_path(path)[name]()


def _back(path: str) -> None:
    runpy.run_path(path)["called"](lambda: _raise(OnlyHere("of", " ours")))


def _of_a_rank(function: Callable[..., None], *args: object) -> BaseException:
    """The error of a call on rank 1, as it comes over the rank's pipe: ranks that fail are started anew, in seconds."""
    message = answers.pickle_call(function, args, {})
    kind, error = answers.decode(1, answers.answer(1, partial(answers.call, message)))
    assert kind == "raised"
    return error


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = tmp_path / "mine.py"
    file.write_text(MINE.partition("@WORKLOADS")[0])
    monkeypatch.setattr(blame, "extensions", lambda: [("blockshock_extension_0", str(file))])
    return str(file)


def _frames(text: str) -> list[str]:
    return [match[0].rpartition("/")[2].replace('", line ', ":") for match in blame.FRAME.finditer(text)]


@pytest.mark.parametrize(
    ("name", "says", "lines"),
    [("fails", "ValueError: my own words", [8]), ("chained", "OSError: the second", [12, 8, 14])],
)
def test_of_an_error_of_a_rank_the_users_part_is_told(name: str, says: str, lines: list[int], mine: str) -> None:
    text = told(_of_a_rank(_call, mine, name))
    assert text is not None
    assert text.startswith(f"{says}\n\nOn rank 1, from the first line of yours on:\n\nTraceback")
    assert text.endswith(says)
    assert _frames(text) == [f"mine.py:{line}" for line in lines]


def test_it_is_told_as_well_of_ranks_that_are_processes(mine: str, cpu_ranks: Ranks) -> None:
    with pytest.raises(OSError, match="the second") as raised:
        cpu_ranks.run(_call, mine, "chained")
    text, same = (told(error) for error in (raised.value, _of_a_rank(_call, mine, "chained")))
    assert text is not None
    assert re.sub("^On rank [01]", "On rank 1", text, flags=re.MULTILINE) == same


def test_what_the_users_code_calls_is_told_too(mine: str) -> None:
    text = told(_of_a_rank(_back, mine))
    assert text is not None
    assert text.startswith("test_blame.OnlyHere: of ours\n\nOn rank 1, from")
    assert [frame.partition(":")[0] for frame in _frames(text)] == ["mine.py", "test_blame.py", "test_blame.py"]


def test_errors_of_others_are_left_alone(mine: str) -> None:
    error = _of_a_rank(_raise, InputError("ours"))
    assert isinstance(error, InputError)
    assert told(error) is None
    assert told(RankError("rank 1 died")) is None
    with pytest.raises(ValueError, match="here"), blame.refused():
        raise ValueError("here")


TESTS = """
import pytest
from blockshock.registry import extensions
from importlib import import_module

mine = import_module(extensions()[0][0])

def test_fails():
    mine.fails()

def test_refused():
    try:
        mine.fails("refused")
    except ValueError:
        pytest.fail("made a failure of", pytrace=False)

@pytest.mark.xfail
def test_expected():
    mine.fails()

def test_of_its_own():
    assert [1] == [2]
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # whose sessions say nothing
    for name, kept in (("_extensions", []), ("_brought", {})):
        monkeypatch.setattr(registry, name, kept)
    monkeypatch.setattr(WORKLOADS, "_entries", {name: WORKLOADS.get(name) for name in WORKLOADS.names()})
    pytester.makepyfile(mine=MINE)
    return pytester


ARGUMENTS = ["-p", "blockshock.plugin", "--device=cpu", "--extend=mine.py", "-p", "no:cacheprovider"]


def test_a_session_shows_them_without_the_suites_frames(session: pytest.Pytester) -> None:
    session.makepyfile(test_inner=TESTS, test_broken="from test_inner import mine\n\nmine.chained()")
    result = session.runpytest_inprocess(*ARGUMENTS, "--continue-on-collection-errors")
    result.assert_outcomes(failed=3, xfailed=1, errors=1)
    text = result.stdout.str()
    assert "ValueError: my own words\n\nFrom the first line of yours on:\n\nTraceback" in text
    assert "ValueError: refused\n\nFrom the first line" in text
    assert "OSError: the second\n\nFrom the first line" in text, "where tests are made"
    assert "assert [1] == [2]" in text
    assert "_pytest/" not in text
    shown, _, _ = text.partition("short test summary info")  # which repeats them where CI is set
    assert shown.count("--full-trace shows how it came there.") == 3


def test_a_full_trace_is_a_full_one(session: pytest.Pytester) -> None:
    session.makepyfile(test_inner=TESTS)
    text = session.runpytest_inprocess(*ARGUMENTS, "--full-trace", "-k", "test_fails").stdout.str()
    assert "From the first line of yours on" not in text
    assert ">       mine.fails()" in text or ">   mine.fails()" in text


def test_where_no_test_could_fail_it_is_a_usage_error(session: pytest.Pytester) -> None:
    result = session.runpytest_inprocess(*ARGUMENTS, "--workloads=faulty")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str()
    assert "ValueError: my own words" in text
    assert 'mine.py", line 7, in fails' in text
    assert "blockshock/" not in text
