"""Methods on real ranks: every group size, rectangular layers, bias, memory, refusals."""

import copy
import os
import re
from dataclasses import replace
from enum import StrEnum

import pytest
import torch
import torch.distributed as dist
from gpus import CPU_METHODS

from blockshock.errors import InputError, RanksApart
from blockshock.machine import memory
from blockshock.matrices.weights import GeneratedWeights
from blockshock.measure.accuracy import Accuracy, ErrorSums, compare
from blockshock.methods import METHODS, Layer, Promise, Role, Shape, Span
from blockshock.phases import case as case_module
from blockshock.phases.case import Case, build, estimate_bytes, obstacle
from blockshock.ranks import Ranks
from blockshock.training.parameters import Training

PICKS = {"kernel": "gathered", "mask": "tile", "storage": "masked"}
CASE = Case("block_shock", {"kernel": "reference", "mask": "random"}, "gaussian", 96, 160, 6, "bf16")


def picks_of(method: str, kernel: str, mask: str, storage: str = "masked") -> dict[str, str]:
    """Of these the method's own."""
    pruner = {"gathered": "1100", "auto": "tile_magnitude"}.get(kernel, "random")
    every = {"kernel": kernel, "mask": mask, "pruner": pruner, "storage": storage}
    every |= {"block_kernel": "reference", "block_mask": "blocks:size=16"}
    return {axis: every[axis] for axis in METHODS.get(method).axes if axis in every}


def _errors(method: str, picks: dict[str, str], with_bias: bool) -> tuple[ErrorSums, int]:
    """A layer whose width shards evenly and whose shards keep groups of four whole."""
    group = dist.group.WORLD
    assert group is not None
    source = GeneratedWeights(96, 160, torch.bfloat16, "cpu", with_bias=with_bias)
    layer = Layer(source, picks, 6)
    built = METHODS.get(method)(layer, group)
    right = built.reference(layer, group.size())
    x_BK = torch.randn(6, 160, generator=torch.Generator().manual_seed(5)).bfloat16()
    with torch.inference_mode():
        errors = compare(built(x_BK), x_BK, right, built.roundings, group.rank(), group.size())
    return errors, built.roundings


def _check(ranks: Ranks, with_bias: bool) -> None:
    for name in CPU_METHODS:
        for mask, kernel in (("1100", "gathered"), ("random", "reference"), ("tile", "auto")):
            picks = picks_of(name, kernel, mask)
            errors, roundings = zip(*ranks.run(_errors, name, picks, with_bias), strict=True)
            if name == "block_shock":
                assert set(roundings) == {max(ranks.size, 2)}, "a half is a partial sum, on one rank too"
            failure = Accuracy.of(sum(errors, ErrorSums()), roundings[0]).failure()
            assert failure is None, f"{name} {mask} {kernel} bias={with_bias}: {failure}"


@pytest.mark.parametrize("with_bias", [False, True])
def test_every_method_is_right_on_one_and_on_four_ranks(other_ranks: Ranks, with_bias: bool) -> None:
    _check(other_ranks, with_bias)


def test_every_method_takes_a_bias_on_two_ranks(cpu_ranks: Ranks) -> None:
    _check(cpu_ranks, with_bias=True)


def _copies() -> str:
    """Rank 1 asks another copy of a layer for its weight than rank 0."""
    group = dist.group.WORLD
    assert group is not None
    source = GeneratedWeights(16, 32, torch.float32, "cpu")
    layer = METHODS.get("block_shock")(Layer(source, PICKS, training=Training()), group)
    first, second = copy.deepcopy(layer), copy.deepcopy(layer)
    with pytest.raises(RanksApart) as error:
        (first, second)[group.rank()].whole_weight()
    return str(error.value)


def test_a_copy_of_a_layer_is_told_from_another(cpu_ranks: Ranks) -> None:
    for says in cpu_ranks.run(_copies):
        assert re.search(r"rank 0 in .*\(16, 32\), copy 1; rank 1 in .*\(16, 32\), copy 2\.", says)


def _weight_bytes(case: Case) -> tuple[int, int, int]:
    built = build(case)
    estimate = METHODS.get(case.method).estimate(case.shape(dist.get_world_size()))
    return built.method.weight_bytes(), estimate.steady, estimate_bytes(case, dist.get_world_size())


@pytest.mark.parametrize("method", CPU_METHODS)
def test_counted_weight_bytes_are_those_estimated(method: str, cpu_ranks: Ranks) -> None:
    for counted, estimated, _ in cpu_ranks.run(
        _weight_bytes, CASE.picking(block_mask="blocks:size=16").of(method, METHODS.get(method).axes)
    ):
        assert counted == estimated


def test_a_half_in_bf16_takes_9_16_of_dense_bytes(cpu_ranks: Ranks) -> None:
    dense_bytes = CASE.N * CASE.K * 2
    assert [counted for counted, _, _ in cpu_ranks.run(_weight_bytes, CASE)] == [dense_bytes * 9 // 16] * 2


def test_the_full_weight_is_held_only_when_asked_for(cpu_ranks: Ranks) -> None:
    without = cpu_ranks.run(_weight_bytes, CASE)
    with_full = cpu_ranks.run(_weight_bytes, replace(CASE, keep_full_weight=True))
    for (counted, _, needed), (counted_full, _, needed_full) in zip(without, with_full, strict=True):
        assert counted_full - counted == needed_full - needed == CASE.N * CASE.K * 2


def _largest_block(case: Case) -> int:
    """Elements of the largest piece of W that building asks its source for."""
    sizes = []
    rows = GeneratedWeights.rows

    def watched(self: GeneratedWeights, start: int, stop: int) -> torch.Tensor:
        block = rows(self, start, stop)
        sizes.append(block.numel())
        return block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratedWeights, "rows", watched)
        patch.setattr(
            "blockshock.matrices.weights.row_blocks", lambda rows, *_: [(i, i + 64) for i in range(0, rows, 64)]
        )
        patch.setattr(
            "blockshock.matrices.compressed.row_blocks",
            lambda rows, *_, **__: [(i, i + 64) for i in range(0, rows, 64)],
        )
        build(case)
    return max(sizes)


@pytest.mark.parametrize("method", ["dense_tp_row", "dense_tp_col", "dtensor_row", "block_shock"])
def test_the_full_weight_is_never_made_on_a_rank(method: str, cpu_ranks: Ranks) -> None:
    case = Case(method, picks_of(method, "reference", "1100"), "gaussian", 1024, 64, 4, "fp32")
    assert max(cpu_ranks.run(_largest_block, case)) <= 256 * 64


def _refusals(case: Case) -> list[str]:
    """What the layer says to inputs that are too narrow, of another dtype, and on another device."""
    method, messages = build(case).method, []
    for shape, dtype, device in (
        ((6, 100), torch.bfloat16, "cpu"),
        ((6, 160), torch.float32, "cpu"),
        ((6, 160), torch.bfloat16, "meta"),
    ):
        with pytest.raises(InputError) as error:
            method(torch.zeros(shape, dtype=dtype, device=device))
        messages.append(str(error.value))
    return messages


def test_an_input_that_does_not_fit_is_refused(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_refusals, CASE)[0] == [
        "x must be (B, 160), got (6, 100)",
        "x must be torch.bfloat16 on cpu, got torch.float32 on cpu: pass x.to('cpu', torch.bfloat16)",
        "x must be torch.bfloat16 on cpu, got torch.bfloat16 on meta: pass x.to('cpu', torch.bfloat16)",
    ]


EVERY_ROW = [
    *(("block_shock", kernel, mask) for kernel in ("gathered", "reference") for mask in ("1100", "tile")),
    ("block_shock", "reference", "random"),
    *((name, "auto", "1100") for name in CPU_METHODS if name != "block_shock"),
]


def _empty_batches(dtype: torch.dtype) -> None:
    """Layers frozen, differentiated and trained, before and after an empty batch; ranks agree all the while."""
    group = dist.group.WORLD
    assert group is not None
    source = GeneratedWeights(96, 160, dtype, "cpu", with_bias=True)
    for name, kernel, mask in EVERY_ROW:
        for training, storage in ((None, "masked"), (Training(), "compressed"), (Training(), "masked")):
            picks = picks_of(name, kernel, mask, storage)
            method = METHODS.get(name)(Layer(source, picks, 6, True, training), group)
            method.requires_grad_(training is not None)
            for tokens in (0, 6, 0):
                x_BK = torch.ones(tokens, 160, dtype=dtype, requires_grad=True)
                y_BN = method(x_BK)
                assert y_BN.shape == (tokens, 96)
                y_BN.sum().backward()
                assert x_BK.grad is not None
                assert x_BK.grad.shape == (tokens, 160)
                for parameter in filter(lambda held: held.requires_grad, method.parameters()):
                    assert parameter.grad is not None
                    assert bool(parameter.grad.any()) == (tokens > 0)
                    parameter.grad = None
            with torch.inference_mode():
                assert method(torch.ones(0, 160, dtype=dtype)).shape == (0, 96)


def test_an_empty_batch_passes_through_as_through_a_linear(cpu_ranks: Ranks, other_ranks: Ranks) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        cpu_ranks.run(_empty_batches, dtype)
    other_ranks.run(_empty_batches, torch.bfloat16)


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("block_shock", Shape(96, 160, 2, 3), "1 rank or an even number, got 3: try --ranks 2 or 4"),
        ("block_shock", Shape(96, 100, 2, 4), "K = 100 cannot be cut into 2 equal shards of a multiple of 4"),
        ("block_shock", Shape(96, 6, 2, 2), "K = 6 cannot be cut into 1 shard of a multiple of 4; .* are 4 and 8$"),
        ("dense_tp_row", Shape(96, 100, 2, 8), "K = 100 cannot be cut into 8 equal shards; .* are 96 and 104$"),
        ("dense_tp_row", Shape(96, 7, 2, 2), "K = 7 cannot be cut into 2 equal shards; .* are 4 and 8$"),
        ("dense_tp_row", Shape(96, 13, 2, 6), "K = 13 cannot be cut into 6 equal shards; .* are 12 and 24$"),
        ("dense_tp_col", Shape(90, 160, 2, 4), "N = 90 cannot be cut into 4 equal shards; .* are 88 and 92$"),
        ("dense_tp_col", Shape(7, 160, 2, 2), "N = 7 cannot be cut into 2 equal shards; .* are 6 and 8$"),
        ("pruned_tp_col", Shape(3, 160, 2, 2), "N = 3 cannot be cut into 2 equal shards; .* are 2 and 4$"),
        ("dtensor_col", Shape(1, 160, 2, 2), "N = 1 cannot be cut into 2 equal shards; the nearest that can is 2$"),
    ],
)
def test_a_layer_that_cannot_be_laid_out_is_refused(method: str, shape: Shape, message: str) -> None:
    with pytest.raises(InputError, match=message):
        METHODS.get(method).check(shape)


def _obstacle_with_little_memory(case: Case) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_bytes", lambda *_, **__: 1 << 20)
        patch.setattr(case_module, "build", lambda _: pytest.fail("built although it does not fit"))
        return obstacle(case)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS.names())
def test_the_parts_of_all_ranks_are_w(method: str, ranks: int) -> None:
    """What a layer is asked before it is built, of the class and not of a layer."""
    kind, times = METHODS.get(method), torch.zeros(96, 160)
    for rank in range(ranks):
        times[kind.part(Shape(96, 160, 2, ranks), rank)] += 1
    assert times.min() >= 1


def test_a_size_that_does_not_fit_is_an_obstacle_with_the_estimate(cpu_ranks: Ranks) -> None:
    for reason in cpu_ranks.run(_obstacle_with_little_memory, replace(CASE, N=4096, K=4096)):
        assert reason is not None
        assert "on cpu, 1.00 MiB are free: lower --N or --B" in reason


def test_a_case_that_fits_has_no_obstacle(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(obstacle, CASE) == [None, None]


def test_a_user_sees_which_kernel_cannot_run(cpu_ranks: Ranks) -> None:
    (reason, _) = cpu_ranks.run(obstacle, CASE.picking(kernel="cusparselt"))
    assert reason == "kernel cusparselt: needs a cuda device, this is cpu"
    (reason, _) = cpu_ranks.run(obstacle, CASE.picking(kernel="gathered"))
    assert reason is not None
    assert "needs a row-periodic mask" in reason


def test_a_mask_that_does_not_fit_the_layer_is_an_obstacle_and_not_a_failure(cpu_ranks: Ranks) -> None:
    for method in ("masked_split_dense", "block_shock"):
        case = replace(CASE.picking(mask="tile"), N=66).of(method, METHODS.get(method).axes)
        (reason, _) = cpu_ranks.run(obstacle, case)
        assert reason == f"{method}: a transposable mask needs N to be a multiple of 4, got N = 66"


def test_ranks_take_their_share_of_the_threads_and_no_more_than_they_are_told(other_ranks: Ranks) -> None:
    """Threads that wait for one another in the way of other processes took a test of one rank twenty times as long."""
    share = max(1, len(os.sched_getaffinity(0)) // other_ranks.size)
    most = int(os.environ.get("OMP_NUM_THREADS", share))
    assert other_ranks.run(torch.get_num_threads) == [min(share, most)] * other_ranks.size


@pytest.mark.parametrize(("name", "choices"), [("role", Role), ("promise", Promise), ("span", Span)])
def test_what_kind_a_method_is_has_to_be_one_that_there_is(name: str, choices: type[StrEnum]) -> None:
    base = METHODS.get("dense_single")
    for word in choices:
        kind = type("Mine", (base,), {name: str(word)})
        assert getattr(kind, name) is word, "a word is as good as what it stands for"
    for word in ("subjekt", "", None):
        with pytest.raises(InputError, match=rf"Mine: there is no {name} {word!r}\. Choices: {', '.join(choices)}$"):
            type("Mine", (base,), {name: word})
