"""Backward, piece by piece: transposed masks and weights, each kernel's grad_input, the conjugate collectives."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from gpus import CPU_METHODS, needs_a_gpu

from blockshock.errors import InputError, MaskError
from blockshock.kernels import build_kernel
from blockshock.kernels.backward import backward_of
from blockshock.kernels.dense import PackedDense
from blockshock.kernels.packed import Packed
from blockshock.machine import Entry, Exit, Gathered, OwnFeatures, Part, Replicated, Summed, build_combine
from blockshock.matrices.compressed import Compressed24
from blockshock.matrices.mask_checks import check_2to4
from blockshock.matrices.masks import DenseMask
from blockshock.matrices.named_masks import MASKS, build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import GeneratedWeights, TensorWeights, TransposedWeights
from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.methods import METHODS
from blockshock.methods.product import product
from blockshock.phases import backward
from blockshock.phases.case import Case
from blockshock.ranks import Ranks, spawn

CPU = torch.device("cpu")
CASE = Case("block_shock", {"kernel": "gathered", "mask": "tile"}, "gaussian", 96, 160, 6, "bf16")


@pytest.mark.masks
@pytest.mark.parametrize("name", MASKS.names())
def test_a_transposed_mask_is_the_transpose(name: str) -> None:
    mask = build_mask(name, GeneratedWeights(24, 32, torch.float32, CPU))
    assert torch.equal(mask.transposed().dense(), mask.dense().T)
    assert torch.equal(mask.transposed().rows(3, 9), mask.dense().T[3:9])
    assert torch.equal(mask.transposed().transposed().dense(), mask.dense())
    if name.startswith("tile"):
        check_2to4(mask.transposed())
        check_2to4(mask.complement().transposed())


@pytest.mark.masks
def test_transposed_weights_are_the_transpose_of_the_given_columns() -> None:
    source = GeneratedWeights(24, 32, torch.float32, CPU)
    w_NK, transposed = source.gather(slice(None)), TransposedWeights(source, slice(8, 20))
    assert (transposed.N, transposed.K) == (12, 24)
    assert torch.equal(transposed.gather(slice(None)), w_NK[:, 8:20].T)
    assert torch.equal(transposed.rows(2, 5), w_NK[:, 10:13].T)
    mask = DenseMask(torch.rand(12, 24) > 0.5)
    assert torch.equal(transposed.gather(slice(None), mask), w_NK[:, 8:20].T * mask.dense())


@pytest.mark.masks
@pytest.mark.parametrize("K", [32, 36])
def test_columns_decompress_alone(K: int) -> None:
    source = GeneratedWeights(8, K, torch.bfloat16, CPU)
    mask = build_mask("random", source)
    packed = Compressed24.from_source(source, slice(None), mask)
    assert torch.equal(packed.decompress_columns(16, K), packed.decompress()[:, 16:])
    assert torch.equal(packed.decompress_columns(8, 16), packed.decompress()[:, 8:16])
    with pytest.raises(InputError, match=r"columns \[4, 16\) of K = .*multiples of 8"):
        packed.decompress_columns(4, 16)


@pytest.mark.masks
def test_columns_beyond_a_mask_are_refused() -> None:
    mask = build_mask("random", GeneratedWeights(4, 8, torch.float32, CPU))
    with pytest.raises(MaskError, match=r"columns \[4, 16\) are not columns of a mask with K = 8"):
        mask.columns(4, 16)


@pytest.mark.masks
def test_a_bias_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="bias holds nan at row 2"):
        TensorWeights(torch.ones(4, 8), torch.tensor([0.0, 0.0, float("nan"), 0.0]))


def _half(mask: str, columns: slice = slice(0, 96)) -> Piece:
    source = GeneratedWeights(64, 96, torch.float32, CPU)
    whole = build_mask(mask, source)
    return Piece(source, columns, whole.columns(columns.start, columns.stop))


def _grad_y(N: int = 64) -> torch.Tensor:
    return torch.randn(5, N, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("columns", [slice(0, 96), slice(48, 96)])
@pytest.mark.parametrize("mask", ["1100", "1001", "tile", "random", "tile_magnitude"])
@pytest.mark.parametrize("kernel", ["dense", "reference", "gathered"])
def test_grad_input_is_right(kernel: str, mask: str, columns: slice) -> None:
    half, built = _half(mask, columns), build_kernel(kernel)
    if built.unsuitable(half.N, half.K, half.dtype, half.mask):
        return
    exact_BK = _grad_y().double() @ half.dense().double()
    grad_x_BK = built.pack(half, backward=True).grad_input(_grad_y())
    assert (grad_x_BK.double() - exact_BK).norm() <= 1e-6 * exact_BK.norm()


@pytest.mark.parametrize(("mask", "says"), [("tile_random", ""), ("1100", "dense, for the mask is not transposable")])
def test_a_kernel_without_a_product_over_n_packs_the_transpose(mask: str, says: str) -> None:
    # What cuSPARSELt and CUTLASS do on a GPU, with the reference kernel in their place.
    half = _half(mask)
    packed = build_kernel("reference").pack(half)
    packed.backward = backward_of(build_kernel("reference"), half)
    assert packed.backward.algorithm == says
    exact_BK = _grad_y().double() @ half.dense().double()
    assert (Packed.grad_input(packed, _grad_y()).double() - exact_BK).norm() <= 1e-6 * exact_BK.norm()
    new = Piece(GeneratedWeights(64, 96, torch.float32, CPU, seed=1), half.columns, half.mask)
    packed.write(packed.kept_of(new.dense()))
    exact_BK = _grad_y().double() @ new.dense().double()
    assert (Packed.grad_input(packed, _grad_y()).double() - exact_BK).norm() <= 1e-6 * exact_BK.norm()


class _Strict(Packed):
    """A packing that, as sparse kernels do, reads grad_y as dense memory."""

    shape = (4, 4)

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK.clone()

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        assert grad_y_BN.is_contiguous(), "a gradient of stride zero reached the kernel"
        return grad_y_BN


def test_the_expanded_gradient_of_a_sum_is_made_contiguous() -> None:
    x_BK = torch.randn(3, 4, requires_grad=True)
    product(x_BK, _Strict(), Entry(), Exit()).sum().backward()
    assert x_BK.grad is not None
    assert torch.equal(x_BK.grad, torch.ones(3, 4))


def test_the_dense_product_agrees_with_autograd() -> None:
    x_BK, w_NK, bias = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4), torch.randn(5)
    product(x_BK, PackedDense(w_NK, bias), Entry(), Exit()).square().sum().backward()
    expected = torch.autograd.grad(torch.nn.functional.linear(x_BK, w_NK, bias).square().sum(), x_BK)[0]
    assert x_BK.grad is not None
    torch.testing.assert_close(x_BK.grad, expected)


def _conjugates() -> dict[str, list[float]]:
    """Values and gradients of the four pairs for rank-dependent inputs."""
    group = dist.group.WORLD
    assert group is not None
    mine = torch.full((1, 2), float(group.rank() + 1), requires_grad=True)
    weight = torch.tensor([[1.0, 10.0]]) * (group.rank() + 1)
    found = {}
    combine, same = build_combine("nccl", group, 4, torch.float32, CPU), PackedDense(torch.eye(2), None)
    own_columns = slice(2 * group.rank(), 2 * group.rank() + 2)
    y = product(mine, same, Entry(), Summed(combine))
    (grad,) = torch.autograd.grad(y, mine, weight)
    found["sum"] = [*y.flatten().tolist(), *grad.flatten().tolist()]
    entry, part = Replicated(combine), Part.of(weight.clone())
    found["replicated"] = [*entry.take(mine).flatten().tolist(), *entry.give_back(part)().flatten().tolist()]
    y = product(mine, same, Entry(), Gathered(combine, own_columns, 4))
    (grad,) = torch.autograd.grad(y, mine, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    found["gather"] = [*y.flatten().tolist(), *grad.flatten().tolist()]
    own = OwnFeatures(combine, own_columns, 4)
    taken = own.take(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    found["own"] = [*taken.flatten().tolist(), *own.give_back(Part.of(weight))().flatten().tolist()]
    return found


def test_each_collective_has_its_conjugate_in_backward(cpu_ranks: Ranks) -> None:
    first, second = cpu_ranks.run(_conjugates)
    assert (first["sum"], second["sum"]) == ([3, 3, 1, 10], [3, 3, 2, 20]), "summed output: identity in backward"
    assert (first["replicated"], second["replicated"]) == ([1, 1, 3, 30], [2, 2, 3, 30]), "replicated: all-reduce"
    assert (first["gather"], second["gather"]) == ([1, 1, 2, 2, 1, 2], [1, 1, 2, 2, 3, 4]), "gathered: own slice"
    assert (first["own"], second["own"]) == ([1, 2, 1, 10, 2, 20], [3, 4, 1, 10, 2, 20]), "own shard: gather"


def _failures(results: list[backward.GradientResult]) -> list[str]:
    accuracies = [
        Accuracy.of(sum((result.errors[loss] for result in results), ErrorSums()), results[0].roundings)
        for loss in results[0].errors
    ]
    return [failure for accuracy in accuracies if (failure := accuracy.failure())]


def test_every_method_goes_backward_on_one_and_on_four_ranks(other_ranks: Ranks) -> None:
    for name in CPU_METHODS:
        for kernel, mask in (("gathered", "tile"), ("gathered", "1001"), ("reference", "tile_random")):
            pruner = "1100" if kernel == "gathered" else "tile_magnitude"
            blocks = {"block_kernel": "reference", "block_mask": "blocks:size=32:level=0.5"}
            picked = CASE.picking(kernel=kernel, mask=mask, pruner=pruner, **blocks)
            case = picked.of(name, METHODS.get(name).axes)
            results = other_ranks.run(backward.check, case)
            assert not _failures(results), case.id
            assert all(result.same_on_ranks and result.same_again for result in results), case.id


def _skipped_input_reduce(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replicated, "give_back", Entry.give_back)


def _scaled_by_ranks(patch: pytest.MonkeyPatch) -> None:
    give_back = Replicated.give_back
    half = lambda self, grad: give_back(self, Part.of(grad.all() / dist.get_world_size()))  # noqa: E731
    patch.setattr(Replicated, "give_back", half)


def _check_with(fault: Callable[[pytest.MonkeyPatch], None], case: Case) -> backward.GradientResult:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        return backward.check(case)


@pytest.mark.correctness
@pytest.mark.parametrize("fault", [_skipped_input_reduce, _scaled_by_ranks])
def test_a_wrong_gradient_is_caught(fault: Callable[[pytest.MonkeyPatch], None], cpu_ranks: Ranks) -> None:
    assert len(_failures(cpu_ranks.run(_check_with, fault, CASE))) == 3


def _nan_without_contiguous() -> tuple[bool, bool]:
    """Whether the gradient of a sum through cuSPARSELt is finite; and whether it is without the fix."""
    source = GeneratedWeights(256, 256, torch.bfloat16, torch.device("cuda"))
    half = Piece(source, slice(0, 256), build_mask("tile", source))
    packed = build_kernel("cusparselt:search=no").pack(half, backward=True)
    x_BK = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with_fix = torch.autograd.grad(product(x_BK, packed, Entry(), Exit()).sum(), x_BK)[0]
    expanded = torch.ones((), device="cuda", dtype=torch.bfloat16).expand(64, 256)
    exact_BK = expanded.double() @ half.dense().double()
    right = (with_fix.double() - exact_BK).norm() <= 0.01 * exact_BK.norm()
    return bool(right), bool(torch.isfinite(packed.grad_input(expanded)).all())


@pytest.mark.gpu
@needs_a_gpu
def test_the_gradient_of_a_sum_is_right_through_cusparselt() -> None:
    with spawn(1, device="cuda") as ranks:
        ((right, finite_without),) = ranks.run(_nan_without_contiguous)
    print(f"finite without the fix: {finite_without}")
    assert right
