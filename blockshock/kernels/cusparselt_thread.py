"""Which GPU a thread uses cuSPARSELt on: torch has it serve one device a thread."""

from __future__ import annotations

import threading

import torch

from blockshock.errors import KernelUnavailable
from blockshock.machine import indexed

_thread = threading.local()


def thread_obstacle(device: torch.device) -> str | None:
    """None, or why this thread cannot use cuSPARSELt on that device.

    torch keeps one handle a thread, made for the device that the thread first uses it on; on any other one it ends in
    an illegal memory access.
    """
    device = indexed(device)
    first = getattr(_thread, "device", device)
    if first == device:
        return None
    return (
        f"torch's cuSPARSELt serves one device a thread, and this thread began with {first}, so it cannot use {device}:"
        " run one process for each GPU, or take another kernel for this one"
    )


def claim_thread(device: torch.device) -> None:
    if getattr(_thread, "device", None) == device:
        return
    if reason := thread_obstacle(device):
        raise KernelUnavailable(f"kernel cusparselt: {reason}")
    _thread.device = indexed(device)
