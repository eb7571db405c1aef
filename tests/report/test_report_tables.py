"""The tables over all points of a run, and the lines that say how near its limits Block-Shock comes."""

from __future__ import annotations

from rows import limited, run_of, stepped, tables, timed

from blockshock.report.again import commands
from blockshock.report.comparison import comparison
from blockshock.report.limits import limit_lines
from blockshock.report.tables import Column, slug


def test_stages_and_ratios_of_each_point() -> None:
    rows = [timed("dense_single", 64, 4, 4.0), timed("dense_tp_row", 64, 4, 2.0), timed("block_shock auto", 64, 4, 1.0)]
    found = tables([*rows, timed("block_shock auto", 128, 4, 1.0)])
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
            *("0.1000", "0.1000"),  # matmul takes 0.6, layout 0.1
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


def test_the_answer_says_which_stage_loses() -> None:
    infos = [
        timed("block_shock auto", 8192, 256, 1.0, **limited(0.95)),
        timed("block_shock auto", 8192, 1024, 1.0, **limited(0.70)),
        timed("block_shock auto", 4096, 1024, 1.0, **limited(0.10)),
        timed("block_shock auto", 8192, 64, 1.0, **limited(0.10)),
        timed("block_shock gathered", 8192, 256, 1.0, **limited(0.10)),
    ]
    assert list(limit_lines(run_of(infos).infos)) == [
        "forward, what block_shock auto owns (N ≥ 8192, B ≥ 256): reaches 70% to 95% of its limit over 2 points; "
        "below 85% at 1: N=8192 B=1024: 70%, matmul loses 0.1000 ms, layout 0.1000 ms"
    ]
    assert next(limit_lines(run_of(infos[:1]).infos)).endswith(
        "reaches 95% to 95% of its limit over 1 points; nowhere below 85%"
    )
    assert list(limit_lines(run_of([timed("block_shock auto", 8192, 256, 1.0)]).infos)) == []


def test_without_auto_each_label_has_its_line_and_the_worst_point_comes_first() -> None:
    infos = [
        timed(f"block_shock {kernel}", 8192, B, 1.0, **limited(share))
        for kernel in ("gathered", "cusparselt")
        for B, share in ((256, 0.8), (1024, 0.5))
    ]
    lines = list(limit_lines(run_of(infos).infos))
    assert [line.split(" owns")[0] for line in lines] == [
        "forward, what block_shock gathered",
        "forward, what block_shock cusparselt",
    ]
    assert all(
        "below 85% at 2: N=8192 B=1024: 50%" in line and line.endswith("the table has the rest") for line in lines
    )


def test_the_commands_that_measure_a_run_again() -> None:
    infos = [timed("dense_single", N, B, 1.0) for N in (128, 64) for B in (4, 2)]
    assert list(commands(run_of(infos))) == [
        "pytest tests/test_phase1_forward.py -m bench --N 64,128 --B 2,4 --dtype bf16 --workloads gaussian --seed 0 "
        "--ranks 2"
    ]


def test_the_commands_ask_for_what_was_picked_and_for_no_more() -> None:
    def asked(*labels: str) -> str:
        (command,) = commands(run_of([stepped(label, 64, 4, 1.0) for label in labels]))
        return command.partition("gaussian ")[2].partition(" --optimizers")[0]

    both = [f"block_shock {kernel} 1010 {storage}" for kernel in ("auto", "cutlass") for storage in ("a", "b")]
    assert asked("dense_single", *both) == "--kernels auto,cutlass --masks 1010 --storages a,b"
    fitting = "block_shock gathered 1100", "block_shock cutlass tile"
    assert asked(*fitting) == "--kernels gathered,cutlass", "each has the mask that fits it, unasked"


def test_cells_as_they_are_read() -> None:
    column = Column("share", ".1%")
    assert [column.text(cell) for cell in (0.5, None, "all", True, False)] == ["50.0%", "–", "all", "yes", "NO"]
    assert slug("Time ÷ tp_row, % of: N×K") == "time-over-tp-row-percent-of-n-k"
