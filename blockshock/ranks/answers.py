"""Calls and what comes of them, as they travel between processes: pickles from one rank's code to another's."""

from __future__ import annotations

import io
import pickle
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from blockshock.ranks.errors import RankError

LARGEST_RESULT = 64 << 20
"""Bytes of a result, pickled. Results are numbers about what ranks hold, not what they hold."""


def pickle_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
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


def call(message: bytes) -> Any:
    """Do what `pickle_call` wrote."""
    function, args, kwargs = pickle.loads(message)
    return function(*args, **kwargs)


def answer(rank: int, work: Callable[[], Any]) -> bytes:
    """Do the work; return what `decode` reads: its result, or the error with its traceback."""
    try:
        return _pickle_result(rank, work())
    except BaseException as error:
        try:
            pickled = pickle.dumps((error, str(error)))
        except Exception:
            pickled = b""
        return encode("raised", (pickled, type(error).__qualname__, traceback.format_exc()))
    finally:
        with suppress(OSError, ValueError):
            print(end="", flush=True)  # what the function printed, which would be lost if the rank is killed


class _Measured(io.BytesIO):
    """Keeps what may be sent, and measures the rest without keeping it."""

    size = 0

    def write(self, part: Any) -> int:
        length = memoryview(part).nbytes
        self.size += length
        return super().write(part) if self.size <= LARGEST_RESULT else length


class _Pickler(pickle.Pickler):
    """Waits for tensors that a collective is still filling, which torch would otherwise pickle as they are so far."""

    def reducer_override(self, value: Any) -> Any:
        collectives = sys.modules.get("torch.distributed._functional_collectives")
        if collectives is None or not isinstance(value, collectives.AsyncCollectiveTensor):
            return NotImplemented
        return value.wait().__reduce_ex__(pickle.DEFAULT_PROTOCOL)


def _pickle_result(rank: int, result: Any) -> bytes:
    what = f"rank {rank} returned a {type(result).__qualname__}"
    answered = _Measured()
    answered.write(b"returned\n")
    try:
        _Pickler(answered).dump(result)
    except Exception as error:
        raise RankError(f"{what}, which cannot be pickled: {error}") from error
    if answered.size > LARGEST_RESULT:
        raise RankError(
            f"{what} of {answered.size / 2**20:.0f} MiB; at most {LARGEST_RESULT >> 20} MiB are sent: return what is "
            "needed of it, or write it to a file and return the path"
        )
    return answered.getvalue()


def encode(kind: str, value: Any) -> bytes:
    """An answer; its kind can be told without rebuilding the value."""
    return kind.encode() + b"\n" + pickle.dumps(value)


def returned(answered: bytes) -> bool:
    """Whether this is the answer of a call that went well."""
    return answered.startswith(b"returned\n")


def decode(rank: int, answered: bytes) -> tuple[str, Any]:
    """Return (kind, value) of a rank's answer; the value of "raised" is the error itself."""
    kind, pickled = answered.split(b"\n", 1)
    try:
        value = pickle.loads(pickled)
    except Exception as error:
        return "raised", RankError(f"rank {rank} returned a result that cannot be rebuilt in the caller: {error!r}")
    if kind != b"raised":
        return kind.decode(), value
    pickled_error, name, trace = value
    cause = RankError(f"rank {rank} raised {name}; its own traceback:\n\n{trace}")
    try:
        rebuilt, text = pickle.loads(pickled_error)
        same = str(rebuilt) == text and not isinstance(rebuilt, SystemExit | KeyboardInterrupt)
    except Exception:
        same = False
    if not same:
        return "raised", cause
    rebuilt.__cause__ = cause
    return "raised", rebuilt


def note_stacks(failure: BaseException, stacks: dict[int, str]) -> BaseException:
    """Attach the stacks of the ranks that waited in vain."""
    if stacks:
        failure.add_note(f"Where the other ranks were meanwhile:\n\n{show_stacks(stacks)}")
    return failure


def show_stacks(stacks: dict[int, str]) -> str:
    """The Python stacks of ranks, one below the other."""
    return "\n\n".join(f"rank {rank}:\n{text}" for rank, text in sorted(stacks.items()))
