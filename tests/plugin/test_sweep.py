"""Sweeps: which sizes they stand for, and what they refuse."""

import pytest

from blockshock.plugin import sweep

USUAL = {"N": "512", "B": "16"}
NONE: dict[str, str | None] = {"N": None, "B": None}


def test_a_sweep_stands_for_a_range_of_sizes() -> None:
    assert sweep.defaults(None, "cuda", NONE, USUAL) == USUAL
    assert sweep.defaults("N", "cuda", NONE, USUAL) == {"N": sweep.AXES["N"]["cuda"], "B": "64,1024"}
    assert sweep.defaults("B", "cuda", NONE, USUAL) == {"N": "8192", "B": sweep.AXES["B"]["cuda"]}
    both = sweep.defaults("N, B", "cpu", NONE, USUAL)
    assert both == {"N": "128,256,512", "B": "4,16,64"}
    assert sweep.defaults("B", "cpu", {"N": "64", "B": None}, USUAL) == {"N": "64", "B": "4,16,64"}
    assert sweep.defaults(None, "cpu", {"N": "", "B": "8"}, USUAL) == {"N": "", "B": "8"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("K", "--sweep takes N and B, got 'K'"),
        (",", "--sweep is empty. Choices: N, B"),
        ("N", "--sweep N and --N 64 say two things: give one of them"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(asked: str, says: str) -> None:
    with pytest.raises(pytest.UsageError, match=says):
        sweep.defaults(asked, "cpu", {"N": "64", "B": None}, USUAL)
