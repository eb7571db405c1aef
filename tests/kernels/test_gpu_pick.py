"""What is taken of x by one launch on a GPU: the same as torch takes, as x lies, in graphs, behind what writes x."""

import itertools

import pytest
import torch
from gpus import needs_a_gpu

from blockshock.kernels.pick import picked, picks
from blockshock.matrices import Every

pytestmark = [pytest.mark.gpu, needs_a_gpu]
CUDA = torch.device("cuda")
SIZES = ((1, 16), (3, 48), (17, 4096), (257, 1040), (4096, 8192))
KEPT = [Every(positions, 4) for positions in itertools.combinations(range(4), 2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_it_is_what_torch_takes(kept: Every, dtype: torch.dtype) -> None:
    for B, K in SIZES:
        x_BK = torch.randn(B, K, device=CUDA).to(dtype)
        wide = torch.randn(B, K + 24, device=CUDA).to(dtype)
        for x in (x_BK, wide[:, 8 : 8 + K], wide[:, :K]):
            assert picks(kept, x)
            assert torch.equal(picked(kept, x), kept.take(x))


@pytest.mark.parametrize("x", [
    torch.ones(4, 24, dtype=torch.bfloat16), torch.ones(4, 16), torch.ones(16, 4, dtype=torch.bfloat16).T,
    torch.ones(4, 20, dtype=torch.bfloat16)[:, 4:], torch.ones(0, 16, dtype=torch.bfloat16),
])  # fmt: skip
def test_what_does_not_lie_so_is_left_to_torch(x: torch.Tensor) -> None:
    assert not picks(KEPT[0], x.cuda())


def test_what_is_differentiated_is_left_to_torch() -> None:
    x = torch.ones(4, 16, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    assert not picks(KEPT[0], x)
    with torch.no_grad():
        assert picks(KEPT[0], x)


def test_it_waits_for_what_writes_x() -> None:
    """Behind a kernel that takes long and one that takes none, eager and replayed, many times."""
    source, x_BK = (torch.zeros(2048, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    held: list[torch.Tensor] = []

    def call() -> None:
        held[:] = [picked(KEPT[0], torch.add(source, 1, out=x_BK)), picked(KEPT[5], x_BK.add_(1))]

    def check(value: int) -> None:
        assert all(bool((found == value + place).all()) for place, found in enumerate(held))

    for turn in range(25):
        source.fill_(turn)
        call()
        check(turn + 1)
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        call()
    for turn in range(25):
        source.fill_(turn)
        graph.replay()
        check(turn + 1)
