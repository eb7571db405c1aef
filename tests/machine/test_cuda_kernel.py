"""Kernels that may begin before the one before them ends: what CUDA's driver is told, byte by byte."""

from __future__ import annotations

import ctypes
import struct
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockshock.machine import CudaKernel
from blockshock.machine.cuda_kernel import early_launch_of


class _Driver:
    """Stands for CUDA's: reads a launch by the layout of cuda.h (``CUlaunchConfig``, ``CUlaunchAttribute``)."""

    def __init__(self, version: int = 13000, status: int = 0) -> None:
        self.version, self.status = version, status
        self.launches: list[Any] = []

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuLaunchKernelEx(self, launch: Any, function: Any, places: Any, extra: Any) -> int:
        *sizes, stream, attributes, count = struct.unpack("7I4xQQI4x", ctypes.string_at(launch, 56))
        number, allowed = struct.unpack("i4xi60x", ctypes.string_at(attributes, 72))
        pointer = ctypes.cast(places[0], ctypes.POINTER(ctypes.c_void_p)).contents.value
        word = ctypes.cast(places[1], ctypes.POINTER(ctypes.c_int)).contents.value
        self.launches.append((function, sizes, stream, count, number, allowed, pointer, word, extra))
        return self.status

    def cuLaunchKernel(self, function: Any, *given: Any) -> int:
        self.launches.append((function, list(given[:7])))
        return self.status


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"CUDA error: {status}")


def _kernel(driver: _Driver, monkeypatch: pytest.MonkeyPatch) -> CudaKernel:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    streams = {3: 1 << 40}
    function, early = SimpleNamespace(func="function"), early_launch_of(driver)
    return CudaKernel(function, driver.cuLaunchKernel, _check, streams.__getitem__, early)


def test_a_launch_that_may_begin_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, x = _Driver(), torch.zeros(1)
    _kernel(driver, monkeypatch)((4, 3, 2), (256, 2, 1), [x, -5], shared_mem=99, early=True)
    programmatic, allowed = 6, 1
    assert driver.launches == [
        ("function", [4, 3, 2, 256, 2, 1, 99], 1 << 40, 1, programmatic, allowed, x.data_ptr(), -5, None)
    ]


@pytest.mark.parametrize(("version", "early"), [(13000, False), (12030, True), (12040, False), (11080, True)])
def test_other_launches_and_those_of_older_drivers_begin_in_their_turn(
    version: int, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = _Driver(version)
    _kernel(driver, monkeypatch)((4, 3, 2), (256, 2, 1), [torch.zeros(1), 7], shared_mem=99, early=early)
    assert driver.launches == [("function", [4, 3, 2, 256, 2, 1, 99])]


def test_an_early_launch_that_fails_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="CUDA error: 700"):
        _kernel(_Driver(status=700), monkeypatch)((1, 1, 1), (1, 1, 1), [torch.zeros(1), 1], early=True)
