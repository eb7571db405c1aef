"""Saved runs and journals that anybody may have written: what can be shown is shown, the rest is named and left out."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damaged_runs import damaged, documents, saved, scalars, values
from fuzzing import attempt, examples
from hypothesis import assume, example, given
from hypothesis import strategies as st
from rich.console import Console
from strategies import names, odd_names

from blockshock.report import again, answer, command, comparison, limits, remarks, run_tables, screen, show
from blockshock.report.answer import verdict_table
from blockshock.report.beside import beside
from blockshock.report.flat import finite, flat
from blockshock.report.flat import rows as flat_rows
from blockshock.report.folder import write_folder
from blockshock.report.page import Chapter, page
from blockshock.report.plots import views
from blockshock.report.render import draw
from blockshock.report.spreads import spreads
from blockshock.report.tables import Column, Table, columns, mib, point, ratio, slug
from blockshock.saved import journal, or_inf, recovering, schema
from blockshock.saved.results import latest_run, read_json, read_run, run_of_session
from blockshock.saved.run import NotARun, Run, differences, named_apart
from blockshock.saved.sections import SECTIONS, section_of

pytestmark = pytest.mark.reliability


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def read(folder: Path, document: Any) -> Run | None:
    path = folder / "run.json"
    path.write_text(json.dumps(document))
    return attempt(read_run, path)


def readable(folder: Path, document: Any) -> Run:
    run = read(folder, document)
    assume(run is not None)
    assert run is not None
    return run


def on_more(run: Run) -> Run:
    """The same, on twice as many ranks."""
    infos = [record["extra_info"] | {"ranks": 2 * record["extra_info"]["ranks"]} for record in run.records]
    return replace(run, records=[old | {"extra_info": new} for old, new in zip(run.records, infos, strict=True)])


def told(run: Run) -> str:
    """All that is shown of a run; tables as Markdown."""
    out = io.StringIO()
    tables = [*comparison.comparison(run.records), *run_tables.run_tables(run), *beside([run, on_more(run)])]
    show.print_tables(show.console_on(out), tables)
    out.write("\n".join(map(show.markdown, tables)))
    lines = [*answer.answer(run, 0.3), *remarks.remarks(run), *limits.limit_lines(run.infos), *again.commands(run)]
    pages = (screen.of_run(run, "a run", "more"), screen.of_runs([run, run], "more"))
    assert all(len(page) <= screen.LINES and max(map(len, page)) <= screen.WIDTH for page in pages)
    assert sum(len(part.encode()) + 1 for part in command.pasted([run])) <= command.PASTED
    asked = verdict_table(run)
    assert (asked is None) == (not any("verdict" in info for info in run.infos))
    assert differences([run, run]) == []
    assert [one.infos for one in named_apart([run, on_more(run)])] == [run.infos, on_more(run).infos]
    lines += [*spreads([run, run]), *(line for page in pages for line in page)]
    return out.getvalue() + "\n".join(lines)


@examples(740)
@given(damaged())
def test_a_damaged_result_is_left_out_or_shown(folder: Path, rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        row["name"] = f"test[{number}]"
    run = read(folder, saved(rows))
    if run is None:
        return
    assert len(run.records) + sum(run.left_out.values()) == len(rows)
    assert run_of_session(json.dumps(saved(rows))).infos == run.infos
    flat_ones = flat_rows([run])
    assert [row["test"] for row in flat_ones] == [record["name"] for record in run.records]
    json.dumps(finite(flat_ones), allow_nan=False)
    text = told(run)
    text.encode()
    shown = [row for row in run.infos if section_of(row) in ("forward", "backward", "training")]
    assert all(word in text for row in shown for word in re.findall(r"\w+", row["label"]))


FACTS = st.sampled_from(("gpus", "cpu", "ceilings", "torch", ""))


@examples(90)
@given(rows=damaged(), machine=st.dictionaries(FACTS, documents))
def test_a_page_of_any_run_holds_no_markup_but_its_own(folder: Path, rows: Any, machine: Any) -> None:
    for row in rows:
        row["extra_info"]["label"] = row["group"] = "<script>alert(1)</script>"
    run = readable(folder, saved(rows, machine))
    tables = [*run_tables.run_tables(run), *comparison.comparison(run.records)]
    text = page([Chapter(run, list(draw(run, "")), tables)], beside([run, on_more(run)]))
    text.encode()
    assert "<script>alert" not in text


@examples(4)
@given(damaged())
def test_a_folder_of_any_run_has_its_plots_and_tables(folder: Path, rows: list[dict[str, Any]]) -> None:
    run = readable(folder, saved(rows))
    written = write_folder(folder / "report", [run], Console(file=io.StringIO()))
    assert "</html>" in written.read_text()
    assert (folder / "report" / "tables" / "results.csv").is_file()


@examples(310)
@given(st.one_of(documents, st.fixed_dictionaries({"benchmarks": documents}), documents.map(lambda d: saved([d]))))
def test_what_is_no_run_is_refused(folder: Path, document: Any) -> None:
    assert read(folder, document) is None


@examples(190)
@example(b"[" * 100_000, False)
@example(b'{"benchmarks": [{"extra_info"', True)
@given(raw=st.binary(max_size=60), zipped=st.booleans())
def test_bytes_that_are_no_run_are_refused(folder: Path, raw: bytes, zipped: bool) -> None:
    for name, content in (("a.json", raw), ("a.json.gz", raw), ("b.json.gz", gzip.compress(raw, 0) if zipped else raw)):
        (folder / name).write_bytes(content)
        assert attempt(read_run, folder / name) is None


@examples(190)
@given(names)
def test_paths_of_any_name_are_refused_where_nothing_lies(folder: Path, name: str) -> None:
    path = folder / "nothing" / f"x{name}"  # a name that begins with / is a path of its own
    for call in (read_run, latest_run, journal.read_journal, recovering.recover, journal.unfinished_below):
        with pytest.raises((NotARun, journal.NoJournal)) as refusal:
            call(path)
        assert len(str(refusal.value)) > len("no run")
    assert journal.journals(path).parent == path


sessions = st.fixed_dictionaries(
    {
        "machine_id": st.just("Linux-CPython-3.11-64bit") | odd_names | scalars,
        "machine_info": st.just({}) | documents,
        "commit_info": st.just({}),
        "datetime": st.just("2026"),
        "version": st.just("5.1"),
    }
)
entries = st.one_of(
    documents,
    st.fixed_dictionaries({"benchmark": st.fixed_dictionaries({"fullname": names | scalars}) | documents}),
    st.fixed_dictionaries({"passed": names | documents}, optional={"ceilings": documents}),
)


@examples(310)
@given(session=documents | sessions, lines=st.lists(entries.map(json.dumps) | names, max_size=4))
def test_a_journal_is_recovered_whole_or_refused(folder: Path, session: Any, lines: list[str]) -> None:
    one = folder / "storage" / "journal" / "1"
    one.mkdir(parents=True, exist_ok=True)
    (one / journal.SESSION).write_text(json.dumps(session))
    (one / journal.METRICS).write_text("\n".join(lines), errors="replace")
    found = attempt(journal.read_journal, one)
    assert found is None or not set(found.session["machine_id"]) & set("/\\")
    assert found is None or journal.is_session(found.session)
    path = attempt(recovering.recover, one)
    if path is not None:
        assert found is not None
        assert path.parent.parent == folder / "storage"
        assert len(json.loads(path.read_text())["benchmarks"]) == len(found.benchmarks) > 0
        assert latest_run(folder / "storage").is_file()
        path.unlink()


@examples(250)
@given(documents | st.text(), st.booleans())
def test_json_reads_back_as_text_that_can_be_written(document: Any, as_bytes: bool) -> None:
    text = json.dumps(document)
    found = read_json(text.encode() if as_bytes else text)
    json.dumps(found, ensure_ascii=False).encode()
    if "\\ud" not in text:
        assert json.dumps(found) == text


@examples(310)
@given(value=values | documents, fits=st.sampled_from((schema.number, schema.positive, schema.whole, schema.size)))
def test_what_a_schema_lets_pass_can_be_shown(value: Any, fits: schema.Fits) -> None:
    assert not fits(str(value))
    assert not fits(bool(value))
    for wrapped, of in (
        ({"a": value}, schema.each(fits)),
        ([value], schema.items(fits)),
        ({"a": value}, schema.having(a=fits)),
    ):
        assert of(wrapped) == fits(value)
    assert not schema.flag(value) or isinstance(value, bool)
    assert not schema.text(value) or isinstance(value, str)
    if fits(value):
        assert f"{value:.2f}"
        assert schema.machine_facts({"x": value}).keys() == {"x"}
        assert fits is schema.number or value >= 0
    assert set(schema.machine_facts(value)) <= set(value if isinstance(value, dict) else ())
    assert schema.unfit(value if isinstance(value, dict) else {"phase": value}) is not None


@examples(310)
@given(title=names, heads=st.lists(names, max_size=3), cells=st.lists(scalars, min_size=3, max_size=3), note=names)
def test_tables_are_shown_with_what_they_hold(title: str, heads: list[str], cells: list[Any], note: str) -> None:
    forms = ["", ".2f", ".1%"]
    fitting = [cell if form == "" or schema.number(cell) else None for cell, form in zip(cells, forms, strict=True)]
    table = Table(title, "forward", tuple(map(Column, heads, forms)), [tuple(fitting[: len(heads)])], [note])
    out = io.StringIO()
    show.print_tables(show.console_on(out), [table])
    for shown in (out.getvalue(), show.markdown(table)):
        assert not note.isprintable() or note in shown
    if heads:
        words = "".join(show.fitted(table, 80)).split()
        assert all(word in "".join(words) for text in table.texts()[0] for word in text.split() if len(word) < 8)
    for text, cell in zip(table.texts()[0], fitting, strict=False):
        assert (text == "–") == (cell is None) or cell == "–"
        assert text == ("yes" if cell else "NO") or not isinstance(cell, bool)


@examples(250)
@given(text=names, number=st.floats() | st.integers(0, 2**60), base=st.none() | st.floats(min_value=0))
def test_the_small_helpers_of_tables(text: str, number: float, base: float | None) -> None:
    assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert slug(text)
    assert or_inf(number) == math.inf if math.isnan(number) else or_inf(number) == number
    assert (ratio(1.0, base) is None) == (not base)
    assert mib(None) is None
    assert [column.name for column in columns(a_b=text)] == ["a b"]
    row = dict.fromkeys(("workload", "N", "K", "B", "dtype"), number)
    assert len(point(row)) == 5


@examples(190)
@given(st.dictionaries(names, st.dictionaries(names, scalars, max_size=3) | scalars, max_size=4))
def test_flat_rows_hold_every_value(info: dict[str, Any]) -> None:
    found = flat(info)
    assert len(found) <= sum(len(value) if isinstance(value, dict) else 1 for value in info.values())
    assert all(name in found for name, value in info.items() if not isinstance(value, dict))


@examples(120)
@given(damaged())
def test_views_hold_each_result_once_but_verdicts_that_are_ratios_of_others(folder: Path, rows: Any) -> None:
    run = readable(folder, saved(rows))
    shown = [id(info) for view in views(run, run.infos) for info in view.infos]
    assert len(shown) == len(set(shown))
    assert {id(info) for info in run.infos if section_of(info) and "verdict" not in info} <= set(shown)
    assert all(view.section in SECTIONS for view in views(run, run.infos))
