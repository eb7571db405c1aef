"""A group of rank processes on one Linux machine that lasts for many calls.

    with Ranks.spawn(2, device="cuda") as ranks:
        per_rank = ranks.run(function, *args, **kwargs)

Every rank is a spawned process with the default ``torch.distributed`` process group up (NCCL on ``cuda``, where rank i
owns GPU i; gloo on ``cpu``). Ranks talk over loopback only, unless GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME is set.
A failure of any rank ends the whole group, and the next call starts a new one.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import importlib.util
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing

P = ParamSpec("P")
T = TypeVar("T")

DEVICES = ("cpu", "cuda")
START_SECONDS = 120.0  # the least that a start may take: it imports torch, however short the calls are to be
GRACE_SECONDS = 1.0  # for the other ranks to finish, once one has failed
STOP_SECONDS = 3.0
TICK_SECONDS = 0.5
STOP = b""


class RankError(RuntimeError):
    """A rank died or failed; as the cause of another exception, it holds the rank's number and its traceback."""


class RankTimeout(RankError):
    """Some rank did not answer in time; the message holds the Python stacks of every rank."""


@dataclass(frozen=True)
class _Member:
    """The parent's hold on one rank."""

    process: SpawnProcess
    pipe: Connection[Any, Any]
    stacks: Path  # the file that faulthandler writes to


class Ranks:
    """A group of rank processes; make one with `Ranks.spawn`, and close it or use it in a ``with`` statement."""

    def __init__(self, size: int, device: str, timeout: float, preload: tuple[tuple[str, str], ...]) -> None:
        self.size = size
        self.device = device
        self.starts = 0  # how many times a group was started
        self._timeout = timeout
        self._preload = preload
        self._members: list[_Member] = []
        self._lock = threading.RLock()
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        # Unlike weakref.finalize, this also runs before multiprocessing joins the ranks when the parent exits, even
        # where the parent is itself a multiprocessing child, and never in a process forked from the parent.
        self._finalizer = Finalize(self, _close, (self._members, self._folder), exitpriority=0)

    @classmethod
    def spawn(
        cls,
        size: int,
        device: str = "cpu",
        timeout: float = 300.0,
        preload: Iterable[tuple[str, str | os.PathLike[str]]] = (),
    ) -> Ranks:
        """Start `size` ranks, and return once all of them are up.

        Each `run` may take `timeout` seconds; a start may take as long, and at least 120 seconds. `preload` names
        modules, as (module name, file path), that a rank loads from their files before it runs anything.
        Raise ValueError for an unknown device, a size or timeout that is not positive, or more ranks than GPUs;
        whatever a preloaded module raises; RankError or RankTimeout if a rank does not come up.
        """
        if device not in DEVICES:
            raise ValueError(f"unknown device {device!r}: choose from {', '.join(DEVICES)}")
        if size < 1:
            raise ValueError(f"a group needs at least 1 rank, not {size}")
        if timeout <= 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout}")
        if device == "cuda" and size > (gpus := torch.cuda.device_count()):
            raise ValueError(f"{size} rank(s) need a GPU each, but there are {gpus} CUDA GPUs")
        ranks = cls(size, device, timeout, tuple((name, os.path.abspath(path)) for name, path in preload))
        try:
            ranks._start()
        except BaseException:
            ranks.close()
            raise
        return ranks

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Run a module-level function with the same arguments on every rank; return its results in rank order.

        Function, arguments and results travel as plain pickles. If the last call failed, start a new group first.
        Raise what the first failing rank raised (its cause, a RankError, holds the rank's number and traceback);
        RankError where that exception cannot be rebuilt from a pickle or would end the caller (SystemExit), where a
        result cannot be pickled, or where a rank died; RankTimeout if a rank does not answer in time; TypeError,
        with nothing sent, if the function or an argument cannot be pickled; RuntimeError after `close`.
        """
        message = _pickle_call(function, args, kwargs)
        with self._lock:
            if not self._finalizer.still_active():
                raise RuntimeError("these ranks are closed")
            if not self._members:
                self._start()
            try:
                for member in self._members:
                    with suppress(OSError):  # from a dead rank, which _collect reports
                        member.pipe.send_bytes(message)
                return self._collect(self._timeout)
            except BaseException:
                _kill(self._members)
                raise

    def close(self) -> None:
        """End all ranks, politely first, then by force; closing again does nothing."""
        with self._lock:
            self._finalizer()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process id of each rank, in rank order; empty while no group is up."""
        return [pid for member in self._members if (pid := member.process.pid) is not None]

    def _start(self) -> None:
        """Start the processes and wait until each has joined the process group; on failure leave none running."""
        self.starts += 1
        # A rank inherits the blocked signal, so Ctrl-C leaves it alone even before it can ignore the signal itself.
        # The tracker, which multiprocessing starts before its first process, would unblock it: it has to come first.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                for rank in range(self.size):
                    self._members.append(self._start_rank(rank))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._collect(max(self._timeout, START_SECONDS))
        except BaseException:
            _kill(self._members)
            raise

    def _start_rank(self, rank: int) -> _Member:
        context = torch.multiprocessing.get_context("spawn")
        pipe, rank_pipe = context.Pipe()
        stacks = self._folder / f"stacks-{self.starts}-{rank}"
        store = f"file://{self._folder}/store-{self.starts}"
        limit = timedelta(seconds=max(self._timeout, START_SECONDS))
        join = functools.partial(_join, rank, self.size, self.device, store, limit, self._preload)
        # PR_SET_PDEATHSIG fires when the *thread* that started the process ends: only the main one lasts long enough.
        tied = threading.get_native_id() == os.getpid()
        process = context.Process(target=_main, args=(rank, join, rank_pipe, stacks, tied), name=f"rank {rank}")
        process.start()
        rank_pipe.close()  # only the rank may hold its end, or the parent would not see it close
        return _Member(process, pipe, stacks)

    def _collect(self, seconds: float) -> list[Any]:
        """Wait for every rank's answer; return the results, or raise the first error, or RankTimeout."""
        results: dict[int, Any] = {}
        failure: BaseException | None = None
        waiting = set(range(self.size))
        deadline = time.monotonic() + seconds
        while waiting and (left := deadline - time.monotonic()) > 0:
            # A process forked from a rank can keep the rank's end of the pipe open, hence a look at every tick.
            wait([self._members[rank].pipe for rank in waiting], min(left, TICK_SECONDS))
            news = {rank: outcome for rank in sorted(waiting) if (outcome := self._look(rank)) is not None}
            waiting -= news.keys()
            results |= {rank: value for rank, (_, value) in news.items()}
            died = [value for kind, value in news.values() if kind == "died"]
            raised = [value for kind, value in news.values() if kind == "raised"]
            if failure is None and (died or raised):
                failure = (died + raised)[0]  # a death is what makes the collectives of the others raise
                deadline = min(deadline, time.monotonic() + (0.0 if died else GRACE_SECONDS))
        if failure is not None:
            raise failure
        if waiting:
            late = ", ".join(f"rank {rank}" for rank in sorted(waiting))
            raise RankTimeout(f"no answer within {seconds:g} s from {late}\n\n{self._dump_stacks()}")
        return [results[rank] for rank in range(self.size)]

    def _look(self, rank: int) -> tuple[str, Any] | None:
        """Return ("returned", result), ("raised", error) or ("died", error), or None while the rank is busy."""
        member = self._members[rank]
        code = member.process.exitcode  # before the pipe, so that an answer given just before the end is not missed
        try:
            if member.pipe.poll():
                return _decode(rank, member.pipe.recv_bytes())
            if code is None:
                return None
        except (EOFError, OSError):
            member.process.join(GRACE_SECONDS)  # the pipe closes a little before the process is gone
            code = member.process.exitcode
        end = f"ended with exit code {code}"
        if code is not None and code < 0:
            names = {known.value: known.name for known in signal.Signals}
            end = f"was killed by {names.get(-code, f'signal {-code}')}"
        return "died", RankError(f"rank {rank} {end}\n\n{_read(member.stacks)}".strip())

    def _dump_stacks(self) -> str:
        """Have every living rank write its Python stacks; return them all."""
        for member, pid in zip(self._members, self.pids, strict=True):
            if member.process.exitcode is None:
                os.kill(pid, signal.SIGUSR1)
        time.sleep(TICK_SECONDS)
        stacks = [_read(member.stacks) or "(none: it had not started yet)" for member in self._members]
        return "\n\n".join(f"rank {rank}:\n{text}" for rank, text in enumerate(stacks))


def _close(members: list[_Member], folder: Path) -> None:
    """Ask the ranks to leave the process group and end; kill those that do not within seconds; remove the folder."""
    for member in members:
        with suppress(OSError):
            member.pipe.send_bytes(STOP)
    deadline = time.monotonic() + STOP_SECONDS
    for member in members:
        member.process.join(max(0.0, deadline - time.monotonic()))
    _kill(members)
    shutil.rmtree(folder, ignore_errors=True)


def _kill(members: list[_Member]) -> None:
    for member in members:
        member.process.kill()
    for member in members:
        member.process.join(STOP_SECONDS)
        member.pipe.close()
    members.clear()


def _pickle_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Pickle a call; raise TypeError naming the first part that cannot be pickled."""
    try:
        return pickle.dumps((function, args, kwargs))
    except Exception:
        name = getattr(function, "__qualname__", repr(function))
        parts = [(f"argument {key!r} of {name}", value) for key, value in [*enumerate(args), *kwargs.items()]]
        for what, part in [(f"function {name}", function), *parts]:
            try:
                pickle.dumps(part)
            except Exception as error:
                raise TypeError(f"cannot send {what} to the ranks: {error}") from error
        raise


def _decode(rank: int, answer: bytes) -> tuple[str, Any]:
    """Return ("returned", result) or ("raised", error) from a rank's `_answer`."""
    try:
        kind, value = pickle.loads(answer)
    except Exception as error:
        return "raised", RankError(f"rank {rank} returned a result that cannot be rebuilt in the caller: {error!r}")
    if kind == "returned":
        return kind, value
    pickled, name, trace = value
    cause = RankError(f"rank {rank} raised {name}; its own traceback:\n\n{trace}")
    try:
        rebuilt, text = pickle.loads(pickled)
        same = str(rebuilt) == text and not isinstance(rebuilt, SystemExit | KeyboardInterrupt)
    except Exception:
        same = False
    if not same:
        return "raised", cause
    rebuilt.__cause__ = cause
    return "raised", rebuilt


def _read(path: Path) -> str:
    """Return the text that faulthandler has written to a file, or an empty string."""
    return path.read_text(errors="replace").strip() if path.exists() else ""


def _main(rank: int, join: Callable[[], None], pipe: Connection[Any, Any], stacks: Path, tied: bool) -> None:
    """Be a rank: join the process group, then answer calls until told to stop or until the parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if tied:  # needs no Python thread, so it works even where native code hangs while it holds the interpreter lock
        ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL))  # 1 is PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    descriptor = os.open(stacks, os.O_WRONLY | os.O_CREAT, 0o600)
    faulthandler.enable(descriptor)
    faulthandler.register(signal.SIGUSR1, descriptor)
    try:
        pipe.send_bytes(_answer(rank, join))
        while message := pipe.recv_bytes():
            pipe.send_bytes(_answer(rank, functools.partial(_call, message)))
    except (EOFError, OSError):  # the parent is gone
        os._exit(1)
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_with_parent() -> None:
    """End this process once the parent is gone, or has dropped its handle on this process."""
    parent = parent_process()
    # The sentinel of `parent` is a pipe that only the parent holds open. A process forked from the parent would hold
    # it too, hence a look at every tick.
    while parent is not None and parent.is_alive() and os.getppid() == parent.pid:
        parent.join(TICK_SECONDS)
    os._exit(1)


def _join(
    rank: int, size: int, device: str, store: str, limit: timedelta, preload: tuple[tuple[str, str], ...]
) -> None:
    """Bind to the device, load the preloaded modules and join the process group."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    bound = torch.device("cuda", rank) if device == "cuda" else None
    if bound is None:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // size))
    else:
        torch.cuda.set_device(bound)
    for name, path in preload:
        _load(name, path)
    backend = "gloo" if bound is None else "nccl"
    dist.init_process_group(backend, init_method=store, timeout=limit, world_size=size, rank=rank, device_id=bound)
    # A first collective, waited for, so that no call pays for setting up the communicator.
    dist.all_reduce(torch.zeros(1, device=bound))
    if bound is not None:
        torch.cuda.synchronize(bound)


def _load(name: str, path: str) -> None:
    """Load a module from a file, unless a module of that name is loaded."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {name} from {path}")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _call(message: bytes) -> Any:
    function, args, kwargs = pickle.loads(message)
    return function(*args, **kwargs)


def _answer(rank: int, work: Callable[[], Any]) -> bytes:
    """Do the work; return a pickle of ("returned", result) or ("raised", (pickled error, its type, its traceback))."""
    try:
        result = work()
        try:
            return pickle.dumps(("returned", result))
        except Exception as error:
            message = f"rank {rank} returned a {type(result).__qualname__}, which cannot be pickled: {error}"
            raise RankError(message) from error
    except BaseException as error:
        try:
            pickled = pickle.dumps((error, str(error)))
        except Exception:
            pickled = b""
        return pickle.dumps(("raised", (pickled, type(error).__qualname__, traceback.format_exc())))
    finally:
        with suppress(OSError, ValueError):
            print(end="", flush=True)  # what the function printed, which would be lost if the rank is killed
