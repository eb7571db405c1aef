"""Saved runs as they lie on disk: which there are, what is in them, and why a file is none. Never imports torch."""

from __future__ import annotations

import gzip
import json
import re
import stat
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from blockshock.saved.doubted import doubts
from blockshock.saved.fits import items, positive
from blockshock.saved.odd import Odd, odd
from blockshock.saved.parts import joined
from blockshock.saved.run import NotARun, Run
from blockshock.saved.schema import machine_facts, unfit
from blockshock.saved.settle import is_timed, settled
from blockshock.saved.words import several

STORAGE = Path("benchmark_results")
PATTERNS = ("*.json", "*.json.gz")
OFFICIAL = "official"
NO_RUNS = (OFFICIAL, "journal", "profiles")
"""Folders in there that hold no runs of the user's own."""


def latest_run(storage: Path = STORAGE) -> Path:
    """The saved run that was made last, by the date in its file: a file, or a folder of parts such as ``tox run -e
    full`` makes. Those that came with the project, in ``official``, are only taken by name.

    Raises:
        NotARun: there is none.
    """
    found: dict[Path, str] = {}
    for path in (path for pattern in PATTERNS for deep in ("*/", "*/*/") for path in storage.glob(deep + pattern)):
        top, *below = path.relative_to(storage).parts[:-1]
        if top in NO_RUNS:
            continue
        # Files in a platform's folder are runs. Parts lie in a folder of their own, there or beside it.
        beside = any(file for pattern in PATTERNS for file in (storage / top).glob(pattern))
        run = path if not below else path.parent if beside else storage / top
        if date := _date(path):
            found[run] = max(found.get(run, ""), date)
    if found:
        return max(found, key=lambda path: (found[path], str(path)))
    known = f", or name one of {storage / OFFICIAL}" if (storage / OFFICIAL).is_dir() else ", or name a file"
    raise NotARun(f"no saved run of your own in {storage}: make one with `tox run -e bench`{known}")


def _date(path: Path) -> str:
    """When a run was made, as its file says at its end; empty where it does not. Without reading it as JSON: there may
    be many, of megabytes."""
    try:
        raw = _bytes(path)
    except (NotARun, OSError, EOFError, zlib.error):
        return ""
    dates = re.findall(rb'"datetime": ?"([^"\\]*)"', raw)
    return dates[-1].decode(errors="replace") if dates else ""


def read_run(path: Path) -> Run:
    """A saved run: a file, plain or gzipped, or a folder of files that are its parts.

    Raises:
        NotARun: the file cannot be read, is no regular one, is damaged, or holds no benchmark of this suite; no file of
            the folder does.
    """
    try:
        run = _read_folder(path) if path.is_dir() else _read_file(path)
        # Of the whole: what one part found to be wrong concerns the others too.
        return _settled(run)
    except OSError as error:
        raise NotARun(f"{path}: {error.strerror or error}") from None


def _read_folder(folder: Path) -> Run:
    """All files as one run, and those a folder down, where pytest-benchmark saves."""
    parts, notes = [], []
    for path in sorted(path for pattern in PATTERNS for deep in ("", "*/") for path in folder.glob(deep + pattern)):
        try:
            parts.append(_read_file(path))
        except NotARun as error:
            notes.append(f"skipped {error}")
    if not parts:
        raise NotARun(f"{folder}: no saved run in it" + "".join(f"; {note}" for note in notes))
    return joined(folder, parts, notes)


def _read_file(path: Path) -> Run:
    try:
        saved = read_json(_bytes(path))
    except NotARun:
        raise
    except (gzip.BadGzipFile, ValueError, EOFError, zlib.error) as error:
        raise NotARun(f"{path}: damaged, or no JSON ({error})") from None
    except OSError as error:
        raise NotARun(f"{path}: {error.strerror or error}") from None
    return _of_document(path, saved)


def _bytes(path: Path) -> bytes:
    """What is in a file, unpacked. A device may have no end, and a pipe nobody who writes: neither is read."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise NotARun(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'a device or a pipe'}, not a file")
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


def run_of_session(raw: str) -> Run:
    """The run that a session has measured, of what it would save: the JSON that pytest-benchmark writes.

    Raises:
        NotARun: none of its benchmarks is one of this suite.
    """
    return _settled(_of_document(Path("this session"), read_json(raw)))


def _settled(run: Run) -> Run:
    records = settled(run.records)
    return replace(run, records=records, notes=[*doubts([record["extra_info"] for record in records]), *run.notes])


def _of_document(path: Path, saved: Any) -> Run:
    try:
        benches = saved["benchmarks"]
        found = [_record(bench) for bench in benches]
        machine = machine_facts(saved.get("machine_info", {}).get("blockshock"))
    except (KeyError, TypeError, AttributeError):
        raise NotARun(f"{path}: JSON, but no run that pytest-benchmark saved") from None
    if not any("phase" in record["extra_info"] for record in found):
        raise NotARun(f"{path}: a run of pytest-benchmark, but none of Block-Shock's tests is in it")
    records, left_out, odds = [], Counter[str](), list[Odd]()
    for record in found:
        if name := unfit(record["extra_info"]):
            left_out[name] += 1
            odds += filter(None, [odd(record["extra_info"], name)])
        else:
            records.append(record)
    last = {record["name"]: record for record in records}
    twice = len(records) - len(last)
    many = several(twice, "result is", "results are")
    notes = [f"{many} in {path.name} more than once: shown is the last"] if twice else []
    timed = [bench for bench, record in zip(benches, found, strict=True) if is_timed(record) and not record["samples"]]
    if spoilt := sum(bool(_samples(bench)) for bench in timed):
        what = several(spoilt, "result has", "results have")
        notes.append(f"{what} samples that are not all numbers above 0: they count as not saved")
    return Run(path, str(saved.get("datetime") or ""), machine, list(last.values()), dict(left_out), notes, odd=odds)


def read_json(raw: bytes | str) -> Any:
    """What the text says. Halves of a surrogate pair, which nothing can be written with, become question marks.

    Raises:
        ValueError: it is no JSON, or nested too deep to be a run.
    """
    try:
        found = json.loads(raw)
        if (b"\\ud" if isinstance(raw, bytes) else "\\ud") in raw.lower():  # type: ignore[operator]
            found = json.loads(json.dumps(found, ensure_ascii=False).encode(errors="replace"))
    except RecursionError:
        raise ValueError("nested too deep") from None
    return found


def _record(bench: dict[str, Any]) -> dict[str, Any]:
    samples = _samples(bench)
    named = {key: str(bench[key]) for key in ("name", "group")}
    info = bench["extra_info"] if isinstance(bench["extra_info"], dict) else {}
    return named | {"extra_info": info, "samples": samples if items(positive)(samples) else []}


def _samples(bench: dict[str, Any]) -> Any:
    return bench.get("stats", {}).get("data", [])
