"""Training, piece by piece: row patterns, kept values, the turn to Wᵀ, storages, clipping, and planted faults."""

import copy
from collections.abc import Callable

import pytest
import torch
from gpus import needs_a_gpu
from torch import nn

from blockshock.errors import InputError, StalePacking
from blockshock.kernels import build_kernel
from blockshock.kernels.backward import backward_of
from blockshock.kernels.transpose import TileOrder
from blockshock.matrices.kept import Kept
from blockshock.matrices.masks import DenseMask, Mask, TiledMask
from blockshock.matrices.named_masks import MASKS, build_mask, transposable_tiles
from blockshock.matrices.pieces import Piece
from blockshock.matrices.repeating_rows import RowPatterns
from blockshock.matrices.weights import GeneratedWeights
from blockshock.phases import lesson as lessons
from blockshock.phases import trajectory
from blockshock.phases.case import Case
from blockshock.phases.train import _cycle
from blockshock.phases.trajectory import TrajectoryResult
from blockshock.ranks import Ranks
from blockshock.training.clipping import clip_grad_norm_
from blockshock.training.optimizers import OPTIMIZERS, optimizer_of
from blockshock.training.parameters import Training
from blockshock.training.sparse_storages import CompressedStorage, MaskedStorage
from blockshock.training.storages import Storage

CPU = torch.device("cpu")
TILES = {
    "1100": torch.tensor([[1, 1, 0, 0]]).bool(),
    "1010": torch.tensor([[1, 0, 1, 0]]).bool(),
    "tile": torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool(),
    "overlapping": torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]]).bool(),
    "wide": torch.tensor([[1, 0, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1, 0, 0]]).bool(),
}


def _half(mask: str | Mask, N: int = 48, K: int = 64, dtype: torch.dtype = torch.float32, seed: int = 0) -> Piece:
    source = GeneratedWeights(N, K, dtype, CPU, seed)
    return Piece(source, slice(0, K), mask if isinstance(mask, Mask) else build_mask(mask, source))


def _matrix(storage: Storage) -> torch.Tensor:
    """The trained weight (N, K), zero where a mask drops."""
    return storage.dense(storage.parameter.detach())


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.masks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tile", TILES)
def test_row_patterns_take_apart_and_put_together(tile: str, dtype: torch.dtype) -> None:
    N, K, B = 24, 32, 5
    patterns, mask = RowPatterns(TILES[tile], N), TiledMask(TILES[tile], N, K)
    w_NK, y_BN = _random(N, K, dtype=dtype), _random(B, N, dtype=dtype)
    assert torch.equal(patterns.unsort(patterns.sort(w_NK)), w_NK)
    assert torch.equal(patterns.unsort(patterns.sort(w_NK[:, 0])), w_NK[:, 0])
    assert torch.equal(patterns.dense(patterns.kept(w_NK)), w_NK * mask.dense())
    assert torch.equal(patterns.join(patterns.split(y_BN)), y_BN)
    parts = [pattern.kept.take(_random(B, K, dtype=dtype)) for pattern in patterns]
    expected = torch.zeros(B, K, dtype=dtype)
    for pattern, part in zip(patterns, parts, strict=True):
        kept = mask.rows(pattern.rows.positions[0], pattern.rows.positions[0] + 1)[0]
        expected[:, kept] += part
    assert torch.equal(patterns.sum_columns(parts, K), expected)


@pytest.mark.masks
@pytest.mark.parametrize("mask", [*MASKS.names(), "8x8"])
def test_kept_values_are_read_written_and_differentiated(mask: str) -> None:
    half = _half(TiledMask(_eight(), 48, 64) if mask == "8x8" else mask)
    kept, dropped = Kept(half.mask, CPU), ~half.mask.dense()
    w_NK, grad_y_BN, x_BK = _random(48, 64), _random(7, 48), _random(7, 64)
    values_NJ = kept.gather(w_NK)
    assert torch.equal(values_NJ.flatten(), w_NK[half.mask.dense()])
    out_NK = torch.ones(48, 64)
    kept.scatter(values_NJ, out_NK)
    assert torch.equal(out_NK, w_NK.masked_fill(dropped, 0))
    exact_NK = grad_y_BN.double().T @ x_BK.double()
    for dtype in (torch.float32, torch.float64):
        grad_NJ = kept.gradient(grad_y_BN, x_BK, dtype, sorted_by_pattern=False)
        assert grad_NJ.dtype == dtype
        torch.testing.assert_close(grad_NJ.double(), kept.gather(exact_NK), rtol=0, atol=1e-5)
    if kept.patterns:
        by_pattern = kept.gradient(grad_y_BN, x_BK, torch.float64, sorted_by_pattern=True)
        assert torch.equal(kept.patterns.unsort(by_pattern), grad_NJ)


def _eight() -> torch.Tensor:
    """A transposable 8 × 8 tile of more distinct rows than a product is split for."""
    tiles = transposable_tiles(CPU)
    return torch.cat([torch.cat([tiles[3], tiles[40]], 1), torch.cat([tiles[77], tiles[12]], 1)])


@pytest.mark.masks
@pytest.mark.parametrize("mask", ["tile", "tile_random", "tile_magnitude", "all 90", "8x8"])
def test_kept_values_turn_into_those_of_the_transpose(mask: str) -> None:
    if mask == "all 90":
        tiles = transposable_tiles(CPU).unflatten(0, (9, 10)).transpose(1, 2).flatten(2).flatten(0, 1)
        half = _half(DenseMask(tiles), 36, 40)
    else:
        half = _half(TiledMask(_eight(), 48, 64) if mask == "8x8" else mask)
    order, w_NK = TileOrder(half.mask, CPU), half.dense()
    assert order.repeats == (mask == "tile")
    values_NJ, turned = w_NK[half.mask.dense()].view(half.N, -1), half.transposed()
    out_KM, rows_NJ = (
        torch.empty(half.K, half.N // 2, dtype=torch.bfloat16),
        torch.empty(half.N, half.K // 2).bfloat16(),
    )
    order.transpose(values_NJ, out_KM, rows_NJ)
    assert torch.equal(out_KM, turned.kept_values(0, turned.N).bfloat16())
    assert torch.equal(rows_NJ, values_NJ.bfloat16())


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize(("N", "K"), [(16, 16), (48, 64), (144, 272), (1040, 400)])
@pytest.mark.parametrize("mask", ["tile", "tile_random"])
def test_kept_values_turn_on_a_gpu_as_on_a_cpu(mask: str, N: int, K: int) -> None:
    half, gpu = _half(mask, N, K), torch.device("cuda")
    for given, target in (
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ):
        values_NJ = half.dense()[half.mask.dense()].view(N, -1).to(given)
        expected_KM = torch.empty(K, N // 2, dtype=target)
        TileOrder(half.mask, CPU).transpose(values_NJ, expected_KM)
        on_gpu = Piece(GeneratedWeights(N, K, torch.float32, gpu), half.columns, DenseMask(half.mask.dense().to(gpu)))
        mask_there = build_mask("tile", on_gpu.source) if mask == "tile" else on_gpu.mask
        order = TileOrder(mask_there, gpu)
        for rows_NJ in (None, torch.empty(N, K // 2, dtype=target, device=gpu)):
            out_KM = torch.empty(K, N // 2, dtype=target, device=gpu)
            order.transpose(values_NJ.to(gpu), out_KM, rows_NJ)
            assert torch.equal(out_KM.cpu(), expected_KM)
            assert rows_NJ is None or torch.equal(rows_NJ.cpu(), values_NJ.to(target))


def _storage(kind: str, kernel: str, mask: str, dtype: torch.dtype = torch.float32, every: int = 1) -> Storage:
    """A trained half; reference goes backward by a packing of Wᵀ, as the sparse tensor cores do."""
    half, training = _half(mask, dtype=dtype), Training()
    packed = build_kernel(kernel).pack(half, backward=True)
    if kernel == "reference":
        packed.backward = backward_of(build_kernel("reference"), half)
        packed.grad_input = packed.backward  # type: ignore[method-assign,assignment]
    if kind == "compressed":
        return CompressedStorage(half, packed, training, None)
    return MaskedStorage(half, packed, training, None, every)


def test_what_storages_hold_of_a_matrix_by_arithmetic() -> None:
    half, training = _half("tile_random"), Training()
    N, K = half.N, half.K
    assert (CompressedStorage.elements(N * K), MaskedStorage.elements(N * K)) == (N * K // 2, N * K)
    masked = MaskedStorage.extra_bytes(N, K, 2, training, half.mask)
    assert masked == N * K * (4 + 1), "a float32 parameter and a byte of mask an element, beside the packing in bf16"
    kept = CompressedStorage.extra_bytes(N, K, 4, training, half.mask)
    assert kept == Kept.held_bytes(N, K, half.mask), "the parameter is the packing's own memory"
    assert CompressedStorage.extra_bytes(N, K, 2, training, half.mask) == kept + N * K // 2 * 4


@pytest.mark.parametrize("mask", ["1010", "tile_random"])
def test_what_masked_storage_takes_of_a_dense_matrix_is_what_the_mask_keeps(mask: str) -> None:
    storage = _storage("masked", "gathered" if mask == "1010" else "reference", mask)
    dense_NK = torch.randn(storage.dropped_NK.shape, generator=torch.Generator().manual_seed(1))
    held_NK = storage.held(dense_NK)
    assert torch.equal(held_NK, dense_NK.where(~storage.dropped_NK, 0))
    assert storage.dropped_NK.sum() == dense_NK.numel() // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "mask"),
    [
        ("gathered", "1010"),
        ("gathered", "tile"),
        ("reference", "tile"),
        ("reference", "tile_random"),
        ("reference", "random"),
        ("dense", "random"),
    ],
)
@pytest.mark.parametrize("kind", ["compressed", "masked"])
def test_a_step_reaches_every_product(kind: str, kernel: str, mask: str, dtype: torch.dtype) -> None:
    if (kind, kernel) == ("compressed", "dense"):
        with pytest.raises(InputError, match="take masked"):
            _storage(kind, kernel, mask, dtype)
        return
    storage = _storage(kind, kernel, mask, dtype)
    x_BK, grad_y_BN, kept = _random(6, 64, dtype=dtype), _random(6, 48, dtype=dtype), _half(mask).mask.dense()
    exact = (grad_y_BN.double().T @ x_BK.double()) * kept
    grad = storage.grad_weight(grad_y_BN, x_BK)
    assert grad.shape == storage.parameter.shape
    torch.testing.assert_close(storage.dense(grad).double(), exact, rtol=0, atol=1e-5)
    before, storage.parameter.grad = _matrix(storage).clone(), grad
    torch.optim.SGD([storage.parameter], lr=0.1).step()
    torch.testing.assert_close(_matrix(storage).double(), before.double() - 0.1 * exact, rtol=0, atol=1e-5)
    w_NK = _matrix(storage).to(dtype).double()
    tolerance = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(storage(x_BK).double(), x_BK.double() @ w_NK.T, **tolerance)
    torch.testing.assert_close(storage.grad_input(grad_y_BN).double(), grad_y_BN.double() @ w_NK, **tolerance)


def test_masked_weights_are_compressed_every_so_many_steps() -> None:
    for every, changes in ((1, [True] * 6), (3, [False, False, True] * 2), (0, [False] * 6)):
        storage = _storage("masked", "gathered", "tile", every=every)
        optimizer, x_BK = torch.optim.SGD([storage.parameter], lr=0.1), _random(2, 64)
        storage.parameter.grad = torch.ones_like(storage.parameter)
        found = []
        for _ in range(6):
            before = storage(x_BK)
            optimizer.step()
            found.append(not torch.equal(storage(x_BK), before))
        assert found == changes
        assert torch.equal(_matrix(storage), _matrix(storage) * _half("tile").mask.dense()), (
            "the mask is applied each time"
        )
    assert _cycle([5.0, 6.0], [1.0, 2.0], 4) == [2.0, 3.0]


def test_a_stale_packing_is_named() -> None:
    storage = _storage("compressed", "gathered", "tile", torch.bfloat16)
    with torch.no_grad():
        storage.parameter.add_(1)
    with pytest.raises(StalePacking, match=r"the parameter of a \(48, 32\) weight changed after it was packed"):
        storage(_random(2, 64, dtype=torch.bfloat16))
    storage.refresh()
    storage(_random(2, 64, dtype=torch.bfloat16))


def test_a_copy_of_a_storage_is_one_of_its_own() -> None:
    storage = _storage("compressed", "gathered", "tile")
    twin = copy.deepcopy(storage)
    twin.parameter.grad = torch.ones_like(twin.parameter)
    torch.optim.SGD([twin.parameter], lr=0.1).step()
    torch.testing.assert_close(twin(_random(2, 64)), _random(2, 64) @ _matrix(twin).T)
    torch.testing.assert_close(storage(_random(2, 64)), _random(2, 64) @ _half("tile").dense().T)


def test_a_copy_trains_in_the_dtype_of_what_it_is_a_copy_of() -> None:
    """Of 16-bit products the parameter is float32 and no memory of the packing: rounded, small steps would be lost."""
    storage = _storage("compressed", "gathered", "tile", torch.bfloat16)
    with torch.no_grad():
        storage.parameter.mul_(1 + 1e-5)
    storage.refresh()
    twin = copy.deepcopy(storage)
    assert torch.equal(twin.parameter, storage.parameter)
    assert twin.parameter.dtype == torch.float32


def test_what_differs_from_the_parameter_is_said() -> None:
    storage = _storage("masked", "gathered", "tile")
    assert storage.difference() is None
    storage.packed.values[0, 0].add_(1)
    assert "its packing's" in (storage.difference() or "")
    storage.refresh()
    storage.parameter.data[_half("tile").mask.complement().dense()] = -3.0
    assert storage.difference() == "a parameter holds -3.0 where its mask drops"


def test_what_is_compressed_every_so_many_steps_may_be_behind_but_not_stale() -> None:
    storage = _storage("masked", "gathered", "tile", every=3)
    storage.parameter.grad = torch.ones_like(storage.parameter)
    torch.optim.SGD([storage.parameter], lr=0.1).step()
    assert storage.difference() is None
    with torch.no_grad():
        storage.parameter.mul_(2)
    assert storage.difference() == "a parameter changed after it was packed"


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_optimizers_keep_the_states_they_say(name: str) -> None:
    kind, parameter = optimizer_of(name), nn.Parameter(torch.ones(5, 4))
    parameter.grad = torch.ones_like(parameter)
    optimizer = kind.build([parameter])
    optimizer.step()
    states = [value for value in optimizer.state[parameter].values() if value is not None and value.shape == (5, 4)]
    assert len(states) == kind.states
    assert optimizer.defaults["fused"]
    assert optimizer_of(f"{name}:lr=0.5:weight_decay=0.0").build([parameter]).defaults["lr"] == 0.5


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sgd:lr=-0.5", "lr"),
        ("sgd:weight_decay=-0.5", "weight_decay"),
        ("momentum:momentum=-0.5", "momentum"),
        ("momentum:lr=1e9", "lr"),
        ("adamw:eps=-0.5", "eps"),
        ("adamw:lr=nan", "lr"),
    ],
)
def test_a_rate_that_trains_nothing_is_refused(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=f"{says}.*{spec.partition('=')[2].removesuffix('e9')}"):
        optimizer_of(spec)


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_clipping_by_hand_is_torchs(max_norm: float) -> None:
    ours, theirs = ([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))] for _ in range(2))
    for parameters in (ours, theirs):
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, 1.0 + index)
    norm, expected = clip_grad_norm_(ours, max_norm), nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(norm.float(), expected)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert clip_grad_norm_([nn.Parameter(torch.ones(2))], 1.0) == 0


PICKS = {"kernel": "gathered", "mask": "1100", "storage": "compressed"}
CASE = Case("block_shock", PICKS, "gaussian", 64, 48, 16, "fp32", optimizer="momentum")


def _lost_step(patch: pytest.MonkeyPatch) -> None:
    """Rank 1 misses one step of the first optimizer."""
    step, calls = torch.optim.SGD.step, iter(range(1000))
    lost = 7 if torch.distributed.get_rank() == 1 else -1

    def faulty(self: torch.optim.SGD, closure: None = None) -> None:
        if next(calls) != lost:
            step(self)

    patch.setattr(torch.optim.SGD, "step", faulty)


def _local_norm(patch: pytest.MonkeyPatch) -> None:
    """Each rank clips by the norm of its own half."""
    patch.setattr("blockshock.training.clipping.split_over", lambda parameter: [])


def _wrong_gradient(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the kept values is gathered one row off."""
    gradient = Kept.gradient
    patch.setattr(Kept, "gradient", lambda self, *args: gradient(self, *args).roll(1, 0))


def _forgotten_decay(patch: pytest.MonkeyPatch) -> None:
    """The halves do not decay, the dense weights do."""
    build = OPTIMIZERS.get("momentum").build

    def faulty(self: object, parameters: object) -> torch.optim.Optimizer:
        optimizer = build(self, parameters)  # type: ignore[arg-type]
        shapes = {tuple(p.shape) for group in optimizer.param_groups for p in group["params"]}
        if (64, 24) in shapes:
            optimizer.param_groups[0]["weight_decay"] = 0.0
        return optimizer

    patch.setattr(OPTIMIZERS.get("momentum"), "build", faulty)


def _train_with(fault: Callable[[pytest.MonkeyPatch], None] | None, case: Case) -> TrajectoryResult:
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return trajectory.run(case, steps=12)


def test_a_right_run_follows_the_dense_trajectory(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_train_with, None, CASE)[0].failure() is None


def test_a_product_that_is_rounded_once_with_its_bias_follows_it_too(cpu_ranks: Ranks) -> None:
    """Of one piece in 16 bits dense runs agree to the last bit, unless some of them round before they add the bias."""
    picks = {"kernel": "gathered", "pruner": "1100", "storage": "compressed"}
    case = Case("pruned", picks, "recorded", 1536, 384, 32, "bf16", optimizer="adamw")
    assert cpu_ranks.run(_train_with, None, case)[0].failure() is None


def _failures_of_other_orders(pieces: int, seeds: range) -> list[str | None]:
    """Dense runs that sum in orders of their own, held to what others may differ by."""
    failures = []
    for seed in seeds:
        case = Case("dense_single", {}, "gaussian", 256, 192, 128, "bf16", seed=seed, optimizer="sgd")
        lesson, stream = lessons.prepare(case, 12, False), torch.Generator().manual_seed(seed + 99)
        plain = trajectory._plain_run(case, 12, False)
        limits = trajectory._limits(case, 12, False, pieces, 0, 1)
        columns, rows = (torch.randperm(size, generator=stream) for size in (case.K, case.B))
        other = trajectory._train_dense(case, lesson, columns, rows, pieces, bias_after=False)
        weight_distance = trajectory._weight_distances(other, plain)
        loss_distance = trajectory._loss_distances(other, plain)
        result = TrajectoryResult(weight_distance, limits[:12], loss_distance, limits[12:], other.losses)
        failures.append(result.failure())
    return failures


@pytest.mark.parametrize("pieces", [1, 2])
def test_another_order_follows_it_with_every_seed(pieces: int, cpu_ranks: Ranks) -> None:
    """After one step two runs may agree to the last bit, and a third differ in one rounding: that is no fault."""
    assert cpu_ranks.run(_failures_of_other_orders, pieces, range(12))[0] == [None] * 12


@pytest.mark.parametrize("fault", [_local_norm, _wrong_gradient, _forgotten_decay, _lost_step])
def test_a_run_that_leaves_the_dense_trajectory_is_caught(
    fault: Callable[[pytest.MonkeyPatch], None], cpu_ranks: Ranks
) -> None:
    assert "from the dense trajectory" in (cpu_ranks.run(_train_with, fault, CASE)[0].failure() or "")


def test_a_run_that_learns_nothing_is_caught() -> None:
    flat = TrajectoryResult([0.0] * 2, [1.0] * 2, [0.0] * 2, [1.0] * 2, [1.0, 1.0])
    assert flat.failure() == "nothing was learned: the loss went from 1 to 1"
    assert TrajectoryResult([float("nan")], [1.0], [0.0], [1.0], [1.0]).failure() is not None
