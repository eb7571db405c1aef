"""The tables at the end of a run: their order, their ratios, and that nothing is cut off."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from typing import Any

import pytest
from inner_pytest import ROOT

from blockshock.report.comparison import comparison
from blockshock.report.show import console_on, print_tables
from blockshock.saved.settle import settled

Record = dict[str, Any]
POINT = {"workload": "gaussian", "N": 64, "K": 128, "B": 4, "dtype": "bf16", "device": "cpu", "ranks": 2}
LONGEST = "block_shock cusparselt:search=no tile_magnitude"


@pytest.fixture(autouse=True)
def no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def timed(label: str, p50_ms: float, group: str = "phase 1 here", **changed: object) -> Record:
    info = {
        **POINT,
        "phase": 1,
        "label": label,
        "method": label.partition(" ")[0],
        "timing": "sync",
        "p50_ms": p50_ms,
        "p95_ms": 2 * p50_ms,
        "dense_equivalent_tflops": 3.14159,
        "communication_share": 0.25,
        "weight_bytes": 3 << 19,
        **changed,
    }
    return {"group": group, "extra_info": info}


def checked(label: str, error_ratio: float = 1.0, group: str = "phase 0 here", **changed: object) -> Record:
    info = {
        **POINT,
        "phase": 0,
        "label": label,
        "method": label.partition(" ")[0],
        "relative_error": 1.234e-3,
        "error_ratio": error_ratio,
        "max_error": 5.678e-2,
        "of_bound": 0.4567,
        "same_on_ranks": True,
        "same_again": True,
        **changed,
    }
    return {"group": group, "extra_info": info}


def printed(records: list[Record]) -> str:
    out = io.StringIO()
    print_tables(console_on(out), comparison(settled(records)))
    return out.getvalue()


def lines(records: list[Record]) -> list[list[str]]:
    """The cells of each line; two blanks and more part them."""
    return [re.split(r"\s{2,}", line.strip()) for line in printed(records).splitlines() if line.strip(" ─")]


def test_times_come_fastest_first_with_their_ratios() -> None:
    records = [
        timed("dense_tp_row", 2.0),
        timed("dense_tp_col", 1.0),
        timed("block_shock auto 1100", 1.5, cuda_events_p50_ms=2.5),
        timed("dense_single", 4.0),
        timed("masked_split_dense 1100", 5.0, weight_bytes=1 << 30, communication_share=0.756),
    ]
    title, header, *rows, note = lines(records)
    assert title == ["phase 1 here, 2 CPU ranks, sync"]
    ratios = ["÷ best dense", "÷ dense_tp_row", "÷ dense_single"]
    assert header == ["method", "p50 ms", "p95 ms", *ratios, "TFLOP/s", "reduce", "MiB/rank", "eager ms"]
    assert rows == [
        ["dense_tp_col", "1.0000", "2.0000", "1.00", "0.50", "0.25", "3.14", "25%", "1.5", "–"],
        ["block_shock auto 1100", "1.5000", "3.0000", "1.50", "0.75", "0.38", "3.14", "25%", "1.5", "2.5000"],
        ["dense_tp_row", "2.0000", "4.0000", "2.00", "1.00", "0.50", "3.14", "25%", "1.5", "–"],
        ["dense_single", "4.0000", "8.0000", "4.00", "2.00", "1.00", "3.14", "25%", "1.5", "–"],
        ["masked_split_dense 1100", "5.0000", "10.0000", "5.00", "2.50", "1.25", "3.14", "76%", "1024.0", "–"],
    ]
    assert note == ["best dense: dense_tp_col"]


def test_ratios_to_a_method_that_did_not_run_are_left_out() -> None:
    *_, row, note = lines([timed("block_shock auto 1100", 1.5)])
    assert row[3:5] == ["–", "3.14"]
    assert note[0].startswith("no best dense for block_shock auto 1100: add a dense row")


def test_each_group_is_a_table_with_ratios_of_its_own() -> None:
    records = [
        timed("dense_tp_row", 1.0, "phase 1 small"),
        timed("dense_tp_row", 10.0, "phase 1 large", N=128),
        timed("mine", 3.0, "phase 1 small"),
        timed("mine", 20.0, "phase 1 large", N=128),
        checked("mine"),
    ]
    found = lines(records)
    titles = [row[0] for row in found if len(row) == 1 and not row[0].startswith("best dense")]
    assert titles == ["phase 1 small, 2 CPU ranks, sync", "phase 1 large, 2 CPU ranks, sync", "phase 0 here"]
    assert [row[3] for row in found if row[0] == "mine" and len(row) == 9] == ["3.00", "2.00"]


def test_what_ran_untimed_is_counted() -> None:
    record = timed("dense_single", 1.0)
    del record["extra_info"]["p50_ms"]
    assert lines([record, record]) == [["phase 1 here: 2 ran untimed"]]
    assert "dense_tp_row" in printed([record, timed("dense_tp_row", 2.0)])


def test_errors_come_least_first() -> None:
    found = lines([checked("mine", 1.56), checked("broken", math.nan), checked("dense_single", 1.0)])
    title, header, *rows, note = found
    assert title == ["phase 0 here"]
    assert header == ["method", "relative error", "÷ dense's", "max error", "of bound", "same bits"]
    assert rows == [
        ["dense_single", "1.23e-03", "1.00", "5.68e-02", "0.457", "yes"],
        ["mine", "1.23e-03", "1.56", "5.68e-02", "0.457", "yes"],
        ["broken ‡", "1.23e-03", "nan", "5.68e-02", "0.457", "yes"],
    ]
    assert note[0].startswith("‡ broken bf16: its output is wrong at 1 of 1 point that was checked: its error is nan")


@pytest.mark.parametrize("differing", ["same_on_ranks", "same_again"])
def test_bits_that_differ_stand_out(differing: str) -> None:
    *_, same, different, note = lines([checked("a"), checked("b", 2.0, **{differing: False})])
    assert (same[-1], different[-1]) == ("yes", "NO")
    assert (same[0], different[0], note[0][:10]) == ("a", "b ‡", "‡ b bf16: ")


@pytest.mark.parametrize("worst_ratio", [1.75, math.nan])
def test_cases_of_many_points_are_summed_up_by_the_worst(worst_ratio: float) -> None:
    records = [
        checked("dense_single", 1.0, N=256),
        checked("mine", worst_ratio, K=384, same_again=False),
        checked("dense_tp_row", 1.5, dtype="fp32"),
    ]
    text = printed(records)
    assert text.splitlines()[0] == "phase 0 here: 3"
    assert f"largest error ÷ dense's {worst_ratio:.2f}: mine, gaussian 64×384 B=4 bf16\n" in text
    assert "same bits between ranks and runs: 2\n" in text


@pytest.mark.parametrize("terminal", ["40", "120"])
def test_nothing_is_cut_off_however_long_the_label_and_narrow_the_terminal(
    terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", terminal)
    group = "phase 1 transformer_mlp:act=swiglu:norm=no N=40960 K=40960 B=1024 bf16"
    slow = {"cuda_events_p50_ms": 12345.6789, "dense_equivalent_tflops": 1234.567, "weight_bytes": 3 << 30}
    text = printed([timed(LONGEST, 12345.6789, group, **slow), timed("dense_tp_row", 0.1, group), checked(LONGEST)])
    assert "…" not in text
    assert f"{group}, 2 CPU ranks, sync" in text
    row = next(line for line in text.splitlines() if line.strip().startswith(LONGEST))
    assert row.split()[3:] == [
        *("12345.6789", "24691.3578", "123456.79", "123456.79", "1234.57", "25%", "3072.0", "12345.6789")
    ]


def test_reports_are_read_without_torch() -> None:
    code = "import blockshock.report.show, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
