"""What is taken of x by one launch: which bytes, emulated; on a GPU: tests/kernels/test_gpu_pick.py."""

import itertools

import pytest
import torch

from blockshock.kernels.pick import picks, selector
from blockshock.matrices import Every


def permuted(first: int, second: int, selector: int) -> int:
    """As of CUDA's ``__byte_perm``."""
    eight = first.to_bytes(4, "little") + second.to_bytes(4, "little")
    return int.from_bytes(bytes(eight[selector >> (4 * place) & 7] for place in range(4)), "little")


@pytest.mark.parametrize("positions", list(itertools.combinations(range(4), 2)))
def test_the_bytes_of_two_of_each_four_stay(positions: tuple[int, int]) -> None:
    kept = Every(positions, 4)
    x_BK = torch.randint(-(1 << 15), 1 << 15, (3, 16)).to(torch.int16)
    words = [[number & 0xFFFFFFFF for number in row] for row in x_BK.view(torch.int32).tolist()]
    found = [[permuted(*row[at : at + 2], selector(kept)) for at in range(0, len(row), 2)] for row in words]
    wanted = x_BK[:, [start + position for start in range(0, 16, 4) for position in positions]].contiguous()
    assert found == [[number & 0xFFFFFFFF for number in row] for row in wanted.view(torch.int32).tolist()]


def test_a_cpu_takes_them_by_torch() -> None:
    assert not picks(Every((0, 1), 4), torch.ones(4, 16, dtype=torch.bfloat16))
