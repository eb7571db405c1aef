"""Where something holds, in words: found where simple words hold, and never said where they do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockshock.report.where import Spot, where

SIZES, BATCHES = (4096, 8192, 16384), (16, 64, 256, 1024)
Holds = Callable[[int, int], bool | None]


def grid(holds: Holds) -> list[Spot]:
    return [Spot(N, N, B, holds(N, B)) for N in SIZES for B in BATCHES]


@pytest.mark.parametrize(
    ("holds", "words"),
    [
        (lambda N, B: True, "at all 12 points"),
        (lambda N, B: False, "nowhere"),
        (lambda N, B: None, "nowhere"),
        (lambda N, B: B >= 256, "from B = 256 on (6 of 12 points)"),
        (lambda N, B: B == 1024, "at B = 1024 (3 of 12 points)"),
        (lambda N, B: B <= 64, "at B ≤ 64 (6 of 12 points)"),
        (lambda N, B: N >= 8192 and B <= 64, "from N = 8192 on, at B ≤ 64 (4 of 12 points)"),
        (lambda N, B: N >= 8192 and B >= 256, "from N = 8192 on, at B ≥ 256 (4 of 12 points)"),
        (lambda N, B: 64 <= B <= 256, "at B = 64 to 256 (6 of 12 points)"),
        (lambda N, B: (N, B) == (8192, 64), "at N = 8192, at B = 64 (1 of 12 points)"),
        (
            lambda N, B: B >= 256 or (N, B) == (16384, 16),
            "from B = 256 on (6 of 12 points) and at 1 of the other 6 (16384², B = 16)",
        ),
        (
            lambda N, B: (N, B) in {(4096, 1024), (8192, 16), (16384, 1024)},
            "at 3 of 12 points (4096², B = 1024; 8192², B = 16; 16384², B = 1024)",
        ),
        (lambda N, B: N == 8192 and B in (16, 256), "at 2 of 12 points (8192², B = 16 and 256)"),
        (lambda N, B: (SIZES.index(N) + BATCHES.index(B)) % 2 == 0, "at 6 of 12 points"),
        (lambda N, B: True if B >= 256 else None if B == 64 else False, "from B = 256 on (6 of 12 points)"),
        (lambda N, B: None if (N, B) == (8192, 256) else B >= 256, "from B = 256 on (5 of 12 points)"),
        (
            lambda N, B: True if (N, B) in {(4096, 16), (8192, 64)} else None if B <= 64 else False,
            "at 2 of 12 points (4096², B = 16; 8192², B = 64)",
        ),
    ],
)
def test_words_of_a_grid(holds: Holds, words: str) -> None:
    assert where(grid(holds)) == words


def test_a_single_point_and_none() -> None:
    assert where([Spot(64, 64, 4, True)]) == "at the one point"
    assert where([]) == "nowhere"


def test_layers_that_are_not_square_may_be_told_by_K() -> None:
    spots = [Spot(N, K, 16, K <= 4096) for N in SIZES for K in SIZES]
    assert where(spots) == "at K = 4096 (3 of 9 points)"


def test_two_workloads_at_one_point_may_differ() -> None:
    """Then the point is not named: it holds there and it does not."""
    assert where([Spot(64, 64, 4, True), Spot(64, 64, 4, False)]) == "at 1 of 2 points"


sizes = st.sampled_from((1, 64, 256, 8192))
spots = st.lists(st.builds(Spot, N=sizes, K=sizes, B=sizes, holds=st.sampled_from((True, False, None))), max_size=40)


def inside(words: str, spot: Spot) -> bool:
    """Whether the words speak of the point, read as a reader would."""
    found = True
    for bound in words.partition(" (")[0].split(", "):
        name, low, high, least, most = _read(bound)
        size = getattr(spot, name)
        found &= (least if least is not None else size) <= size <= (most if most is not None else size)
        assert low or high
    return found


def _read(bound: str) -> tuple[str, bool, bool, int | None, int | None]:
    name, sign, number, to = re.fullmatch(r"(?:from|at) ([NKB]) ([=≤≥]) (\d+)( on| to \d+)?", bound).groups()  # type: ignore[union-attr]
    least = int(number) if sign in "=≥" else None
    most = int(number) if sign == "≤" or (to is None and sign == "=") else int(to[4:]) if to and to != " on" else None
    return name, least is not None, most is not None, least, most


def named_in(words: str) -> set[tuple[int, int, int]]:
    """The points that are named, each by its layer and B."""
    found = set()
    for part in words.rstrip(")").split("; "):
        name, Bs = part.split(", B = ")
        N, K = (name[:-1],) * 2 if name.endswith("²") else name.split("×")
        found |= {(int(N), int(K), int(B)) for B in Bs.split(" and ")}
    return found


@given(spots)
def test_the_words_are_true(found: Sequence[Spot]) -> None:
    words, holding = where(found), [spot for spot in found if spot.holds]
    if words == "nowhere":
        assert not holding
    elif words.startswith(("at all", "at the one")):
        assert len(holding) == len(found)
    elif re.match(r"at \d", words):
        told, _, named = words.partition(" (")
        assert told == f"at {len(holding)} of {len(found)} points"
        assert not named or named_in(named) == {(spot.N, spot.K, spot.B) for spot in holding}
    else:
        told = [spot for spot in found if inside(words, spot)]
        assert all(spot.holds is not False for spot in told)
        words, _, named = words.partition(" (")[2].partition(" (")
        counts = [int(number) for number in re.findall(r"\d+", words)]
        assert not named or named_in(named) == {(one.N, one.K, one.B) for one in holding if one not in told}
        assert counts[:2] == [sum(bool(spot.holds) for spot in told), len(found)]
        others = counts[2:] or [0, len(found) - len(told)]
        assert others == [len(holding) - counts[0], len(found) - len(told)]
