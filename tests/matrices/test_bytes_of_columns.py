"""Which bytes of words columns are, emulated; moved by a GPU: tests/matrices/test_columns_on_gpu.py."""

import itertools

import pytest
import torch

from blockshock.matrices import Every, columns_on_gpu


def permuted(first: int, second: int, selector: int) -> int:
    """As of CUDA's ``__byte_perm``."""
    eight = first.to_bytes(4, "little") + second.to_bytes(4, "little")
    return int.from_bytes(bytes(eight[selector >> (4 * place) & 7] for place in range(4)), "little")


def words(x: torch.Tensor) -> list[list[int]]:
    return [[number & 0xFFFFFFFF for number in row] for row in x.contiguous().view(torch.int32).tolist()]


@pytest.mark.parametrize("positions", list(itertools.combinations(range(4), 2)), ids=str)
def test_two_of_each_four_are_taken_and_put_back(positions: tuple[int, int]) -> None:
    x = torch.randint(-(1 << 15), 1 << 15, (3, 16)).to(torch.int16)
    kept = Every(positions, 4).columns(16)
    one, other = words(x[:, kept]), words(x[:, [column for column in range(16) if column not in kept]])
    taking = columns_on_gpu.taking(positions)
    assert one == [[permuted(*row[at : at + 2], taking) for at in range(0, len(row), 2)] for row in words(x)]
    putting = columns_on_gpu.putting(positions)
    pairs = [zip(*rows, strict=True) for rows in zip(one, other, strict=True)]
    assert words(x) == [[permuted(*pair, selector) for pair in row for selector in putting] for row in pairs]


def test_a_cpu_moves_them_by_torch() -> None:
    x_BK = torch.ones(4, 16, dtype=torch.bfloat16)
    assert not columns_on_gpu.takes((0, 1), 4, x_BK)
    assert not columns_on_gpu.puts(x_BK[:, :8], x_BK[:, 8:], x_BK)
