"""The tables over all points of a run, and the lines that say how near its limits Block-Shock comes."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from inner_pytest import ROOT
from rows import Info, limited, run_of, stepped, tables, timed

from blockshock.report.again import commands
from blockshock.report.comparison import comparison
from blockshock.report.flat import rows
from blockshock.report.limits import limit_lines
from blockshock.report.plots import drawings
from blockshock.report.tables import Column, slug
from blockshock.saved.results import read_run


def test_stages_and_ratios_of_each_point() -> None:
    dense = [timed("dense_single", 64, 4, 4.0), timed("dense_tp_row", 64, 4, 2.0)]
    found = tables([*dense, timed("block_shock auto", 64, 4, 1.0), timed("block_shock auto", 128, 4, 1.0)])
    speeds = found["Time over the best dense"]
    names = ["method", "p50 ms", "builds ±", "÷ best dense", "best dense", "÷ dense_tp_row", "÷ dense_single", "paired"]
    assert [column.name for column in speeds.columns][5:] == names
    assert [row[5:] for row in speeds.rows] == [
        ("block_shock auto", 1.0, None, 0.5, "dense_tp_row", 0.5, 0.25, ""),
        ("dense_tp_row", 2.0, None, 1.0, "dense_tp_row", 1.0, 0.5, ""),
        ("dense_single", 4.0, None, 2.0, "dense_tp_row", 2.0, 1.0, ""),
        ("block_shock auto", 1.0, None, None, None, None, None, ""),
    ]
    assert found["Time by stage, ms"].texts()[0][5:] == ["block_shock auto", "1.0000", "0.6000", "0.1000", "0.3000"]
    assert found["Memory of the fullest rank, MiB"].texts()[0][5:] == ["block_shock auto", "3.0", "2.0", "5.0"]


def test_the_share_of_the_limit_beside_rows_that_have_none() -> None:
    infos = [timed("block_shock auto", 64, 4, 1.0, **limited(0.8)), timed("dense_single", 64, 4, 2.0)]
    table = tables(infos)["Share of the limit"]
    assert table.texts() == [
        [
            *("gaussian", "64", "64", "4", "bf16", "block_shock auto"),
            *("1.0000", "0.6000", "60%", "compute", "0.6250", "0.5000", "80%", "0.2000", "0.1000", "50%"),
        ]
    ]
    assert "Share of the limit" not in tables(infos[1:])
    (times,) = comparison(run_of(infos).records)
    assert [(row[0], row[5]) for row in times.rows] == [("block_shock auto", 0.6), ("dense_single", None)]
    assert times.columns[5] == Column("% limit", ".0%")


def test_ceilings_in_units_that_people_read() -> None:
    ceilings = {
        "memory_bytes_per_s": 4.2e12,
        "cache_bytes": 50 << 20,
        "dense_flops_per_s": {"bf16": 8e14},
        "sparse_flops_per_s": {},
        "all_reduce": {"latency_s": 9e-6, "bytes_per_s": 2.87e11},
        "launch_s": 4e-6,
    }
    table = tables([timed("dense_single", 64, 4, 1.0)], ceilings=ceilings)["Measured ceilings"]
    assert table.texts() == [
        ["memory", "4,200.0", "GB/s"],
        ["cache", "50.0", "MiB"],
        ["dense bf16", "800.0", "TFLOP/s"],
        ["all reduce latency", "9.0", "µs"],
        ["all reduce bandwidth", "287.0", "GB/s"],
        ["launch", "4.0", "µs"],
    ]
    assert table.notes == ["no rate of sparse tensor cores: this machine has none that could be measured"]


def test_operations_of_what_was_profiled() -> None:
    name = "void at::elementwise_kernel<128, at::direct_copy_kernel_cuda(at::Iterator&)::{lambda(float)#1}>(int)"
    kernels = [
        {"name": "nccl_AllReduce(Arguments<4096ul>)", "kind": "collective", "calls": 1, "ms": 0.25, "share": 0.125},
        {"name": name, "kind": "kernel", "calls": 2, "ms": 0.5, "share": 0.25},
    ]
    info = timed("dense_tp_row", 64, 4, 1.0, kernels=kernels, traces=["traces/a.json"])
    table = tables([info, timed("dense_single", 64, 4, 1.0)])["Operations"]
    assert [row[5:] for row in table.texts()] == [
        ["dense_tp_row", "nccl_AllReduce", "collective", "1", "0.2500", "12.5%"],
        ["dense_tp_row", "at::elementwise_kernel direct_copy_kernel_cuda", "kernel", "2", "0.5000", "25.0%"],
    ]
    assert table.notes == ["traces: traces/a.json"]


def reaching(label: str, N: int, B: int, share: float) -> Info:
    return timed(label, N, B, 1.0, **limited(0.5, limit_ms=share))


def test_the_answer_says_which_stage_loses() -> None:
    infos = [
        reaching("block_shock auto", 8192, 256, 0.95),
        reaching("block_shock auto", 8192, 1024, 0.70),
        reaching("block_shock auto", 4096, 1024, 0.10),
        reaching("block_shock auto", 8192, 64, 0.10),
        reaching("block_shock gathered", 8192, 256, 0.10),
    ]
    assert list(limit_lines(run_of(infos).infos)) == [
        "forward, block_shock auto (N ≥ 8192, B ≥ 256): 70%–95% of its limit over 2 points; below 85% at 1: "
        "N=8192 B=1024: 70%, 0.3000 ms beyond it; of its stages matmul 60%, layout 10%, reduce 30%"
    ]
    assert next(limit_lines(run_of(infos[:1]).infos)).endswith("95% of its limit at the one point; nowhere below 85%")
    assert list(limit_lines(run_of([timed("block_shock auto", 8192, 256, 1.0)]).infos)) == []


def test_without_auto_each_label_has_its_line_and_the_worst_point_comes_first() -> None:
    infos = [
        reaching(f"block_shock {kernel}", 8192, B, share)
        for kernel in ("gathered", "cusparselt")
        for B, share in ((256, 0.8), (1024, 0.5))
    ]
    lines = list(limit_lines(run_of(infos).infos))
    assert [line.partition(" (")[0] for line in lines] == [
        "forward, block_shock gathered",
        "forward, block_shock cusparselt",
    ]
    assert all(
        "below 85% at 2: N=8192 B=1024: 50%" in line and line.endswith("the table has the rest") for line in lines
    )


def test_the_limit_has_one_share_though_the_rounds_that_time_stages_are_slower() -> None:
    """On one device the products are the whole call; timed stage by stage they may take longer than that."""
    ceilings = {"memory_bytes_per_s": 1e12, "dense_flops_per_s": {"bf16": 1e15}}
    infos = []
    for N, ms in ((8192, 1.0), (16384, 8.0)):
        products = {"p50_ms": 1.25 * ms, "limit_ms": 0.75 * ms, "of_limit": 0.6, "bound_by": "compute"}
        whole = {"limit_ms": 0.75 * ms, "of_limit": 0.9, "limits": {"products": products}}
        work = {"flops": 0.75e12 * ms, "unit": "dense", "memory_bytes": 1e6 * N}
        infos.append(
            timed("block_shock auto", N, 256, ms, stages={"matmul": {"p50_ms": 1.25 * ms}}, work=work, **whole)
        )
    run = run_of(infos, ceilings=ceilings)
    (line,) = limit_lines(run.infos)
    assert "75% of its limit over 2 points" in line
    assert tables(infos)["Share of the limit"].texts()[0][-3:] == ["1.0000", "0.7500", "75%"]
    for times in comparison(run.records):
        assert [row[times.columns.index(Column("% limit", ".0%"))] for row in times.rows] == [0.75]
    assert [row["limits.products.of_limit"] for row in rows([run])] == [row["of_limit"] for row in rows([run])]
    (roof,) = [one.figure for one in drawings(run) if one.plot.name == "roofline"]
    assert roof.panels[0].body.count(": 750 TFLOP/s") == 2, "three quarters of 1,000"


def test_no_part_of_an_official_run_takes_longer_than_the_whole() -> None:
    for path in sorted((ROOT / "benchmark_results" / "official").iterdir()):
        for info in read_run(path).infos:
            for part in info.get("limits", {}).values():
                assert part["p50_ms"] <= info["p50_ms"]
                assert part.get("of_limit") is None or part["of_limit"] == part["limit_ms"] / part["p50_ms"]


def test_the_commands_that_measure_a_run_again() -> None:
    infos = [timed("dense_single", N, B, 1.0) for N in (128, 64) for B in (4, 2)]
    assert list(commands(run_of(infos))) == [
        "pytest tests/test_phase1_forward.py -m bench --N 64,128 --B 2,4 --dtype bf16 --workloads gaussian "
        "--methods dense_single --seed 0 --ranks 2"
    ]


BLOCKS = {"block_kernel": "bsr", "block_mask": "blocks"}


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ({"flush": "none"}, "--warm-l2"),
        ({"timing": "cuda_events"}, "--timing cuda_events"),
        ({"timing": "sync", "device": "cpu"}, "--device cpu"),
        ({"keep_full_weight": True}, "--keep-full-weight"),
        ({"extend": ["a b/my m.py"]}, "--extend='a b/my m.py'"),
        ({"seed": 5}, "--seed 5"),
        ({"picks": BLOCKS, **BLOCKS}, "--block-kernels bsr --block-masks blocks"),
        (
            {"layers": [{"model": "llama3-8b", "listed": False}, {"model": "vit_l", "listed": False}]},
            "--layers llama3-8b,vit_l",
        ),
    ],
)
def test_the_commands_measure_in_the_same_way(more: dict[str, Any], asked: str | None) -> None:
    (command,) = commands(run_of([timed("dense_single", 64, 4, 1.0) | more]))
    assert asked is None or asked in command
    assert ("--N 64" in command) == ("layers" not in more)
    assert ("--warm-l2" in command, "--timing" in command) == ("flush" in more, more.get("timing") == "cuda_events")
    known = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    options = {word.partition("=")[0] for word in shlex.split(command) if word.startswith("--")}
    assert [option for option in options if f"`{option}" not in known] == []


def test_each_seed_has_a_command_of_its_own() -> None:
    told = list(commands(run_of([timed("dense_single", 64, 4, 1.0) | {"seed": seed} for seed in (0, 5)])))
    assert [command.partition("--seed ")[2] for command in told] == ["0 --ranks 2", "5 --ranks 2"]


def test_points_of_a_file_are_measured_again_by_that_file() -> None:
    listed = [{"model": "mine", "name": "64x64", "count": 1, "of": 2, "listed": True}]
    (command,) = commands(run_of([timed("dense_single", N, N, 1.0, layers=listed) for N in (64, 128)]))
    assert "--points=mine.csv --dtype bf16 --workloads gaussian --methods dense_single" in command
    assert "--N" not in command
    assert "--B" not in command


def test_the_commands_ask_for_what_was_picked_and_for_no_more() -> None:
    def asked(*labels: str) -> str:
        (command,) = commands(run_of([stepped(label, 64, 4, 1.0) for label in labels]))
        return command.partition("--methods ")[2].partition(" ")[2].partition(" --optimizers")[0]

    both = [f"block_shock {kernel} 1010 {storage}" for kernel in ("auto", "cutlass") for storage in ("a", "b")]
    assert asked("dense_single", *both) == "--kernels auto,cutlass --masks 1010 --storages a,b"
    fitting = "block_shock gathered 1100", "block_shock cutlass tile"
    assert asked(*fitting) == "--kernels gathered,cutlass", "each has the mask that fits it, unasked"


def test_cells_as_they_are_read() -> None:
    column = Column("share", ".1%")
    assert [column.text(cell) for cell in (0.5, None, "all", True, False)] == ["50.0%", "–", "all", "yes", "NO"]
    assert slug("Time ÷ tp_row, % of: N×K") == "time-over-tp-row-percent-of-n-k"
