"""``layer.check()``: it compares values, and finds writes that no counter of torch sees; on every rank."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from test_stale_weights import first_half, kinds, make_linear, make_source, make_x

from blockshock import BlockShockLinear
from blockshock.errors import StalePacking
from blockshock.kernels.backward import DenseBackward
from blockshock.matrices.pieces import Piece
from blockshock.ranks import Ranks


def _found_by_check(**kind: Any) -> list[str]:
    """What ``check()`` says after writes that move no counter."""
    says = []
    layer = BlockShockLinear(make_linear(), **kind)
    layer.check()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    y = layer(make_x()).sum()
    layer.check()
    y.backward()
    shares_memory = first_half(layer).data_ptr() == layer.layer.packings()[0].values.data_ptr()
    assert layer.bias is not None
    for parameter in (layer.bias,) if shares_memory else (first_half(layer), layer.bias):
        parameter.data.view(-1)[-3:].mul_(2)
        layer(make_x())
        with pytest.raises(StalePacking, match=r"call refresh\(\)") as error:
            layer.check()
        says.append(str(error.value))
        layer.refresh()
        layer.check()
    torch.testing.assert_close(layer(make_x()).float(), layer.to_linear()(make_x()), rtol=0.02, atol=0.05)
    return says


@kinds
def test_check_finds_what_no_counter_sees(kind: dict[str, Any]) -> None:
    *weight, bias = _found_by_check(**kind)
    assert re.search(r"half 0: its packing's bias holds -?0\.\d+ at \(\d+,\), not -?0\.\d+ as the parameter", bias)
    assert all("half 0: its packing's" in found and "as the parameter: call" in found for found in weight)


def _written_on_one_rank() -> list[str]:
    says = []
    layer = BlockShockLinear(make_linear(), kernel="reference", mask="random", storage="masked")
    for writer, parameter in ((0, first_half(layer)), (1, layer.bias)):
        layer.check()
        assert parameter is not None
        if layer.layer.group.rank() == writer:
            parameter.data.view(-1)[-3:].mul_(2)
        with pytest.raises(StalePacking) as error:
            layer.check()
        says.append(str(error.value))
        layer.load_state_dict(make_linear().state_dict())
    return says


def test_check_tells_every_rank(cpu_ranks: Ranks) -> None:
    (weight, nothing), (other, bias) = cpu_ranks.run(_written_on_one_rank)
    assert "half 0: its packing's" in weight
    assert other == "rank 0 found a difference in this layer, and names it"
    assert re.match("the bias, the same on all ranks, holds .* as on rank 0: change it on every rank alike", bias)
    assert nothing == "rank 1 found a difference in this layer, and names it"


def test_check_finds_a_stale_backward_packing() -> None:
    layer = BlockShockLinear(make_linear(), kernel="reference", mask="tile")
    for half in layer.layer.storages():  # as kernels have it that contract over K alone
        half.packed.backward = DenseBackward(Piece(make_source(), slice(0, 64), half.mask), "dense")
    layer.refresh()
    layer.check()
    first_half(layer).data.mul_(2)
    with pytest.raises(StalePacking, match=r"half 0: its packing's backward\.packed\.w_NK holds"):
        layer.check()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_check_finds_what_a_compiled_layer_does_not_notice() -> None:
    layer = BlockShockLinear(make_linear(), dtype=torch.bfloat16, kernel="gathered")
    compiled = torch.compile(layer, backend="aot_eager")
    before = compiled(make_x())
    with torch.no_grad():
        first_half(layer).mul_(2)
    assert torch.equal(compiled(make_x()), before)
    with pytest.raises(StalePacking, match="half 0: a parameter changed after it was packed: call refresh"):
        layer.check()
    layer.refresh()
    torch.testing.assert_close(compiled(make_x()).float(), layer.to_linear()(make_x()), rtol=0.02, atol=0.05)


def test_check_knows_halves_that_are_packed_rarely() -> None:
    layer = BlockShockLinear(make_linear(), storage="masked:every=2")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(make_x()).sum().backward()
        optimizer.step()
        layer.check()
    first_half(layer).data.add_(1)
    with pytest.raises(StalePacking, match=r"a parameter holds 1\.0 where its mask drops"):
        layer.check()
