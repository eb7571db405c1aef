"""How ranks combine: each way gives what nccl's gives, forward, backward and in training, whatever it goes through.

Memory that GPUs read of each other is faked by files here; the real one is for tests/machine/test_gpu_combines.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_peers import FakeWorkspace, faked
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from blockshock import BlockShockLinear, BlockShockParallel, replace_linears
from blockshock.errors import InputError, UnknownName
from blockshock.machine import COMBINES, Part, build_combine, combines
from blockshock.machine.combines import overlap, workspace
from blockshock.machine.combines.fused import Fused, sums_bytes
from blockshock.machine.combines.symmetric import OneShot, Symmetric
from blockshock.machine.combines.workspace import LEAST_BYTES, MOST_BYTES, workspace_bytes
from blockshock.matrices.weights import GeneratedWeights
from blockshock.measure import Work
from blockshock.methods import METHODS, Layer, axis_of, parse_row
from blockshock.phases import ceilings
from blockshock.ranks import Ranks

CPU = torch.device("cpu")
WAYS = ("one_shot", "two_shot", "peer_add", "overlap", "overlap:chunks=3")
SHAPES = ((1, 8), (7, 5), (128, 24), (201, 64))
"""(B, F): one row, an odd number of elements, whole chunks, and more than the smallest workspace takes."""


def _part(B: int, F: int, dtype: torch.dtype, rank: int) -> torch.Tensor:
    return torch.randn(B, F, generator=torch.Generator().manual_seed(rank)).to(dtype)


def _in_order(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _differences(spec: str, dtype: torch.dtype) -> list[str]:
    """Where a way gives other bits than what it stands for."""
    group, wrong = dist.group.WORLD, []
    assert group is not None
    for B, F in SHAPES:
        parts = [_part(B, F, dtype, rank) for rank in range(group.size())]
        wanted = {"sum": _in_order(parts), "gather": torch.cat(parts, dim=1)}
        with faked(most_bytes=8192):
            combine = build_combine(spec, group, B * F, dtype, CPU)
            for name, right in wanted.items():
                for call in (name, f"start_{name}", name):
                    part = Part.of(parts[group.rank()].clone())
                    found = getattr(combine, call)(part)
                    found = found() if call.startswith("start") else found
                    if not torch.equal(found, right) or not found.is_contiguous() or found._is_view():
                        wrong.append(f"{call} {B}x{F}")
    return wrong


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("spec", ["nccl", *WAYS])
def test_each_way_adds_up_and_puts_side_by_side(spec: str, dtype: torch.dtype, cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_differences, spec, dtype) == [[], []]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("spec", ["peer_add", "overlap", "overlap:chunks=3"])
def test_so_does_each_way_of_ours_on_four_ranks(spec: str, dtype: torch.dtype, four_ranks: Ranks) -> None:
    assert four_ranks.run(_differences, spec, dtype) == [[]] * 4


def _one_block(patch: pytest.MonkeyPatch) -> None:
    """Rows of the second block are taken for those of the first."""
    blocks = Symmetric._blocks

    def faulty(self: Symmetric, part: Part) -> list[slice]:
        return [slice(0, rows.stop - rows.start) for rows in blocks(self, part)]

    patch.setattr(Symmetric, "_blocks", faulty)


def _own_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(overlap, "add_in_order", lambda parts, total: total.copy_(parts[0]))


def _differences_with(fault: Callable[[pytest.MonkeyPatch], None]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        found = len(_differences("overlap", torch.float32))
    dist.barrier()
    return found


@pytest.mark.parametrize("fault", [_one_block, _own_alone])
def test_a_planted_fault_is_seen(fault: Callable[[pytest.MonkeyPatch], None], cpu_ranks: Ranks) -> None:
    assert all(cpu_ranks.run(_differences_with, fault))


def _passes(method: str, picks: dict[str, str], combine: str) -> list[torch.Tensor]:
    """y, grad_X and the gradients of the parameters."""
    group = dist.group.WORLD
    source = GeneratedWeights(64, 96, torch.float32, "cpu", with_bias=True)
    axes = {axis: spec for axis, spec in picks.items() if axis in METHODS.get(method).axes}
    layer = Layer(source, {**axes, "combine": combine}, 192, backward=True)
    built = METHODS.get(method)(layer, group)
    x_BK = torch.randn(192, 96, generator=torch.Generator().manual_seed(5)).requires_grad_()
    y_BN = built(x_BK)
    grads = torch.autograd.grad(y_BN.square().sum(), [x_BK, *built.parameters()])
    with torch.no_grad():
        return [y_BN.detach(), built(x_BK), built(x_BK[:0]), *grads]


PICKS = {"kernel": "gathered", "pruner": "1100"}


def _methods_apart(spec: str, mask: str) -> list[str]:
    wrong, picks = [], PICKS | {"mask": mask}
    for method in (
        "dense_tp_row",
        "dense_tp_col",
        "block_shock",
        "masked_split_dense",
        "pruned_tp_row",
        "pruned_tp_col",
    ):
        wanted = _passes(method, picks, "nccl")
        with faked():
            found = _passes(method, picks, spec)
        if not all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, wanted, strict=True)):
            wrong.append(method)
    return wrong


@pytest.mark.parametrize("spec", WAYS)
def test_every_method_gives_the_same_by_each_way(spec: str, cpu_ranks: Ranks) -> None:
    for mask in ("tile", "1010"):  # whose gradients are summed, and gathered
        assert cpu_ranks.run(_methods_apart, spec, mask) == [[], []]


def _written_straight() -> bool:
    """Whether a dense product lands where peers read it, without a copy."""
    group = dist.group.WORLD
    with faked():
        layer = METHODS.get("dense_tp_row")(
            Layer(GeneratedWeights(64, 96, torch.float32, "cpu"), {"combine": "one_shot"}, 16), group
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "copy_", lambda *_: pytest.fail("copied"))
            patch.setattr(FakeWorkspace, "add_up", lambda *_: None)
            layer(torch.ones(16, 96))
    return True


def test_a_dense_product_is_written_where_peers_read_it(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_written_straight) == [True, True]


def _trained_layer() -> list[bool]:
    """A layer, a copy, and a compiled one train as the linear does."""
    group, found = dist.group.WORLD, []
    with faked():
        for spec in ("one_shot", "overlap"):
            torch.manual_seed(0)
            linear = nn.Linear(64, 48)
            layer = BlockShockLinear(linear, group, kernel="gathered", mask="tile", combine=spec, tokens=256)
            found.append(f"combined by {spec}" in repr(layer))
            for one in (layer, copy.deepcopy(layer), torch.compile(layer, fullgraph=True, backend="aot_eager")):
                x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
                ours, theirs = (torch.autograd.grad(module(x).square().mean(), x)[0] for module in (one, linear))
                found.append(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6))
            torch._dynamo.reset()
    return found


def test_layers_take_it_eager_copied_and_compiled(cpu_ranks: Ranks) -> None:
    for found in cpu_ranks.run(_trained_layer):
        assert found == [True] * 8


def _in_a_plan() -> tuple[str, bool]:
    """A layer of a plan: how its ranks agree, and whether it is right."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    right = model(x)
    with faked():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        parallelize_module(model, mesh, {"0": BlockShockParallel(kernel="gathered", combine="two_shot", tokens=5)})
        return repr(model[0]), torch.allclose(model(x), right, atol=1e-5)


def test_a_plan_takes_it_too(cpu_ranks: Ranks) -> None:
    for told, is_right in cpu_ranks.run(_in_a_plan):
        assert "combined by two_shot" in told
        assert is_right


def test_what_is_not_for_a_cpu_says_so() -> None:
    axis = axis_of("combine")
    assert axis.names("cpu") == ("nccl",)
    for name in COMBINES.names():
        reason = axis.unavailable(name, CPU, torch.float32)
        assert (reason is None) == (name in ("nccl", "auto")), "auto is the former there"
    with pytest.raises(UnknownName, match=r"Choices: .*nccl"):
        axis.check("ncll")
    with pytest.raises(InputError, match="takes chunks, not 'parts'"):
        axis.check("overlap:parts=2")
    with pytest.raises(InputError, match="2 to 64 chunks, got chunks=65"):
        axis.check("overlap:chunks=65")


def test_reasons_name_what_was_wrong() -> None:
    assert "not torch.float16: pick nccl" in str(OneShot.unavailable(torch.device("cuda"), torch.float16))
    assert "2, 4 or 8 ranks, not 6" in str(combines.unsuitable("two_shot", 6, 64))
    assert "4 chunks of at least 64 tokens, there are 255" in str(combines.unsuitable("overlap:chunks=4", 2, 255))
    assert combines.unsuitable("overlap:chunks=4", None, 256) is None
    with pytest.raises(InputError, match="2 to 64 chunks, got chunks=1"):
        build_combine("overlap:chunks=1", None, 1, torch.float32, CPU)


def test_candidates_begin_with_what_is_always_there() -> None:
    assert combines.candidates(2, 1024, CPU, torch.float32) == ["nccl"]
    cuda = torch.device("cuda")
    assert combines.candidates(2, 1024, cuda, torch.bfloat16)[0] == "nccl"
    assert "overlap:chunks=4" in combines.candidates(2, 1024, cuda, torch.bfloat16)
    assert combines.candidates(2, 16, cuda, torch.bfloat16) == ["nccl", "one_shot", "two_shot", "peer_add"]
    assert combines.candidates(6, 16, cuda, torch.bfloat16) == ["nccl", "one_shot", "peer_add"]
    assert combines.candidates(2, 16, cuda, torch.float16) == ["nccl", "peer_add"]


def test_a_row_that_says_nothing_of_it_is_by_nccl() -> None:
    row = parse_row("block_shock-gathered-tile-masked").completed("cpu")
    assert "combine" not in row.picks
    assert parse_row("block_shock-gathered-tile-masked-two_shot").picks["combine"] == "two_shot"


def test_a_workspace_is_bounded() -> None:
    assert workspace_bytes(0) == workspace_bytes(LEAST_BYTES) == LEAST_BYTES
    assert workspace_bytes(LEAST_BYTES + 1) == 2 * LEAST_BYTES
    assert workspace_bytes(1 << 40) == MOST_BYTES


def _handed_over() -> list[object]:
    """What a kernel is given that sums by itself; and of too many tokens nothing is."""
    group, seen = dist.group.WORLD, []
    with faked():
        combine = build_combine("fused", group, 64 * 32, torch.bfloat16, CPU)
        for B in (64, 65):
            part_BF = torch.ones(B, 32, dtype=torch.bfloat16)
            part = replace(Part.of(part_BF), fused=lambda peers: seen.append(peers) or torch.zeros(1))
            seen.append(tuple(combine.sum(part).shape))
    peers, fused, summed = seen
    memories = {(memory.nbytes, memory.dtype) for memory in peers.memories}
    apart = all(memory.data_ptr() != combine._shared.view(rank, (1,), torch.uint8).data_ptr()
                for rank, memory in enumerate(peers.memories))  # fmt: skip
    return [peers.rank == group.rank(), len(peers.memories), memories, 8 * peers.slot, apart, fused, summed]


def test_a_kernel_that_sums_by_itself_is_given_all_ranks_memory(cpu_ranks: Ranks) -> None:
    for found in cpu_ranks.run(_handed_over):
        assert found == [True, 2, {(LEAST_BYTES, torch.float32)}, LEAST_BYTES, True, (1,), (65, 32)]


def _asked_of_kernels(features: int) -> list[int]:
    """Of how many tokens a kernel is asked for the sum."""
    asked: list[int] = []
    with faked():
        combine = build_combine("fused", dist.group.WORLD, features, torch.bfloat16, CPU)
        for tokens in range(1, 4):
            part = Part.of(torch.ones(tokens, features, dtype=torch.bfloat16))
            combine.sum(replace(part, fused=lambda peers, tokens=tokens: asked.append(tokens) or torch.zeros(1)))
    return asked


def test_sums_that_do_not_fit_go_by_two_shots(cpu_ranks: Ranks) -> None:
    """Two slots of float32 are eight bytes an element: those of two tokens fill what there is."""
    assert cpu_ranks.run(_asked_of_kernels, LEAST_BYTES // 16) == [[1, 2], [1, 2]]


def _rows_of_blocks(tokens: int) -> list[int]:
    """Of which products are asked, where 64 rows fit in together."""
    made: list[int] = []

    def make(rows: slice | None, out: torch.Tensor | None = None) -> torch.Tensor:
        assert out is not None
        made.append(len(out))
        return out.fill_(1)

    features = LEAST_BYTES // 2 // 64
    with faked():
        combine = build_combine("peer_add", dist.group.WORLD, tokens * features, torch.bfloat16, CPU)
        combine.sum(Part(make, tokens, features, torch.bfloat16, CPU))
    return made


@pytest.mark.parametrize(("tokens", "rows"), [(64, [64]), (72, [40, 32]), (128, [64, 64]), (130, [48, 48, 34])])
def test_blocks_that_go_through_one_after_another_are_alike(tokens: int, rows: list[int], cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_rows_of_blocks, tokens) == [rows, rows]


def test_what_sums_by_kernels_take_is_said() -> None:
    assert sums_bytes(1 << 20, 2) == 4 << 20
    assert sums_bytes(1 << 20, 4) == 16 << 20, "to a power of two"
    assert [Fused.held_bytes(1 << 20, ranks) for ranks in (2, 4)] == [5 << 20, 17 << 20]


def _held() -> tuple[int, int]:
    """What a way that sums by kernels shares, and what that is counted as."""
    with faked(most_bytes=MOST_BYTES):
        combine = build_combine("fused", dist.group.WORLD, 1 << 18, torch.bfloat16, CPU)
        return combine._shared.size + combine._sums.size, Fused.held_bytes(1 << 19, dist.get_world_size())


def test_what_sums_by_kernels_take_is_what_they_hold(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_held) == [(3 << 20, 3 << 20)] * 2


def _rows_of_many_tokens(tokens: int) -> list[int | None]:
    """Of which products are asked of a layer that was made for 64 of them."""
    asked: list[int | None] = []
    features = LEAST_BYTES // 2 // 64

    def make(rows: slice | None, out: torch.Tensor | None = None) -> torch.Tensor:
        asked.append(None if rows is None else rows.stop - rows.start)
        count = tokens if rows is None else rows.stop - rows.start
        return torch.ones(count, features, dtype=torch.bfloat16) if out is None else out.fill_(1)

    with faked():
        combine = build_combine("peer_add", dist.group.WORLD, 64 * features, torch.bfloat16, CPU)
        part = Part(make, tokens, features, torch.bfloat16, CPU)
        for found in (combine.sum(part), combine.start_sum(part)()):
            assert bool((found == dist.get_world_size()).all())
    return asked


def test_so_many_tokens_that_w_would_be_read_too_often_go_by_nccl_at_once(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_rows_of_many_tokens, 512) == [[64] * 16] * 2
    assert cpu_ranks.run(_rows_of_many_tokens, 513) == [[None, None]] * 2


def _shared_bytes() -> list[int]:
    """Of a layer that goes forward, and of one that goes back too, whose x is the wider."""
    source, found = GeneratedWeights(256, 1024, torch.float32, "cpu"), []
    with faked(most_bytes=MOST_BYTES):
        for backward in (False, True):
            layer = Layer(source, {"combine": "peer_add"}, 2048, backward=backward)
            found.append(METHODS.get("dense_tp_row")(layer, dist.group.WORLD).shared_bytes)
    return found


def test_what_ranks_share_is_counted_for_the_wider_of_what_they_agree_on(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_shared_bytes) == [[workspace_bytes(2048 * wide * 4) for wide in (256, 1024)]] * 2
    assert workspace_bytes(2048 * 256 * 4) == 2 << 20


def _parts_of_work(combine: str) -> tuple[set[str], bool]:
    """Of a layer's work; and whether the whole comes to what it is by nccl."""
    source = GeneratedWeights(256, 512, torch.float32, "cpu")
    with faked():
        ways = combine, "nccl"
        layers = [METHODS.get("dense_tp_row")(Layer(source, {"combine": way}, 256), dist.group.WORLD) for way in ways]
        ours, plain = (layer.work(256) for layer in layers)
    return set(ours), sum(ours.values(), Work()) == sum(plain.values(), Work())


@pytest.mark.parametrize(("combine", "part"), [("peer_add", "communication"), ("overlap", "hidden")])
def test_what_runs_beside_products_has_no_limit_of_its_own(combine: str, part: str, cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_parts_of_work, combine) == [({"products", part}, True)] * 2


def test_workspaces_of_parts_and_of_sums_do_not_replace_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "Workspace", lambda group, size, device: type("Made", (), {"size": size})())
    group: Any = type("Group", (), {})()
    asked = ((4, "parts"), (1, "sums"), (2, "parts"), (1, "sums"), (8, "parts"), (1, "sums"))
    held = [workspace.workspace_for(group, size * LEAST_BYTES, CPU, use) for size, use in asked]
    assert held[0] is held[2]
    assert held[1] is held[3] is held[5]
    assert [one.size // LEAST_BYTES for one in held] == [4, 1, 4, 1, 8, 1]


def test_only_some_kernels_sum_by_themselves() -> None:
    source = GeneratedWeights(64, 96, torch.bfloat16, "cpu")
    axis = axis_of("combine")
    for kernel, reason in (("gathered", "pick streamed"), ("streamed", None)):
        found = axis.unsuitable("fused", Layer(source, {"kernel": kernel}, 16))
        assert found is None if reason is None else reason in str(found)
    assert "kernel dense has none" in str(axis.unsuitable("fused", Layer(source, {}, 16)))
    eight_bits = Layer(source, {"kernel": "streamed", "format": "int8"}, 16)
    assert "in int8 it has none: pick two_shot, or format plain" in str(axis.unsuitable("fused", eight_bits))
    assert "up to 64 tokens, there are 65" in str(axis.unsuitable("fused", Layer(source, {"kernel": "streamed"}, 65)))
    assert "2 or 4 ranks, not 8" in str(combines.unsuitable("fused", 8, 16))


def _refused(combine: str) -> str:
    """What a layer on CPU ranks says of a way that is for GPUs."""
    linear = torch.nn.Linear(64, 32)
    try:
        BlockShockLinear(linear, dist.group.WORLD, combine=combine)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("combine", ["peer_add", "overlap", "two_shot", "fused"])
def test_what_a_cpu_has_not_is_said_of_a_cpu(combine: str, cpu_ranks: Ranks) -> None:
    for told in cpu_ranks.run(_refused, combine):
        assert told == (
            f"combine {combine}: needs GPUs that reach each other's memory: on a CPU gloo has the counterpart of nccl "
            "alone"
        )


def _by_auto() -> list[bool]:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 32), torch.randn(5, 64)
    model = torch.nn.Sequential(linear)
    layer = BlockShockLinear(linear, dist.group.WORLD, combine="auto")
    replaced = replace_linears(model, "block_shock-auto-1100-masked-auto", group=dist.group.WORLD)
    return [torch.allclose(one(x), linear(x), atol=1e-5) for one in (layer, model)] + [len(replaced.replaced) == 1]


def test_auto_is_what_there_is_on_a_cpu(cpu_ranks: Ranks) -> None:
    """By each way to a layer."""
    assert cpu_ranks.run(_by_auto) == [[True] * 3] * 2


def _lines() -> list[int]:
    """How many ways the ceilings of sums and gathers are measured in."""
    message = torch.zeros(4096, dtype=torch.bfloat16)
    with faked():
        calls = [ceilings._reduce(dist.group.WORLD, message), ceilings._gather(dist.group.WORLD, message)]
        for call in (one for several in calls for one in several):
            call()
    return [len(several) for several in calls]


def test_ceilings_are_those_of_the_fastest_way(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_lines) == [[4, 4], [4, 4]]
