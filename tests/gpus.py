"""Which tests need GPUs, and what they say where there are none."""

from collections.abc import Callable

import pytest
import torch

from blockshock.kernels import Format, PackedQuantised, build_format
from blockshock.measure import timing
from blockshock.methods import METHODS

needs_a_gpu = pytest.mark.skipif(
    not torch.cuda.device_count(), reason="needs a CUDA GPU: run it on a machine that has one"
)
needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA GPUs: run it on a machine that has them"
)
CPU_AND_TWO_GPUS = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu2, needs_two_gpus])]
"""Devices, for a test that runs on each."""
CPU_METHODS = tuple(
    name for name in METHODS.names() if not METHODS.get(name).unavailable(torch.device("cpu"), torch.bfloat16, False)
)
"""Methods that ranks on CPUs can run."""


def format_of_this_gpu(name: str) -> Format:
    """The format of that name. Skips the test where this GPU has no instructions for it."""
    format = build_format(name)
    assert format is not None
    if reason := format.unavailable(torch.device("cuda"), torch.bfloat16):
        pytest.skip(f"{name} {reason}")
    return format


def check_in_a_graph_and_on_another_stream(packed: Callable[[torch.Tensor], torch.Tensor], x_BK: torch.Tensor) -> None:
    """Captured, and launched on a stream that is not the default one, a product has the bits of a plain call."""
    right = packed(x_BK)
    out = torch.empty_like(right)
    graph = timing.capture(lambda: out.copy_(packed(x_BK)))
    out.zero_()
    graph.replay()
    assert torch.equal(out, right)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        x_later = x_BK.clone().mul_(2)
        found = packed(x_later)  # on the default stream it would read what is not there yet
    side.synchronize()
    assert torch.equal(found, packed(x_BK * 2))


def check_on_the_heels(packed: PackedQuantised, inputs: list[torch.Tensor]) -> None:
    """Many calls on the heels of each other, plain and captured, have the bits of calls that waited for their x."""
    right = []
    for x_BK in inputs:
        stored = packed.stored(x_BK)
        torch.cuda.synchronize()
        right.append(packed.multiply(stored, torch.bfloat16))
    torch.cuda.synchronize()

    def on_the_heels() -> list[torch.Tensor]:
        return [packed(x_BK) for x_BK in inputs]

    held: dict[str, list[torch.Tensor]] = {}
    graph = timing.capture(lambda: held.update(found=on_the_heels()))
    for _ in range(20):
        for y_BN in held["found"]:
            y_BN.fill_(float("nan"))
        graph.replay()
        for found in (held["found"], on_the_heels()):
            assert all(torch.equal(one, other) for one, other in zip(found, right, strict=True))
