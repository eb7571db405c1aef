"""What is repeated: how often something is built, in which order, where it lies, and how the fastest rival is found."""

import itertools
import math
import random
import weakref
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from blockshock.machine import memory
from blockshock.measure.timing import Protocol, time_calls
from blockshock.methods import layer
from blockshock.phases import backward, builds, compare, correctness, forward, train
from blockshock.phases.case import Built, Case, build, estimate_bytes, obstacle
from blockshock.plugin.records import describe_timing
from blockshock.plugin.rivals import Rivals
from blockshock.plugin.settings import Settings
from blockshock.ranks import Ranks
from blockshock.saved.pairs import ratio_of_blocks

CASE = Case("block_shock", {"kernel": "gathered", "mask": "1100"}, "gaussian", 64, 64, 4, "fp32")
DENSE = CASE.of("dense_tp_row")
STEPS = [replace(case, optimizer="adamw") for case in (CASE.picking(storage="masked"), DENSE)]
TIMED = ("sync", 5, 1, True)


def _watched(function: Any, *args: object) -> tuple[Any, list[str], int, bool]:
    """What a phase returns; what it built, in order; the most builds alive at once; and whether any took the place of
    one that was still there."""
    alive: dict[int, int] = {}
    built, most, apart = [], 0, True

    def watched(case: Case, *args: object, **kwargs: Any) -> Built:
        nonlocal most, apart
        made = build(case, *args, **kwargs)
        place = next(made.method.buffers()).data_ptr() if case.optimizer is None else made.x_BK.data_ptr()
        apart &= place not in alive.values()
        number = len(built)
        alive[number] = place
        weakref.finalize(made.method, alive.pop, number)
        built.append(case.method)
        most = max(most, len(alive))
        return made

    with pytest.MonkeyPatch.context() as patch:
        for module in (builds, forward, backward, train):
            patch.setattr(module, "build", watched)
        return function(*args), built, most, apart


@pytest.mark.parametrize(("passes", "pair"), [("forward", (CASE, DENSE)), ("training", STEPS)])
def test_a_pair_is_built_anew_in_every_block(passes: str, pair: tuple[Case, Case], cpu_ranks: Ranks) -> None:
    count = builds.BLOCKS["cpu"]
    for result, built, most, apart in cpu_ranks.run(_watched, compare.PASSES[passes], *pair, *TIMED):
        assert (
            [len(block) for block in result.blocks.first]
            == [len(block) for block in result.blocks.second]
            == [1] * count
        )
        assert result.blocks.pilot == count
        assert Counter(built) == {CASE.method: count, DENSE.method: count}
        assert len(set(built[::2])) == 2, "either is built first"
        assert apart, "a build took the place of one that is timed"
        assert most == 3, "of the two pairs, three are held at most"


def _pruned(function: Any, *args: object) -> int:
    """How often a phase prunes."""
    count, prune = 0, layer.prune

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return prune(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "prune", counted)
        function(*args)
    return count


def test_what_is_kept_is_chosen_once_for_all_builds_that_are_timed(cpu_ranks: Ranks) -> None:
    case = Case("pruned", {"kernel": "gathered", "pruner": "1100"}, "gaussian", 64, 64, 4, "fp32")
    assert cpu_ranks.run(_pruned, forward.run, case, *TIMED) == [1] * cpu_ranks.size
    assert cpu_ranks.run(_pruned, backward.run, case, *TIMED) == [1] * cpu_ranks.size
    assert cpu_ranks.run(_pruned, compare.forward, case, case, *TIMED) == [2] * cpu_ranks.size
    assert cpu_ranks.run(_pruned, correctness.run, case) == [2] * cpu_ranks.size, "two runs of one seed are compared"


class _Placed:
    """A build of which only its place in memory matters."""

    def __init__(self, taken: set[int]) -> None:
        self.place = min({0, 1, 2} - taken)
        taken.add(self.place)
        weakref.finalize(self, taken.remove, self.place)


class _Turns(random.Random):
    """The planted fault: builds take turns in being the first of a block."""

    def sample(self, *_: Any) -> list[int]:
        self.block = getattr(self, "block", -1) + 1
        return [1, 0] if self.block % 2 == 0 else [0, 1]


def _in_places(stream: type[random.Random], tries: int) -> list[compare.PairBlocks]:
    """A case against itself where the time is that of the place in memory: the lowest that is free, of three."""
    taken, noise, seconds = set[int](), random.Random(1), (1.0, 1.002, 1.006)

    def timed(places: list[int], *_: Any) -> list[list[float]]:
        return [[seconds[place] * math.exp(noise.gauss(0, 2e-4))] for place in places]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builds, "random", SimpleNamespace(Random=stream))
        patch.setattr(builds, "build", lambda case, **_: _Placed(taken))
        patch.setattr(builds, "BLOCKS", {"cpu": 10})
        patch.setattr(builds, "MOST_BLOCKS", {"cpu": 60})
        patch.setattr(builds.timing, "time_calls", timed)
        protocol, found = Protocol("sync", 5, 0, flush=False), []
        for seed in range(tries):
            case = replace(CASE, seed=seed)
            found.append(builds.in_blocks((case, case), (lambda _, built: built.place,) * 2, protocol)[0])
        return found


@pytest.mark.reliability
def test_places_in_memory_do_not_tell_a_case_from_itself(cpu_ranks: Ranks, soak: bool) -> None:
    tries, different = 400 if soak else 80, Counter[str]()
    for stream in (random.Random, _Turns):
        for blocks in cpu_ranks.run(_in_places, stream, tries)[0]:
            different[stream.__name__] += ratio_of_blocks(blocks.first, blocks.second, blocks.pilot).differs
    assert different["Random"] <= 0.05 * tries + 3 * (0.05 * 0.95 * tries) ** 0.5  # 5 % and three standard deviations
    assert different["_Turns"] > tries / 2, "the planted fault is not seen"


def _disturbed(again: int) -> compare.PairBlocks:
    """A case against itself on ranks of which one is held up for two blocks of twelve."""
    blocks = itertools.count()

    def timed(*_: Any) -> list[list[float]]:
        held_up = dist.get_rank() == 1 and next(blocks) in (3, 4)
        return [[(5.0 + index if held_up else 1.0) * (1 + 1e-4 * index)] * 3 for index in range(2)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builds, "build", lambda case, **_: _Placed(set()))
        patch.setattr(builds, "BLOCKS", {"cpu": 10})
        patch.setattr(builds, "MOST_BLOCKS", {"cpu": 60})
        patch.setattr(builds, "MOST_REPEATED", {"cpu": again})
        patch.setattr(builds.timing, "time_calls", timed)
        return builds.in_blocks((CASE, CASE), (lambda _, built: built.place,) * 2, Protocol("sync", 15, 0))[0]


def test_blocks_in_which_something_else_had_the_machine_are_measured_again(cpu_ranks: Ranks) -> None:
    for mended, not_mended in zip(cpu_ranks.run(_disturbed, 10), cpu_ranks.run(_disturbed, 0), strict=True):
        assert (len(mended.first), mended.pilot, mended.repeated) == (10, 10, 2), "on all ranks alike"
        assert max(seconds for block in mended.first for seconds in block) == 1.0
        assert (len(not_mended.first), not_mended.repeated) == (60, 0)
    assert [len(one.first) for one in cpu_ranks.run(_disturbed, 1)] == [60, 60], "no more often than is allowed"


def test_what_scatters_as_builds_do_is_not_measured_again() -> None:
    first = [[1.0 + 0.05 * (block % 3)] * 3 for block in range(10)]
    assert builds.disturbed((first, first)) == []
    assert builds.disturbed((first, [*first[:9], [0.4, 9.0, 9.0]])) == [9]


def _scattered(most: int, pair: tuple[Case, Case]) -> compare.PairResult:
    """A pair on ranks whose times scatter from block to block, and on each rank in a way of its own."""
    scatter = random.Random(dist.get_rank())
    times = lambda *_: [[scatter.uniform(1e-3, 1.5e-3)] for _ in range(2)]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(builds.MOST_BLOCKS, "cpu", most)
        patch.setattr(builds.timing, "time_calls", times)
        return compare.forward(*pair, *TIMED)


def test_blocks_that_scatter_are_more_and_as_many_on_all_ranks(cpu_ranks: Ranks) -> None:
    first, second = cpu_ranks.run(_scattered, 8, (CASE, DENSE))
    assert len(first.blocks.first) == len(second.blocks.second) == 8
    assert first.blocks.first != second.blocks.first
    assert first.blocks.pilot == second.blocks.pilot == builds.BLOCKS["cpu"]


@pytest.mark.parametrize(
    ("phase", "case"),
    [
        (forward.run, CASE),
        (backward.run, CASE),
        (train.run, STEPS[0].picking(storage="masked:every=3")),
        (train.run, STEPS[0].picking(storage="compressed")),
    ],
)
def test_a_headline_is_of_several_builds(phase: Any, case: Case, cpu_ranks: Ranks) -> None:
    for result, built, most, apart in cpu_ranks.run(_watched, phase, case, *TIMED):
        assert len(built) == builds.BUILDS["cpu"]
        assert [len(samples) for samples in result.builds] == [3, 2]
        assert len(result.samples) == 5
        beside = [*result.stages.values(), *result.alone.values()]
        assert beside
        assert [len(samples) for samples in beside] == [3] * len(beside), "what is of one build has the rounds of one"
        assert apart
        assert most == 2
    (result, built, *_), *_ = cpu_ranks.run(_watched, phase, case, "sync", 1, 0, True)
    assert (len(built), len(result.samples)) == (1, 1)
    (result, built, *_), *_ = cpu_ranks.run(_watched, phase, case, "none", 5, 0, True)
    assert (len(built), result.samples) == (1, [])


def _shares(*timed: Any) -> list[tuple[int, int]]:
    """The rounds that each build has, and those before them; first what is described of the first one."""
    seen: list[tuple[int, int]] = []

    def note(_: object, share: Protocol) -> Any:
        seen.append((share.rounds, share.warmup))
        return SimpleNamespace(builds=[])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(builds.BUILDS, "cpu", 3)
        builds.over_builds(object, Protocol(*timed), note, note)
    return seen


def test_builds_share_the_rounds_and_those_before_them(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_shares, "sync", 100, 10)[0] == [(34, 4), (34, 4), (33, 4), (33, 4)]
    assert cpu_ranks.run(_shares, "sync", 2, 0)[0] == [(1, 0)] * 3
    assert cpu_ranks.run(_shares, "none", 5, 7)[0] == [(5, 7)] * 2


def test_a_headline_is_the_median_of_all_builds_and_theirs_are_saved(cpu_ranks: Ranks, settings: Settings) -> None:
    results = cpu_ranks.run(forward.run, CASE, *TIMED)
    results[0].builds, results[1].builds = [[1.0, 3.0, 2.0], [5.0, 4.0]], [[3.0, 1.0, 1.0], [2.0, 6.0]]
    info = describe_timing(CASE, settings, results)
    assert info["builds_p50_ms"] == [3000, 5500], "of the slowest rank: 3, 3, 2 and 5, 6"
    assert info["p50_ms"] == 3000
    assert (info["l2_flushed"], info["flush"]) == (settings.flush, "clean" if settings.flush else "none")


def test_calls_of_a_round_take_turns_in_being_first() -> None:
    def order_of(rounds: int, **first: Any) -> list[int]:
        ran: list[int] = []
        calls = [lambda index=index: ran.append(index) for index in range(2)]
        times = time_calls(calls, torch.device("cpu"), Protocol("sync", rounds, 1, flush=False), **first)
        assert [len(samples) for samples in times] == [rounds, rounds]
        return ran

    assert order_of(3) == [0, 1, 1, 0, 0, 1, 1, 0]
    assert order_of(2, order=(1, 0)) == [1, 0, 0, 1, 1, 0]


class _Fake:
    """Ranks on which each method takes the time that it is given."""

    size = 2

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.timed = seconds, Counter[str]()

    def of(self, *cases: Case) -> "_Fake":
        return self

    def run(self, function: Any, case: Case, *args: object) -> list[Any]:
        if function is obstacle:
            return [None, None if case.method in self.seconds else f"{case.method} cannot run here"]
        self.timed[case.method] += 1
        return [[self.seconds[case.method] / 2] * 3, [self.seconds[case.method]] * 3]


def test_the_rival_is_the_fastest_that_can_run(settings: Settings) -> None:
    row, column, single = (replace(DENSE, method=method) for method in ("dense_tp_row", "dense_tp_col", "dense_single"))
    ranks = _Fake(dense_tp_row=3e-3, dense_tp_col=2e-3)
    found = Rivals(settings, ranks)  # type: ignore[arg-type]
    for _ in range(2):
        best, tried = found.fastest([single, row, column], CASE)
        assert best == column
        assert tried == {"dense_tp_row": pytest.approx(3), "dense_tp_col": pytest.approx(2)}
    assert ranks.timed == {"dense_tp_row": 1, "dense_tp_col": 1}, "each is timed once in a session"
    assert found.fastest([single], CASE) == (single, {})
    with pytest.raises(pytest.skip.Exception, match="dense_single cannot run here"):
        found.fastest([single, replace(single, dtype="bf16")], CASE)


def test_candidates_are_timed_forward_or_over_a_step(cpu_ranks: Ranks) -> None:
    for case in (DENSE, STEPS[1]):
        assert [len(samples) for samples in cpu_ranks.run(compare.one_build, case, *TIMED)] == [3, 3]


def test_the_builds_that_are_held_at_once_are_counted(cpu_ranks: Ranks) -> None:
    case = replace(DENSE, method="dense_single", N=1024, K=1024)
    one, three = (estimate_bytes(case, 2, builds=builds) for builds in (1, 3))
    assert three - one >= 2 * case.N * case.K * 4
    for reason in cpu_ranks.run(_obstacle_with, case, 2 * (one + three) // 2):
        assert reason is not None, "three builds do not fit where one does"
    assert cpu_ranks.run(_obstacle_with, replace(case, N=512), 2 * (one + three) // 2) == [None, None]


def _obstacle_with(case: Case, free: int) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_bytes", lambda *_, **__: free)
        return obstacle(case, builds=3)
