"""Which GPU and which stream are current is what torch says, on every one and in every thread."""

from threading import Thread

import pytest
import torch
from gpus import needs_a_gpu

from blockshock.machine.streams import another_stream, current_stream, on_gpu

pytestmark = [pytest.mark.gpu, needs_a_gpu]


def _each() -> list[torch.device]:
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def test_a_gpu_is_the_current_one_within_and_the_one_before_after() -> None:
    before = torch.cuda.current_device()
    for outer in _each():
        for inner in _each():
            with on_gpu(outer), on_gpu(inner):
                assert torch.cuda.current_device() == inner.index
            assert torch.cuda.current_device() == before


def test_the_stream_is_the_one_that_torch_has() -> None:
    for device in _each():
        assert current_stream(device) == torch.cuda.current_stream(device)
        for _ in range(3):
            with torch.cuda.stream(torch.cuda.Stream(device)):
                assert current_stream(device) == torch.cuda.current_stream(device) != torch.cuda.default_stream(device)
        assert current_stream(device) == torch.cuda.default_stream(device)


def test_a_thread_has_its_own() -> None:
    device, found = torch.device("cuda", torch.cuda.current_device()), []
    with torch.cuda.stream(torch.cuda.Stream(device)):
        thread = Thread(target=lambda: found.append(current_stream(device)))
        thread.start()
        thread.join()
    assert found == [torch.cuda.default_stream(device)]


def test_work_beside_is_never_on_the_current_stream() -> None:
    """Torch hands out the same streams again and again, that which it captures on among them."""
    for device in _each():
        for _ in range(70):
            with torch.cuda.stream(torch.cuda.Stream(device)):
                assert another_stream(device) != torch.cuda.current_stream(device)
