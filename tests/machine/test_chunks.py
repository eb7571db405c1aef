"""Chunk by chunk, beside what is under way to peers: what all chunks read is made before the first of them, and once.

Memory that GPUs read of each other is faked by files here, as in test_combines.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_cusparselt import faked as fake_cusparselt
from fake_peers import faked
from strategies import equal, matrix

from blockshock import BlockShockLinear, stages
from blockshock.kernels.gathered import PackedGathered
from blockshock.kernels.packed import Packed
from blockshock.matrices.repeating_rows import Every
from blockshock.matrices.weights import TensorWeights
from blockshock.methods import METHODS, Layer
from blockshock.ranks import Ranks

N, K = 32, 128
PICKS = {"mask": "1100", "pruner": "1100"}


def _built(method: str, combine: str, picks: dict[str, str], dtype: torch.dtype, tokens: int) -> Any:
    source = TensorWeights(matrix(N, K, dtype, 0), bias=matrix(1, N, dtype, 1)[0])
    kind = METHODS.get(method)
    axes = {axis: spec for axis, spec in (PICKS | picks).items() if axis in kind.axes}
    return kind(Layer(source, {**axes, "combine": combine}, tokens), dist.group.WORLD)


def _stages_of(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, list[str], int]:
    """What it gives, the stages that it goes through one after the other, and the bytes copied."""
    with torch.no_grad(), stages.recording(lambda: None) as recorder:
        found = call()
    return found, [name for name, *_ in recorder._spans], recorder.copied_bytes


def _gathered(method: str, mask: str, tokens: int) -> list[Any]:
    """Whether y has the bits of nccl's; the stages; bytes copied."""
    picks, x_BK = {"kernel": "gathered", "mask": mask, "pruner": mask}, matrix(tokens, K, torch.float32, 3)
    wanted = _built(method, "nccl", picks, torch.float32, tokens)(x_BK)
    with faked():
        built = _built(method, "overlap:chunks=4", picks, torch.float32, tokens)
        found, names, copied = _stages_of(lambda: built(x_BK))
    return [equal(found, wanted), names, copied]


CHUNK = ["matmul", "reduce"]


@pytest.mark.parametrize("tokens", [256, 301])
def test_columns_are_gathered_once_for_all_chunks(tokens: int, cpu_ranks: Ranks) -> None:
    for method in ("block_shock", "pruned_tp_row", "pruned_tp_col"):
        columns = K // 2 if method == "pruned_tp_row" else K
        for same, names, copied in cpu_ranks.run(_gathered, method, "1100", tokens):
            assert same
            assert names[: 1 + 4 * len(CHUNK)] == ["layout", *CHUNK * 4]
            assert set(names[1 + 4 * len(CHUNK) :]) == {"reduce"}
            assert copied == tokens * columns // 2 * 4


def test_those_of_several_patterns_are_too(cpu_ranks: Ranks) -> None:
    chunk = ["matmul", "matmul", "layout", "reduce"]  # of which the layout puts each pattern's features in place
    for same, names, copied in cpu_ranks.run(_gathered, "block_shock", "tile", 256):
        assert same
        assert names[: 2 + 4 * len(chunk)] == ["layout", "layout", *chunk * 4]
        assert copied == 2 * 256 * K // 2 * 4 + 256 * N * 4


def _once_a_chunk() -> None:
    """A planted fault: every chunk gathers for itself."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("laid_out", "laid_into"):
            patch.setattr(PackedGathered, name, getattr(Packed, name))
        same, names, _ = _gathered("block_shock", "1100", 256)
    assert same
    assert names.count("layout") == 4


def test_gathers_of_each_chunk_would_be_seen(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_once_a_chunk)


def _of_libraries(picks: dict[str, str], method: str, tokens: int) -> list[Any]:
    x_BK = matrix(tokens, K, torch.bfloat16, 3)
    with ExitStack() as stack:
        stack.enter_context(fake_cusparselt())
        wanted = _built(method, "nccl", picks, torch.bfloat16, tokens)(x_BK)
        stack.enter_context(faked())
        built = _built(method, "overlap:chunks=4", picks, torch.bfloat16, tokens)
        found, names, copied = _stages_of(lambda: built(x_BK))
    return [equal(found, wanted), names, copied]


@pytest.mark.parametrize(("tokens", "filled"), [(256, 0), (261, 24)])
def test_a_shard_of_columns_is_copied_once_and_few_rows_are_filled_up(
    tokens: int, filled: int, cpu_ranks: Ranks
) -> None:
    """261 rows are three chunks of 80, which are multiples of eight, and one of 21, which is not."""
    own, part = K // 2, tokens * N
    for same, _, copied in cpu_ranks.run(_of_libraries, {"kernel": "cusparselt:search=no"}, "pruned_tp_row", tokens):
        assert same
        assert copied == 2 * (tokens * own + filled * own + part)


def test_in_a_format_x_is_quantised_once_for_all_chunks(cpu_ranks: Ranks) -> None:
    for same, names, _ in cpu_ranks.run(_of_libraries, {"format": "int8"}, "dense_tp_row", 256):
        assert same
        assert names.count("quantise") == 1
        assert names.count("matmul") == 4


def _trained() -> bool:
    """A layer that is trained: what multiplies is checked, and so is what is taken of x."""
    taken: list[int] = []
    with faked(), pytest.MonkeyPatch.context() as patch:
        take = Every.take
        patch.setattr(Every, "take", lambda self, x_BK: taken.append(len(x_BK)) or take(self, x_BK))
        linear = torch.nn.Linear(K, N)
        layer = BlockShockLinear(
            linear, dist.group.WORLD, kernel="gathered", mask="1100", combine="overlap:chunks=4", tokens=256
        )
        taken.clear()
        x = matrix(256, K, torch.float32, 3).requires_grad_()
        y = layer(x)
    return taken == [256] and y.shape == (256, N)


def test_a_trained_layer_gathers_once_too(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_trained) == [True, True]


def _rows_of_chunks(tokens: int) -> list[int]:
    rows: list[int] = []
    with faked(), pytest.MonkeyPatch.context() as patch:
        into = Packed.into
        patch.setattr(Packed, "into", lambda self, x_BK, out_BN: rows.append(len(x_BK)) or into(self, x_BK, out_BN))
        _built("pruned_tp_row", "overlap:chunks=3", {"kernel": "reference"}, torch.float32, tokens)(
            matrix(tokens, K, torch.float32, 3)
        )
    return rows


def test_chunks_are_whole_multiples_but_for_the_last(cpu_ranks: Ranks) -> None:
    for tokens, rows in ((240, [80, 80, 80]), (241, [96, 96, 49]), (200, [80, 80, 40])):
        assert cpu_ranks.run(_rows_of_chunks, tokens) == [rows, rows]
