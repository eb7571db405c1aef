"""Columns that halves keep move on a GPU as torch moves them, as matrices lie, in graphs, behind what writes them."""

import itertools

import pytest
import torch
from gpus import needs_a_gpu

from blockshock.matrices import ColumnsOfHalves, Every, columns_on_gpu

pytestmark = [pytest.mark.gpu, needs_a_gpu]
CUDA = torch.device("cuda")
SIZES = ((1, 8), (3, 48), (17, 4096), (257, 1040), (4096, 8192))
PAIRS = list(itertools.combinations(range(4), 2))


def wholes(B: int, K: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Dense, and twice as columns of a wider matrix."""
    wide = torch.randn(B, K + 24, device=CUDA).to(dtype)
    return [torch.randn(B, K, device=CUDA).to(dtype), wide[:, 8 : 8 + K], wide[:, :K]]


def columns(positions: tuple[int, ...], K: int) -> list[int]:
    return Every(positions, 4).columns(K)


@pytest.mark.parametrize("dtype", columns_on_gpu.DTYPES)
@pytest.mark.parametrize("positions", PAIRS, ids=str)
def test_they_are_what_indices_take(positions: tuple[int, ...], dtype: torch.dtype) -> None:
    for B, K in SIZES:
        for x_BK in wholes(B, K, dtype):
            assert columns_on_gpu.takes(positions, 4, x_BK)
            found = Every(positions, 4).take(x_BK)
            assert found.is_contiguous()
            assert torch.equal(found, x_BK[:, columns(positions, K)])


@pytest.mark.parametrize("dtype", columns_on_gpu.DTYPES)
@pytest.mark.parametrize("positions", PAIRS, ids=str)
def test_two_halves_come_together(positions: tuple[int, ...], dtype: torch.dtype) -> None:
    others = tuple(sorted({0, 1, 2, 3} - set(positions)))
    place = ColumnsOfHalves(Every(positions, 4), Every(others, 4))
    for B, K in SIZES:
        for whole in wholes(B, K, dtype):
            wanted, before = torch.randn(B, K, device=CUDA).to(dtype), whole._version
            one, other = wanted[:, columns(positions, K)], wanted[:, columns(others, K)]
            apart = torch.cat([one, other], dim=1)[:, K // 2 :]  # the other's rows lie further apart
            assert columns_on_gpu.puts(one, apart, whole)
            place.put([one, apart], whole)
            assert torch.equal(whole, wanted)
            assert whole._version > before
            assert torch.equal(place.joined(torch.cat([one, other]), 2), wanted)


def test_what_lies_around_them_stays() -> None:
    around = torch.full((66, 96), 5, device=CUDA, dtype=torch.bfloat16)
    halves = torch.ones(2, 64, 40, device=CUDA, dtype=torch.bfloat16)
    ColumnsOfHalves(Every((0, 3), 4), Every((1, 2), 4)).put([*halves], around[1:65, 8:88])
    assert bool((around[1:65, 8:88] == 1).all())
    assert float(around.sum()) == 5 * around.numel() - 4 * 64 * 80


@pytest.mark.parametrize("x", [
    torch.ones(4, 20, dtype=torch.bfloat16), torch.ones(4, 16), torch.ones(16, 4, dtype=torch.bfloat16).T,
    torch.ones(0, 16, dtype=torch.bfloat16),
])  # fmt: skip
def test_what_does_not_lie_so_is_left_to_torch(x: torch.Tensor) -> None:
    assert not columns_on_gpu.takes((0, 1), 4, x.cuda())


def test_what_lies_between_words_is_left_to_torch() -> None:
    x_BK = torch.randn(4, 20, device=CUDA).bfloat16()[:, 4:]
    assert not columns_on_gpu.takes((0, 1), 4, x_BK)
    halves, whole = torch.ones(2, 4, 8, device=CUDA, dtype=torch.bfloat16), torch.ones_like(x_BK)
    assert columns_on_gpu.puts(*halves, whole)
    assert not columns_on_gpu.puts(*halves, x_BK)
    assert not columns_on_gpu.puts(halves[0], torch.ones(4, 9, device=CUDA, dtype=torch.bfloat16)[:, 1:], whole)
    assert not columns_on_gpu.puts(halves[0], halves[1].half(), whole)


def test_what_is_differentiated_is_left_to_torch() -> None:
    x_BK = torch.ones(4, 16, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    assert not columns_on_gpu.takes((0, 1), 4, x_BK)
    (grad_BK,) = torch.autograd.grad(Every((0, 1), 4).take(x_BK).sum(), x_BK)
    assert float(grad_BK.sum()) == 32
    with torch.no_grad():
        assert columns_on_gpu.takes((0, 1), 4, x_BK)


def test_it_waits_for_what_writes_x() -> None:
    """Behind a kernel, and behind a copy, eager and replayed, many times."""
    source, x_BK = (torch.zeros(2048, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    held: list[torch.Tensor] = []

    def call() -> None:
        first = Every((0, 1), 4).take(torch.add(source, 1, out=x_BK))
        second = Every((2, 3), 4).take(x_BK.add_(1))
        held[:] = [first, second, Every((0, 2), 4).take(x_BK.copy_(source))]

    def check(value: int) -> None:
        wanted = (value + 1, value + 2, value)
        assert all(bool((found == one).all()) for found, one in zip(held, wanted, strict=True))

    for turn in range(25):
        source.fill_(turn)
        call()
        check(turn)
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        call()
    for turn in range(25):
        source.fill_(turn)
        graph.replay()
        check(turn)
