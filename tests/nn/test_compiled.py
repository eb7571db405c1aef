"""torch.compile takes a layer whole, one graph forward and one backward, and computes what eager code computes.

What it cannot trace differs from torch to torch: these tests are for each that the project runs on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from fake_cusparselt import faked
from torch import nn

from blockshock import BlockShockLinear
from blockshock.kernels.cusparselt import PackedCusparselt
from blockshock.machine import Exit
from blockshock.ranks import Ranks

KINDS: list[tuple[dict[str, Any], torch.dtype]] = [
    ({"kernel": "gathered", "mask": "1100"}, torch.float32),
    ({"kernel": "gathered", "mask": "tile", "storage": "masked"}, torch.float32),
    ({"kernel": "reference", "mask": "random"}, torch.float32),
    ({"kernel": "cusparselt:search=no", "mask": "tile"}, torch.bfloat16),
    ({"kernel": "cusparselt:search=no", "mask": "1100"}, torch.bfloat16),  # backward by a dense half
]
IN_BF16 = {"kernel": "gathered", "mask": "tile", "dtype": torch.bfloat16}


def _built(kind: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, BlockShockLinear]:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, dtype=dtype)
    return linear, BlockShockLinear(linear, **kind)


def _x(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    values = torch.randn(*shape, 64, generator=torch.Generator().manual_seed(1))
    return values.to(dtype).requires_grad_()


def _both_ways(call: Callable[[torch.Tensor], torch.Tensor], layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of the input and of the parameters."""
    y = call(x)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])]


def _same_compiled(kinds: list[tuple[dict[str, Any], torch.dtype]], *shapes: tuple[int, ...]) -> None:
    """In one graph, of each of these shapes, before a step and after it."""
    for kind, dtype in kinds:
        torch._dynamo.reset()
        with faked() if kind["kernel"].startswith("cusparselt") else nullcontext():
            linear, layer = _built(kind, dtype)
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
            for shape in shapes:
                x = _x(dtype, *shape)
                torch.testing.assert_close(_both_ways(compiled, layer, x), _both_ways(layer, layer, x))
            for trained in (layer, linear):
                trained(x).float().square().mean().backward()
                torch.optim.SGD(trained.parameters(), lr=0.1).step()
            found = _both_ways(compiled, layer, x)
            torch.testing.assert_close(found, _both_ways(layer, layer, x))
            torch.testing.assert_close(found[0], linear(x).detach(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_compiled_layer_is_one_graph_and_computes_the_same(kind: tuple[dict[str, Any], torch.dtype]) -> None:
    _same_compiled([kind], (16,), (13,), (2, 3))


def test_it_does_on_two_ranks(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_same_compiled, KINDS[:1], (16,), (13,))
    cpu_ranks.run(_same_compiled, KINDS[2:4], (13,))  # how ranks agree is the same, whatever multiplies


def test_it_does_over_column_shards(other_ranks: Ranks) -> None:
    other_ranks.run(_same_compiled, KINDS[:1], (13,))


def _graph_breaks() -> list[int]:
    """As of torch's own count: of products in another dtype too, and under autocast."""
    found = []
    for kind, autocast in (*((kind, False) for kind, _ in KINDS[1:3]), (IN_BF16, False), (IN_BF16, True)):
        torch._dynamo.reset()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            layer = _built(kind)[1]
            found.append(torch._dynamo.explain(layer)(_x(torch.float32, 16)).graph_break_count)
    return found


def test_nothing_breaks_the_graph(cpu_ranks: Ranks) -> None:
    for found in [_graph_breaks(), *cpu_ranks.run(_graph_breaks)]:
        assert not any(found), found


@contextmanager
def _untraceable() -> Iterator[None]:
    """The fake kernel as one that no compiler looks into: it runs in eager code, what is around it in compiled code."""
    with faked(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedCusparselt, "forward", torch._dynamo.disable(PackedCusparselt.forward))
        yield


def _compiled_around() -> None:
    for tokens in (16, 13):
        torch._dynamo.reset()
        with _untraceable():
            _, layer = _built({"kernel": "cusparselt:search=no", "mask": "tile"}, torch.bfloat16)
            x = _x(torch.bfloat16, tokens)
            compiled = torch.compile(layer, backend="aot_eager")
            torch.testing.assert_close(_both_ways(compiled, layer, x), _both_ways(layer, layer, x))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # by the compiler
def test_compiled_code_sums_what_eager_code_multiplied(cpu_ranks: Ranks) -> None:
    _compiled_around()
    cpu_ranks.run(_compiled_around)


def _written_over() -> None:
    """An output is the caller's to change, as nn.Linear's."""
    with faked():
        for tokens in (16, 13):
            _, layer = _built({"kernel": "cusparselt:search=no", "mask": "tile"}, torch.bfloat16)
            x = _x(torch.bfloat16, tokens)
            product = layer.layer.multiply(x, Exit())
            assert not product._is_view()
            found = _both_ways(lambda x, layer=layer: layer(x).mul_(2), layer, x)
            torch.testing.assert_close(found, _both_ways(lambda x, layer=layer: layer(x) * 2, layer, x))


def test_a_products_output_is_memory_of_its_own(cpu_ranks: Ranks) -> None:
    _written_over()
    cpu_ranks.run(_written_over)


def test_refresh_in_compiled_code_sees_what_is_written_when_it_runs() -> None:
    _, layer = _built({"kernel": "gathered"})

    @torch.compile(backend="aot_eager")
    def doubled() -> None:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(2)
        layer.refresh()

    x = _x(torch.float32, 4)
    before = layer(x)
    doubled()
    doubled()
    torch.testing.assert_close(layer(x), 4 * before)
    layer.check()
