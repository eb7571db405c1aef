"""How GPUs combine: each way on two of them against float64, in graphs, on other streams, and when a rank dies.

What the ways are built of is tested over files, on CPU ranks, by test_combines.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from weakref import WeakKeyDictionary, ref

import pytest
import torch
import torch.distributed as dist
from gpus import needs_two_gpus
from torch import nn

from blockshock import BlockShockLinear
from blockshock.errors import InputError
from blockshock.machine import Combine, Part, build_combine, combines
from blockshock.machine.combines.workspace import MOST_BYTES, workspace_for
from blockshock.matrices.weights import GeneratedWeights
from blockshock.measure import timing
from blockshock.methods import METHODS, Layer, combined
from blockshock.ranks import RankError, Ranks, RankTimeout, spawn

pytestmark = [pytest.mark.gpu2, needs_two_gpus]

SHAPES = ((1, 8), (7, 5), (16, 4096), (201, 72), (512, 8192), (9000, 8192))
"""(B, F): one row, an odd number of elements, those of decoding, no whole chunks, large, several blocks of MOST."""
MOST = 1 << 23
"""Elements that ranks share room for."""


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _parts(B: int, F: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Those of all ranks, the same on each."""
    stream = torch.Generator(_device()).manual_seed(B * F)
    shape = dist.get_world_size(), B, F
    return list(torch.randn(shape, generator=stream, device=_device()).to(dtype))


def _ways(dtype: torch.dtype, B: int = 1 << 10) -> list[str]:
    return combines.candidates(dist.get_world_size(), B, _device(), dtype)


def _wrong(combine: Combine, parts: list[torch.Tensor]) -> Iterator[str]:
    """What a way gives that is not the sum, or not all side by side."""
    rank, (B, F), dtype = dist.get_rank(), parts[0].shape, parts[0].dtype
    exact, whole = sum(part.double() for part in parts), torch.cat(parts, dim=1)
    off = len(parts) * torch.finfo(dtype).eps / 2
    for _ in range(3):  # the next may come while the last is still read
        for call in ("sum", "start_sum", "gather", "start_gather"):
            found = getattr(combine, call)(Part.of(parts[rank].clone()))
            found = found() if call.startswith("start") else found
            if "gather" in call and not torch.equal(found, whole):
                yield f"{call} {B}x{F}"
            if "sum" in call:
                bound = off * sum(part.double().abs() for part in parts)
                others = [torch.empty_like(found) for _ in parts]
                dist.all_gather(others, found)
                if not ((found.double() - exact).abs() <= bound).all():
                    yield f"{call} {B}x{F}"
                if not all(torch.equal(found, other) for other in others):
                    yield f"{call} {B}x{F}: other bits on another rank"


def _all_wrong(dtype: torch.dtype) -> list[str]:
    wrong = []
    for B, F in SHAPES:
        parts = _parts(B, F, dtype)
        for spec in _ways(dtype):
            combine = build_combine(spec, dist.group.WORLD, min(B * F, MOST), dtype, _device())
            wrong += [f"{spec} {what}" for what in _wrong(combine, parts)]
    return wrong


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_each_way_adds_up_and_puts_side_by_side(dtype: torch.dtype, gpu_ranks: Ranks) -> None:
    for wrong in gpu_ranks.run(_all_wrong, dtype):
        assert not wrong


@pytest.mark.skipif(torch.cuda.device_count() < 4, reason="needs four CUDA GPUs: run it on a machine that has them")
def test_each_way_on_four_gpus() -> None:
    with spawn(4, device="cuda") as four:
        for wrong in four.run(_all_wrong, torch.bfloat16) + four.run(_replayed):
            assert not wrong


def _replayed() -> list[str]:
    """Captured, and replayed on other values, on another stream, and between eager calls on a third."""
    wrong, group, rank = [], dist.group.WORLD, dist.get_rank()
    # Whole numbers of which bf16 has the sums, added up in any order.
    parts = [(2 * part).round().clamp(-7, 7) for part in _parts(512, 1024, torch.bfloat16)]
    for spec in _ways(torch.bfloat16):
        combine = build_combine(spec, group, 512 * 1024, torch.bfloat16, _device())
        mine = parts[rank].clone()
        held: dict[str, torch.Tensor] = {}

        def call(combine: Combine = combine, mine: torch.Tensor = mine, held: dict[str, torch.Tensor] = held) -> None:
            held["sum"] = combine.sum(Part.of(mine.clone()))
            held["whole"] = combine.start_gather(Part.of(mine))()

        graph, others = timing.capture(call), [torch.cuda.Stream(), torch.cuda.Stream()]
        for turn, factor in enumerate((1, 2, 4, 8)):
            mine.copy_(parts[rank] * factor)
            others[turn % 2].wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(others[turn % 2]):
                graph.replay()
                eager = combine.sum(Part.of(mine.clone()))
            torch.cuda.current_stream().wait_stream(others[turn % 2])
            wanted = sum(parts) * factor
            if not (torch.equal(held["sum"], wanted) and torch.equal(eager, wanted)):
                wrong.append(f"{spec} sum {factor}")
            if not torch.equal(held["whole"], torch.cat(parts, dim=1) * factor):
                wrong.append(f"{spec} whole {factor}")
    return wrong


def test_graphs_and_streams(gpu_ranks: Ranks) -> None:
    for wrong in gpu_ranks.run(_replayed):
        assert not wrong


def _eager_streams() -> bool:
    """Calls on two streams in turn, none waited for: they share what peers read."""
    combine = build_combine("two_shot", dist.group.WORLD, 1 << 22, torch.bfloat16, _device())
    parts = _parts(1024, 4096, torch.bfloat16)
    streams, found = [torch.cuda.Stream(), torch.cuda.Stream()], []
    torch.cuda.synchronize()
    for turn in range(20):
        with torch.cuda.stream(streams[turn % 2]):
            found.append(combine.sum(Part.of(parts[dist.get_rank()] * (turn + 1))))
    torch.cuda.synchronize()
    return all(torch.equal(sums, parts[0] * (t + 1) + parts[1] * (t + 1)) for t, sums in enumerate(found))


def test_eager_calls_on_two_streams_follow_one_another(gpu_ranks: Ranks) -> None:
    assert gpu_ranks.run(_eager_streams) == [True, True]


def _workspaces() -> dict[str, bool]:
    group, device = dist.group.WORLD, _device()
    first = workspace_for(group, 1 << 20, device)
    again, larger = workspace_for(group, 1 << 18, device), workspace_for(group, 1 << 40, device)
    found = {"shared": again is first, "kept": first is not larger, "bounded": larger.size == MOST_BYTES}
    dist.barrier()
    torch.cuda.synchronize()
    free, gone = torch.cuda.mem_get_info(device)[0], ref(larger)
    del larger
    dist.barrier()  # what a peer still has in its address space stays taken
    torch.cuda.synchronize()
    given = torch.cuda.mem_get_info(device)[0] - free
    return found | {"forgotten": gone() is None, f"{given >> 20} MiB given back": given >= MOST_BYTES}


def test_workspaces_are_shared_bounded_and_given_back(gpu_ranks: Ranks) -> None:
    for found in gpu_ranks.run(_workspaces):
        assert all(found.values()), found


def _passes(method: str, picks: dict[str, str], x_BK: torch.Tensor) -> list[torch.Tensor]:
    source = GeneratedWeights(1024, 512, torch.bfloat16, _device(), with_bias=True)
    own = {axis: spec for axis, spec in picks.items() if axis in METHODS.get(method).axes}
    layer = METHODS.get(method)(Layer(source, own, len(x_BK), backward=True), dist.group.WORLD)
    y_BN = layer(x_BK)
    (grad,) = torch.autograd.grad(y_BN.float().square().mean(), x_BK)
    with torch.inference_mode():
        return [y_BN.detach(), layer(x_BK).clone(), grad]


def _methods_apart() -> list[str]:
    wrong = []
    for B in (16, 384):
        stream = torch.Generator(_device()).manual_seed(1)
        x_BK = torch.randn(B, 512, generator=stream, device=_device()).bfloat16().requires_grad_()
        for kernel, mask in (("gathered", "1100"), ("streamed", "tile"), ("cusparselt:search=no", "tile")):
            picks = {"kernel": kernel, "mask": mask, "pruner": "1100" if kernel == "gathered" else "tile_magnitude"}
            for method in (name for name in METHODS.names() if "combine" in METHODS.get(name).axes):
                wanted = _passes(method, picks, x_BK)
                for spec in _ways(torch.bfloat16, B):
                    found = _passes(method, picks | {"combine": spec}, x_BK)
                    for what, a, b in zip(("y", "again", "grad_x"), found, wanted, strict=True):
                        if not torch.allclose(a, b, rtol=2e-2, atol=1e-6 + 2e-2 * b.abs().max().item()):
                            wrong.append(f"{method} {kernel} {spec} B={B}: {what}")
    return wrong


def test_every_method_gives_the_same_by_each_way(gpu_ranks: Ranks) -> None:
    for wrong in gpu_ranks.run(_methods_apart):
        assert not wrong


def _found_by_auto() -> tuple[str, str, int]:
    """What auto takes, twice, and how often it measured."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        measure = combined.Combined._measure
        patch.setattr(combined.Combined, "_measure", lambda self, *args: calls.append(1) or measure(self, *args))
        torch.manual_seed(0)
        linear = nn.Linear(1024, 1024, device=_device(), dtype=torch.bfloat16)
        first, second = (
            BlockShockLinear(linear, dist.group.WORLD, kernel="gathered", mask="1100", combine="auto", tokens=256)
            for _ in range(2)
        )
    x = torch.ones(256, 1024, device=_device(), dtype=torch.bfloat16)
    assert torch.allclose(first(x), linear(x), rtol=2e-2, atol=2e-2)
    return first.layer.algorithm, second.layer.algorithm, len(calls)


def test_auto_measures_once(gpu_ranks: Ranks, tmp_path: object) -> None:
    one, other = gpu_ranks.run(_found_by_auto)
    assert one == other, "ranks took different ways"
    assert one[0] == one[1]
    assert one[2] <= 1


def _trained() -> list[bool]:
    """Eager, and compiled: gradients of x, and of W of all ranks."""
    found = []
    for spec in ("nccl", "two_shot", "overlap"):
        torch.manual_seed(0)
        linear = nn.Linear(512, 512, device=_device())
        for compiled in (False, True):
            layer = BlockShockLinear(linear, dist.group.WORLD, kernel="gathered", mask="tile", combine=spec, tokens=512)
            called = torch.compile(layer, backend="aot_eager") if compiled else layer
            x = torch.randn(512, 512, device=_device(), generator=torch.Generator(_device()).manual_seed(1))
            x.requires_grad_()
            parameters = [storage.parameter for storage in layer.layer.storages()]
            ours, *parts = torch.autograd.grad(called(x).square().mean(), [x, *parameters])
            theirs, weight = torch.autograd.grad(linear(x).square().mean(), [x, linear.weight])
            found.append(torch.allclose(ours, theirs, rtol=1e-2, atol=1e-6))
            whole = layer.layer.whole(parts, "gradients")
            found.append(bool((whole - weight).norm() <= 1e-2 * weight.norm()))
            torch._dynamo.reset()
    return found


def test_layers_train_by_it_eager_and_compiled(gpu_ranks: Ranks) -> None:
    for found in gpu_ranks.run(_trained):
        assert all(found), found


def _dies_on_rank_1(how: str) -> None:
    combine = build_combine("two_shot", dist.group.WORLD, 1 << 16, torch.bfloat16, _device())
    part = Part.of(torch.ones(16, 4096, device=_device(), dtype=torch.bfloat16))
    combine.sum(part)
    torch.cuda.synchronize()
    if dist.get_rank() == 1 and how == "exits":
        os._exit(7)
    if dist.get_rank() == 1:
        time.sleep(60)
    combine.sum(part)
    torch.cuda.synchronize()


@pytest.mark.reliability
def test_a_rank_that_dies_in_a_barrier_is_named_and_the_next_call_runs() -> None:
    with spawn(2, device="cuda", timeout=20) as ranks:
        with pytest.raises(RankError, match="rank 1 ended with exit code 7"):
            ranks.run(_dies_on_rank_1, "exits")
        with pytest.raises(RankTimeout):
            ranks.run(_dies_on_rank_1, "sleeps")
        assert not any(ranks.run(_all_wrong, torch.bfloat16))


def _unreachable() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockshock.machine.combines.workspace._newest", WeakKeyDictionary())
        patch.setattr(
            "blockshock.machine.torch_internals.peer_memory", lambda *_: (_ for _ in ()).throw(RuntimeError("no peers"))
        )
        with pytest.raises(InputError) as error:
            build_combine("one_shot", dist.group.WORLD, 1 << 60, torch.bfloat16, _device())
    return str(error.value)


def test_gpus_that_do_not_reach_each_other_say_what_to_pick(gpu_ranks: Ranks) -> None:
    for says in gpu_ranks.run(_unreachable):
        assert "cannot reach each other's memory (no peers): pick combine nccl" in says
