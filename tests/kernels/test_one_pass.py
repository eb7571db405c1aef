"""By how many threads a row is quantised, and sums are scaled: all of them work, and what a row needs is there."""

from __future__ import annotations

import pytest

from blockshock.kernels.formats import one_pass

ROWS = (1, 16, 64, 1000, 1300, 12_608, 32_768, 1 << 20)
FEATURES = (4, 128, 256, 384, 768, 1024, 1028, 3072, 4096, 8192, 16_384, 65_536)
KEPT = 4 * 8
"""Numbers of a row that a thread keeps."""
FULL = 1 << 18
"""Threads by which a GPU is full."""


@pytest.mark.parametrize("K", FEATURES)
@pytest.mark.parametrize("R", ROWS)
def test_a_row_is_quantised_by_as_few_threads_as_keep_it_and_fill_the_gpu(R: int, K: int) -> None:
    threads = one_pass._row_threads(R, K)
    assert threads in (32, 64, 128, 256, 512)
    assert KEPT * threads >= min(K, KEPT * 512)
    assert R * threads >= FULL or threads >= min(K // 4, 512)
    if threads > 32:
        assert KEPT * (threads // 2) < K or R * (threads // 2) < FULL, "half of them would do"
        assert threads < 2 * (K // 4), "half of them have nothing to do"


@pytest.mark.parametrize(
    ("R", "K", "threads"),
    [(32_768, 256, 32), (32_768, 1024, 32), (12_608, 768, 32), (12_608, 3072, 128), (16, 8192, 512), (1, 65_536, 512)],
)
def test_short_rows_of_many_are_a_warps_and_long_rows_of_few_a_whole_blocks(R: int, K: int, threads: int) -> None:
    assert one_pass._row_threads(R, K) == threads


@pytest.mark.parametrize("N", [*FEATURES, 520, 1000, 11_008])
def test_of_the_threads_along_a_row_of_sums_an_eighth_idles_at_most(N: int) -> None:
    across = one_pass._across(N)
    assert across in (32, 64, 128, 256)
    there = across * -(-N // (4 * across))
    assert there - N // 4 <= there / 8 or across == 32
    assert across == 256 or 7 * 2 * across * -(-N // (8 * across)) > 8 * (N // 4), "twice as many would do"
