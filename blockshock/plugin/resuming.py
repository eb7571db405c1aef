"""Which session ``--resume`` goes on with: the last that was broken off and ran as this one is to.

Numbers of other code or of another machine are not joined with those of now into one run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pytest_benchmark.utils import safe_dumps

from blockshock.machine import environment
from blockshock.plugin.session import commit_info
from blockshock.plugin.settings import Settings
from blockshock.saved import FINISHED, Journal, NoJournal, all_unfinished, hold, journals, read_journal, read_session

LATER = ("asked", "ceilings", "extend", "layers", "networks", "where", "batches", "tasks", "steps", "corpus")
"""Settings that sessions of before knew nothing of."""

DECIDES_NOTHING = ("extend", "rank_timeout")
"""Settings that may differ: of files that extend the suite the code is compared, and no number is of how long ranks may
take."""
_SAVES = ("--benchmark-autosave", "--benchmark-save")


@dataclass(frozen=True)
class Resumed:
    """A session that is gone on with.

    Attributes:
        held: what says that this process writes to its journal.
        passed_over: why what was written later is not taken: folders that hold no journal.
    """

    journal: Journal
    held: FileLock | None
    passed_over: list[str]

    @property
    def save(self) -> str | None:
        """By which name its run was to be saved, if it was."""
        told = self.journal.session
        if "save" in told:
            return told["save"] if isinstance(told["save"], str) else None
        asked = [word for word in _arguments(told) if word.startswith(_SAVES)]
        return "resumed" if set(asked) - {"--benchmark-save-data"} else None


def take_over(config: pytest.Config, settings: Settings, storage: Path, decisive: dict[str, Any]) -> Resumed:
    """The last session that did not end and ran as this one is to, which is ``decisive``; now its journal is held.

    Raises:
        NoJournal: there is none that did not end, or that one still runs.
        pytest.UsageError: none of them ran so; the message says what differs, and the way out.
    """
    folders, passed_over = all_unfinished(storage)
    now = json.loads(safe_dumps(decisive | {"facts": environment.describe()}))
    refused: list[tuple[bool, str]] = []
    for folder in folders:
        then = read_session(folder)
        other = [*_other_options(then, now, settings), *_other_tests(then, now, config)]
        changed = [*_other_code(then, now, config), *_other_machine(then, now)]
        if other or changed:
            refused.append((bool(other), _refusal(folder, other, changed)))
            continue
        held = hold(folder)
        if not (folder / FINISHED).exists():
            return Resumed(read_journal(folder), held, passed_over)
        if held is not None:  # it came to its end just before it was held
            held.release()
    if refused:
        # One that ran with these options is what was meant; else the last.
        raise pytest.UsageError(min(refused, key=lambda one: one[0])[1])
    why = "all that ran came to its end"
    if not any(journals(storage).glob("*")):
        why = f"nothing is kept in {journals(storage).resolve()}; start where that session was, or with its storage"
    none = f"no unfinished session in {journals(storage)}: {why}"
    raise NoJournal("\n".join([none, *passed_over]))


def check_tests(journal: Journal, now: dict[str, str]) -> None:
    """Raises pytest.UsageError if a file of tests is not what it was then, by the digests of those of now."""
    then = journal.session.get("tests")
    if changed := _differing("code of ", then if isinstance(then, dict) else {}, now):
        raise pytest.UsageError(f"--resume: {_refusal(journal.folder, [], changed)}")


def _refusal(folder: Path, other: list[str], changed: list[str]) -> str:
    why = "ran with other options" if other else "has numbers that are not to be joined with new ones"
    command = f"python -m blockshock recover {shlex.quote(str(folder))}"
    way = f"`{command}` saves what it has; then start anew, without --resume"
    return f"{folder} {why}: {'; '.join([*other, *changed])}. {way}"


def _differing(kind: str, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What both know, and each otherwise."""
    both = [name for name in now if name in then and then[name] != now[name]]
    return [f"{kind}{name} {then[name]} then, {now[name]} now" for name in both]


def _other_options(then: dict[str, Any], now: dict[str, Any], settings: Settings) -> list[str]:
    before, settled = then.get("settings"), now["settings"]
    wanted = {name: value for name, value in settled.items() if name not in DECIDES_NOTHING}
    if not isinstance(before, dict):
        return ["it does not say which"]
    # An axis that was not there then was picked for nothing; and what passes that go backward picked stood apart.
    later = (*(f"{axis}s" for axis in settings.axes), *LATER)
    before = {name: settled[name] for name in later} | before
    before["masks"] = before.get("training_masks", before.get("masks"))
    return _differing("", {name: before.get(name) for name in wanted}, wanted)


def _other_tests(then: dict[str, Any], now: dict[str, Any], config: pytest.Config) -> list[str]:
    if "selection" in then:
        kind, before, wanted = "tests", then["selection"], now["selection"]
    else:  # as before: the words of the command line are all that is known
        kind, before, wanted = "arguments", *map(_picking, (_arguments(then), config.invocation_params.args))
    return [] if before == wanted else [f"{kind} `{before}` then, `{wanted}` now"]


def _arguments(then: dict[str, Any]) -> list[str]:
    words = then.get("arguments")
    return [str(word) for word in words] if isinstance(words, list) else []


def _picking(words: Iterable[object]) -> str:
    """Without those that say how a session is kept."""
    kept = ("--resume", "--blockshock-resume", *_SAVES)
    return shlex.join(word for word in map(str, words) if not word.startswith(kept))


def _other_code(then: dict[str, Any], now: dict[str, Any], config: pytest.Config) -> list[str]:
    before = then.get("code")
    if isinstance(before, dict):
        names = dict.fromkeys([*before, *now["code"]])
        changed = _differing("code of ", *({name: one.get(name) for name in names} for one in (before, now["code"])))
        commits = [{"commit": facts.get("git_commit")} for facts in (_facts(then), now["facts"])]
        return [*changed, *_differing("", *commits)] if changed else []
    return _other_commit(then["commit_info"], commit_info(config))


def _other_commit(*infos: dict[str, Any]) -> list[str]:
    """As before: of the code nothing is known but its commit, and nothing of what that lacks."""
    then, now = (info.get("id") for info in infos)
    known = then not in (None, "unversioned", "unknown")
    if known and then == now and not any(info.get("dirty") for info in infos):
        return []
    told = [f"{info.get('id')}{' with changes' if info.get('dirty') else ''}" for info in infos]
    return [f"commit {told[0]} then, {told[1]} now"]


def _facts(then: dict[str, Any]) -> dict[str, Any]:
    facts = then["machine_info"].get("blockshock")
    return facts if isinstance(facts, dict) else {}


def _other_machine(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    here = {name: fact for name, fact in now["facts"].items() if name != "git_commit"}
    threads, gpus = then.get("threads"), then.get("gpus")
    return [
        *_differing("", {"machine_id": then["machine_id"]}, {"machine_id": now["machine_id"]}),
        *_differing("", _facts(then), here),
        *_differing("threads: ", threads if isinstance(threads, dict) else {}, now["threads"]),
        *_differing("", gpus if isinstance(gpus, dict) else {}, now["gpus"]),
    ]
