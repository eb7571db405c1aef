"""What is right, what is stale, what a verdict says, and how it is written: of any result that a run may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from damaged_runs import damaged, documents, saved, scalars, values
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import names

from blockshock.report import remarks
from blockshock.report.fastest import against_best
from blockshock.report.limits import limited
from blockshock.report.plain import Plain, plain
from blockshock.report.points import every_row
from blockshock.report.tables import Table, loses, lossy, spread, yardsticks
from blockshock.report.verdicts import wide
from blockshock.saved.doubted import MOST, doubts
from blockshock.saved.earlier import completed
from blockshock.saved.judged import (
    best_dense,
    dense_beside,
    discredited,
    faults,
    fresh,
    is_alone,
    is_dense,
    sound,
    was_checked,
)
from blockshock.saved.quality import halves, is_known, lost, qualities
from blockshock.saved.results import read_run
from blockshock.saved.sections import judges
from blockshock.saved.settle import ratio_of, settled

pytestmark = pytest.mark.reliability


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@examples(370)
@given(damaged())
def test_what_was_read_is_judged_once_and_for_all(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "run.json").write_text(json.dumps(saved(rows)))
    run = attempt(read_run, folder / "run.json")
    if run is None:
        return
    for info, why in zip(run.infos, discredited(run.infos), strict=True):
        assert info.get("wrong") == why
        assert not faults(info) or (was_checked(info) and why)
        assert sound(info) == (fresh(info) and not why)
        assert ":every=1 " not in f"{info['label']} "
        assert not (builds := info.get("builds_p50_ms")) or spread(info) is None or len(builds) > 1
        if "verdict" in info:
            assert info["verdict"] not in ("supported", "rejected")
            assert isinstance(wide(info), bool)
            assert judges(info) in ("forward", "training", None)
            assert not info.get("blocks") or ratio_of(info["blocks"]) is None or info["ratio"] > 0
    for one in against_best(run):
        assert one == every_row(run.infos)[*one.place, one.label]
        assert one.ratio > 0
        assert (one.verdict is None) == (one.low is None) == (one.high is None)
    best = best_dense(run.infos)
    assert best is None or (sound(best) and best["p50_ms"] > 0)
    for info, quality in zip(run.infos, lost(run.infos), strict=True):
        assert completed(info) == info
        assert info.get("loses") == quality
        assert quality is not None or not is_known(run.infos, info)
        assert all(
            is_dense(row) and (row["span"] == "one" or not is_alone(info)) for row in dense_beside(run.infos, info)
        )
        assert loses(Table("", "", lossy([info])), info) == ((quality["output_error"],) if quality else ())
    assert all("quality" in info for info in (*qualities(run.infos), *halves(run.infos)))
    assert set(yardsticks(run.infos)) <= {row["label"] for row in dense_beside(run.infos)}
    assert all(
        isinstance(line, str)
        for told in (remarks.untried, remarks.unhidden, remarks.unmeasured, lambda run: remarks.flushes([run, run]))
        for line in told(run)
    )
    assert run.notes[: len(told := doubts(run.infos))] == told
    assert all(
        0 <= info["of_limit"] <= MOST
        for info in run.infos
        if "p50_ms" in info and "verdict" not in info and info.get("of_limit") is not None
    )
    again = settled(run.records)
    for record in again:
        record["extra_info"].pop("saved_as", None)
    assert [(i["label"], i.get("verdict"), i.get("wrong")) for i in run.infos] == [
        (i["label"], i.get("verdict"), i.get("wrong")) for i in (record["extra_info"] for record in again)
    ]


@examples(250)
@given(part=st.dictionaries(st.sampled_from(("of_limit", "limit_ms")), scalars | values | documents))
def test_a_limit_is_known_or_not(part: dict[str, Any]) -> None:
    assert limited(part) == (len([value for value in part.values() if value is not None]) == 2)


@examples(370)
@given(text=names | st.text(), encoding=st.sampled_from(("ascii", "latin-1", "cp1252", "utf-8", "koi8-r", None)))
def test_any_text_is_written_in_any_encoding(folder: Path, text: str, encoding: str | None) -> None:
    written = plain(text, encoding)
    written.encode(encoding or "utf-8")
    assert plain(written, encoding) == written
    if encoding is None:
        return
    with (folder / "out.txt").open("w", encoding=encoding) as file:
        stream = Plain(file)
        assert stream.write(text) == len(written)
        assert stream.encoding == encoding
