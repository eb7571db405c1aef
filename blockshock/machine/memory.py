"""Memory of a device as a rank sees it: what is free, what a block of code held at most, what a case needs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from blockshock.machine import torch_internals

_STATUS = Path("/proc/self/status")
_CACHES, _USUAL_CACHE = Path("/sys/devices/system/cpu/cpu0/cache"), 64 << 20
_SMALL = 16
"""Of what is free, such a part is little."""
_drops: list[Callable[[], None]] = []


def indexed(device: torch.device) -> torch.device:
    """The device as tensors on it name it: ``cuda`` is the current GPU."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def drop_on_need(drop: Callable[[], None]) -> None:
    """Have it called where memory of a GPU is wanted: it lets go of what is held there to save time alone."""
    _drops.append(drop)


def free_bytes(device: torch.device, enough: int | None = None) -> int:
    """Bytes that can still be taken on the device (Linux's MemAvailable on a CPU).

    Args:
        enough: if that many are free for any process, and half of the GPU, no more is looked for. Otherwise what this
            process keeps for itself on a GPU and does not need is given back, and has to be taken, or made, anew.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if enough is not None and free >= max(enough, total // 2):  # others cannot have it give back anything
            return free
        _give_back()
        return torch.cuda.mem_get_info(device)[0]
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def can_spare(size: int, device: torch.device, beside: int) -> bool:
    """Whether a GPU has so many bytes to spare: little of what is free at once, and not of what is to lie beside them.
    A CPU never has: all its ranks would hold them, and none can have another let go."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size * _SMALL <= free and size + beside <= free


def release() -> None:
    """Give back to the GPU what this process keeps for itself and does not need, for another that has the same one."""
    gc.collect()
    _give_back()


def _give_back() -> None:
    for drop in _drops:
        drop()
    torch.cuda.empty_cache()


def cache_bytes(device: torch.device) -> int:
    """Bytes that the last-level cache of the device holds."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [int(path.read_text().strip().removesuffix("K")) << 10 for path in _CACHES.glob("index*/size")]
    return max(sizes, default=_USUAL_CACHE)


def _kilobytes(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"{path} has no field {field}")


@contextmanager
def peak_bytes(device: torch.device) -> Iterator[list[int]]:
    """Bytes held at most inside the block beyond those held before it, as the one element of a list.

    On CUDA what torch's allocator handed out; on a CPU the growth of the process's resident set.
    """
    peak: list[int] = []
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device) - before)
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of this process
    before = _kilobytes(_STATUS, "VmRSS")
    yield peak
    peak.append(max(_kilobytes(_STATUS, "VmHWM") - before, 0))


def held_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind the tensors, each storage once; of a DTensor, of this rank's part."""
    local = [torch_internals.local_of(tensor) for tensor in tensors]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values())


def gib(size: int) -> str:
    """``size`` bytes for a reader."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.2f} MiB"
