"""The sum inside the product's own kernel, on two GPUs: right, the same bits, under load, and when a rank dies.

What was sent is read, and its place made empty; sums that are no numbers come too.
"""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist
from gpus import needs_two_gpus

from blockshock.kernels import build_kernel, streamed_launch
from blockshock.machine import build_combine
from blockshock.matrices.masks import Mask
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import GeneratedWeights
from blockshock.measure import timing
from blockshock.methods import METHODS, Layer
from blockshock.ranks import RankError, Ranks, RankTimeout, spawn

pytestmark = [pytest.mark.gpu2, needs_two_gpus]

SHAPES = ((16, 32), (272, 160), (4096, 4096), (1536, 384), (8192, 2048), (28672, 512))
OF_FOUR = ((16, 64), (272, 192), (4096, 4096), (1536, 384), (28672, 512))
"""Of which each of two shards has columns enough."""
TOKENS = (1, 7, 8, 16, 33, 64)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _layer(N: int, K: int, tokens: int, mask: str = "random", combine: str = "fused", seed: int = 0) -> torch.nn.Module:
    source = GeneratedWeights(N, K, torch.bfloat16, _device(), seed=seed, with_bias=True)
    layer = Layer(source, {"kernel": "streamed", "mask": mask, "combine": combine}, tokens)
    return METHODS.get("block_shock")(layer, dist.group.WORLD)


def _x(tokens: int, K: int, seed: int = 1) -> torch.Tensor:
    stream = torch.Generator(_device()).manual_seed(seed)
    return torch.randn(tokens, K, generator=stream, device=_device()).bfloat16()


def _same_on_ranks(y: torch.Tensor) -> bool:
    others = [torch.empty_like(y) for _ in range(dist.get_world_size())]
    dist.all_gather(others, y)
    return all(torch.equal(y, other) for other in others)


def _wrong(shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[str]:
    found = []
    for N, K in shapes:
        source = GeneratedWeights(N, K, torch.bfloat16, _device(), with_bias=True)
        w_NK, bias = source.rows(0, N).double(), source.bias
        for mask in ("random", "1100", "magnitude"):
            layer = _layer(N, K, 64, mask)
            assert layer._combine == "fused"
            for tokens in TOKENS:
                x_BK = _x(tokens, K)
                exact = x_BK.double() @ w_NK.T + bias.double()
                first, again = layer(x_BK), layer(x_BK)
                if (first.double() - exact).norm() > 4e-3 * exact.norm():
                    found.append(f"{N}x{K} {mask} B={tokens}: {(first.double() - exact).norm() / exact.norm()}")
                if not (torch.equal(first, again) and _same_on_ranks(first)):
                    found.append(f"{N}x{K} {mask} B={tokens}: other bits")
    return found


def test_every_shape_and_number_of_tokens(gpu_ranks: Ranks) -> None:
    for found in gpu_ranks.run(_wrong):
        assert not found


@pytest.mark.skipif(torch.cuda.device_count() < 4, reason="needs four CUDA GPUs: run it on a machine that has them")
def test_every_shape_on_four_gpus() -> None:
    with spawn(4, device="cuda") as ranks:
        for found in [*ranks.run(_wrong, OF_FOUR), *ranks.run(_takes_turns), *ranks.run(_not_numbers)]:
            assert not found


def _unread(layer: torch.nn.Module) -> list[str]:
    """Whether sums lie where peers send them, once all is done."""
    peers = layer._exit._combine._peers
    torch.cuda.synchronize()
    dist.barrier()
    left = int((peers.memories[peers.rank].view(torch.int32) != -1).sum())
    dist.barrier()  # before any rank sends again
    return [f"{left} sums were not read"] if left else []


def _takes_turns() -> list[str]:
    """Layers of several shapes, and other ways to combine, share one workspace: many calls, none waited for."""
    found = []
    shapes = ((4096, 1024), (16, 64), (8192, 512))
    layers = [(*shape, _layer(*shape, 16, seed=n)) for n, shape in enumerate(shapes)]
    layers.append((4096, 1024, _layer(4096, 1024, 16, combine="two_shot", seed=9)))
    inputs = [_x(16, K, seed=n) for n, (_, K, _) in enumerate(layers)]
    right = [layer(x) for (_, _, layer), x in zip(layers, inputs, strict=True)]
    torch.cuda.synchronize()
    for turn in range(200):
        which = (turn * 7) % len(layers)
        if turn % 5 == dist.get_rank():
            torch.cuda._sleep(100_000)  # the peer is ahead, as far as it gets
        y = layers[which][2](inputs[which])
        if turn % 20 == 0:
            found += [] if torch.equal(y, right[which]) else [f"turn {turn}"]
    return found + _unread(layers[0][2])


def test_layers_take_turns(gpu_ranks: Ranks) -> None:
    for found in gpu_ranks.run(_takes_turns):
        assert not found


def _turned(first: int) -> list[str]:
    """Calls whose turns begin there: the last number of 32 bits is followed by the first."""
    layer, x_BK = _layer(272, 160, 16), _x(16, 160)
    right = layer(x_BK)
    _unread(layer)  # all ranks are done
    layer._exit._combine._peers.turns[0] = first
    _unread(layer)
    found = [f"turn {turn}" for turn in range(8) if not torch.equal(layer(x_BK), right)]
    return found + _unread(layer)


@pytest.mark.parametrize("first", [2**31 - 4, -5, -4])
def test_turns_begin_again(first: int, gpu_ranks: Ranks) -> None:
    for found in gpu_ranks.run(_turned, first):
        assert not found


def _not_numbers() -> list[str]:
    """Sums that are NaN or infinite arrive as such: what says that none has come is a NaN too."""
    layer, plain = _layer(4096, 1024, 16), _layer(4096, 1024, 16, combine="nccl")
    found = []
    for value in (float("nan"), float("inf"), float("-inf"), 0.0, -0.0):
        x_BK = _x(16, 1024)
        x_BK[3] = value
        x_BK[7, 5] = value
        ours, theirs = layer(x_BK), plain(x_BK)
        if not torch.equal(ours.isnan(), theirs.isnan()) or not torch.equal(ours.isinf(), theirs.isinf()):
            found.append(f"{value}: {int(ours.isnan().sum())} NaN where there are {int(theirs.isnan().sum())}")
    bits = torch.full((16, 1024), -1, dtype=torch.int16, device=_device()).view(torch.bfloat16)
    if not layer(bits).isnan().all():
        found.append("x of all bits")
    return found + _unread(layer)


def test_sums_that_are_no_numbers_come_too(gpu_ranks: Ranks) -> None:
    for found in gpu_ranks.run(_not_numbers):
        assert not found


def _under_load() -> list[str]:
    """A replayed graph, beside large products on another stream, and with one rank late."""
    layer, x_BK = _layer(28672, 2048, 16), _x(16, 2048)
    right = layer(x_BK).clone()
    held: dict[str, torch.Tensor] = {}
    graph = timing.capture(lambda: held.update(y=layer(x_BK)))
    heavy, other = torch.randn(8192, 8192, device=_device()).bfloat16(), torch.cuda.Stream()
    found = []
    for turn in range(50):
        with torch.cuda.stream(other):
            heavy @ heavy
        if turn % 10 == dist.get_rank():
            time.sleep(0.05)
        graph.replay()
        if not torch.equal(held["y"], right):
            found.append(f"turn {turn}")
    torch.cuda.synchronize()
    return found


def test_it_goes_on_beside_other_work_and_late_ranks(gpu_ranks: Ranks) -> None:
    for found in gpu_ranks.run(_under_load):
        assert not found


def _more_tokens() -> list[bool]:
    """More than fit go by two shots; gradients too."""
    layer = _layer(1024, 512, 16)
    plain = _layer(1024, 512, 16, combine="nccl")
    found = []
    for tokens in (64, 65, 300):
        x_BK = _x(tokens, 512)
        found.append(torch.allclose(layer(x_BK).float(), plain(x_BK).float(), rtol=2e-2, atol=5e-2))
    return found


def test_more_tokens_than_it_is_for(gpu_ranks: Ranks) -> None:
    for found in gpu_ranks.run(_more_tokens):
        assert all(found)


def _wrong_order() -> bool:
    """Planted: rank 1's half is that of rank 0, as if its metadata were."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mask, "complement", lambda self: self)
        patch.setattr("blockshock.methods.superposition.check_complementary", lambda *_: None)
        layer = _layer(1024, 512, 16)
    source = GeneratedWeights(1024, 512, torch.bfloat16, _device(), with_bias=True)
    x_BK = _x(16, 512)
    exact = x_BK.double() @ source.rows(0, 1024).double().T + source.bias.double()
    return bool((layer(x_BK).double() - exact).norm() > 0.1 * exact.norm())


def test_a_planted_fault_is_seen(gpu_ranks: Ranks) -> None:
    assert gpu_ranks.run(_wrong_order) == [True, True]


def _dies_on_rank_1(how: str) -> None:
    streamed_launch.WAIT_SECONDS = 5
    layer, x_BK = _layer(4096, 1024, 16), _x(16, 1024)
    layer(x_BK)
    torch.cuda.synchronize()
    if dist.get_rank() == 1:
        if how == "exits":
            os._exit(7)
        time.sleep(60)
    layer(x_BK)
    torch.cuda.synchronize()


def _alone() -> list[float]:
    """A product that sums with itself: its own memory is all peers'."""
    source = GeneratedWeights(256, 128, torch.bfloat16, _device())
    packed = build_kernel("streamed").pack(Piece(source, slice(0, 128), build_mask("random", source)))
    peers = build_combine("fused", dist.group.WORLD, 16 * 256, torch.bfloat16, _device())._peers
    return [float(packed.fuses), float(peers.turns.sum())]


@pytest.mark.reliability
def test_a_rank_that_dies_ends_in_an_error_and_not_in_a_gpu_that_hangs() -> None:
    with spawn(2, device="cuda", timeout=40) as ranks:
        with pytest.raises(RankError, match="rank 1 ended with exit code 7"):
            ranks.run(_dies_on_rank_1, "exits")
        with pytest.raises(RuntimeError) as raised:
            ranks.run(_dies_on_rank_1, "sleeps")
        assert not isinstance(raised.value, RankTimeout), "the kernel gives up before it is given up"
        assert ranks.run(_alone) == [[1.0, 0.0]] * 2
