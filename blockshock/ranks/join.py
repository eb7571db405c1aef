"""How a process becomes a rank of a process group."""

from __future__ import annotations

import importlib.util
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist


def bind(device: str, index: int, count: int, most: str = "") -> None:
    """Take the ``index``-th of ``count`` equal shares of this machine: a GPU, or of a CPU its part of the threads.

    Args:
        most: threads, where the user has set OMP_NUM_THREADS; torchrun sets it too, to one, whatever there is.
    """
    if device == "cuda":
        torch.cuda.set_device(index)
    else:
        share = max(1, len(os.sched_getaffinity(0)) // count)
        torch.set_num_threads(min(share, int(most)) if most.isdecimal() and int(most) else share)


def talk_over(interface: str) -> None:
    """Use this network interface, unless the environment names another."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def join(rank: int, size: int, device: str, limit: timedelta, **meet: object) -> None:
    """Join the process group that ``meet`` (an init_method or a store) leads to; return once all ranks are there."""
    bound = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else None
    backend = "gloo" if bound is None else "nccl"
    # NCCL's communicator is set up here, so that no call pays for it. A rank alone has no use for it: it has one from
    # its first collective on, if there ever is one.
    at_once = bound if size > 1 else None
    dist.init_process_group(backend, timeout=limit, world_size=size, rank=rank, device_id=at_once, **meet)  # type: ignore[arg-type]
    first = torch.zeros(1, device=bound)
    if size > 1:
        dist.all_reduce(first)
    if bound is not None:
        torch.cuda.synchronize(bound)


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def load(name: str, path: str) -> None:
    """Load a module from a file, unless a module of that name is loaded."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {name} from {path}")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
