"""Rows that times do not tell apart: the one that loses least is named, wherever a report names the fastest."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rows import Info, checked, gained, networked, run_of, timed, verdict

from blockshock.report.alike import Speed, is_alike, least_losing
from blockshock.report.answer import answer
from blockshock.report.asked import verdict_table
from blockshock.report.fastest import against_best
from blockshock.report.models import model_lines
from blockshock.report.networks import network_lines
from blockshock.report.spreads import spreads
from blockshock.report.within import within_lines

LOSSES = {"magnitude": 0.4, "sparsegpt": 0.2}
DENSE: Info = {"role": "rival", "promise": "dense", "span": "one", "ranks": 1}


def of(pruner: str, kernel: str = "auto") -> Info:
    picks = {"kernel": kernel, "pruner": pruner}
    return {"role": "subject", "span": "one", "promise": "own weights", "picks": picks, "method": "pruned", "ranks": 1}


def layer(ms: dict[str, float], builds: float = 0.0, N: int = 64, lossless: bool = False, **more: Any) -> list[Info]:
    """Both pruners beside a dense layer that takes two ms, their builds that far apart to either side."""
    found = [timed("dense_single", N, 4, 2.0, **DENSE, **more)]
    for pruner, p50 in ms.items():
        label, scattered = f"pruned auto {pruner}", [p50, p50 * (1 - builds), p50 * (1 + builds)]
        found.append(timed(label, N, 4, p50, builds_p50_ms=scattered, **of(pruner), **more))
        quality = {"output_error": LOSSES[pruner], "kept_magnitude": 0.5, "kept_energy": 0.5}
        found += [] if lossless else [checked(label, N, quality=quality, **of(pruner))]
    return found


@pytest.mark.parametrize(
    ("one", "fastest", "alike"),
    [
        (Speed(1.029), Speed(1.0), True),
        (Speed(1.031), Speed(1.0), False),
        (Speed(1.1, scatter=0.06), Speed(1.0, scatter=0.05), True),
        (Speed(1.1, scatter=0.04), Speed(1.0, scatter=0.05), False),
        (Speed(1.1, interval=(1.0, 1.2)), Speed(1.0, interval=(0.9, 1.05)), True),
        (Speed(1.02, interval=(1.01, 1.03)), Speed(1.0, interval=(0.99, 1.005)), False),
        (Speed(1.02, interval=(1.01, 1.03)), Speed(1.0), True),
        (Speed(1.7, interval=(1.3, 2.1)), Speed(1.0, interval=(0.7, 1.4)), False),
        (Speed(1.02, interval=(0.7, 1.4)), Speed(1.0, interval=(0.9, 1.1)), True),
        (Speed(2.0, work="a"), Speed(1.0, work="a"), True),
        (Speed(2.0, work="a"), Speed(1.0, work="b"), False),
        (Speed(2.0, scatter=0.01, work="a"), Speed(1.0, scatter=0.01, work="a"), False),
    ],
)
def test_what_tells_two_rows_apart(one: Speed, fastest: Speed, alike: bool) -> None:
    assert is_alike(one, fastest) is alike


def test_of_those_the_least_loss_is_named_and_of_equal_losses_the_fastest() -> None:
    told = lambda *speeds: least_losing(speeds, lambda speed: speed)  # noqa: E731
    assert told(Speed(1.0, 0.4), Speed(1.02, 0.2), Speed(1.1, 0.0)) == Speed(1.02, 0.2)
    assert told(Speed(1.02, 0.2), Speed(1.01, 0.2), Speed(1.0, 0.4)) == Speed(1.01, 0.2)
    for order in ((1.0, math.nan), (1.01, 0.4)), ((1.01, 0.4), (1.0, math.nan)):
        assert told(*(Speed(*one) for one in order)) == Speed(1.01, 0.4)
    assert told(Speed(1.02), Speed(1.0)) == Speed(1.0)
    assert told(Speed(1.0), Speed(1.02, 0.9)) == Speed(1.02, 0.9), "what nobody knows is the worst"


def test_beside_other_runs_it_is_what_the_first_runs_answer_names_or_both_numbers_are_said() -> None:
    one, other = (
        run_of(layer({"magnitude": 1.0, "sparsegpt": 1.02})),
        run_of(layer({"magnitude": 0.5, "sparsegpt": 1.5})),
    )
    assert [row.ratio for row in against_best(one)] == [0.51]
    assert list(spreads([one, other])) == [
        "pruned auto sparsegpt, forward: time ÷ best dense 0.51 in run.json, 0.75 in run.json (0.25 by its own "
        "fastest), over 1 point; at one point up to 47.1% apart"
    ]


def test_the_answer_on_layers_names_it_and_says_its_loss() -> None:
    near, far = {"magnitude": 1.0, "sparsegpt": 1.02}, {"magnitude": 1.0, "sparsegpt": 1.1}
    for infos, pruner in ((layer(near), "sparsegpt"), (layer(far), "magnitude"), (layer(far, 0.06), "sparsegpt")):
        use = answer(run_of(infos))[1]
        assert use.startswith(f"pruned auto {pruner}, forward")
        assert f"Loses {LOSSES[pruner]:.3f} of the output" in use
        (line,) = within_lines(run_of(infos), 0.5)
        assert f"B = 4 pruned auto {pruner} (" in line


def test_it_is_named_where_its_loss_is_known_of_other_layers_alone_and_changes_no_answer() -> None:
    near = {"magnitude": 1.0, "sparsegpt": 1.02}
    found = against_best(run_of([*layer(near), *layer(near, N=128, lossless=True)]))
    assert [one.label for one in found] == ["pruned auto sparsegpt"] * 2
    (edge,) = against_best(run_of(layer({"magnitude": 1.93, "sparsegpt": 1.96})))
    assert edge.label == "pruned auto magnitude", "which pays, where the other is undecided"


def test_of_pairs_it_is_that_whose_interval_meets_the_fastest_ones() -> None:
    for ratio, pruner in ((0.62, "sparsegpt"), (0.7, "magnitude")):
        pairs = [
            verdict(f"pruned auto {name}", 64, 4, of_name, rival="dense_single", hypothesis="H6", **of(name))
            for name, of_name in (("magnitude", 0.6), ("sparsegpt", ratio))
        ]
        run = run_of([*layer({"magnitude": 1.0, "sparsegpt": 1.0}), *pairs])
        assert [one.label for one in against_best(run)] == [f"pruned auto {pruner}"]
        table = verdict_table(run)
        assert table is not None
        assert f"{LOSSES[pruner]:.2f} of the output" in table.rows[0]


def test_what_a_models_layers_take_together_names_it_too() -> None:
    use = {"model": "some", "name": "down", "count": 2, "of": 2, "listed": False}
    (line,) = model_lines(run_of(layer({"magnitude": 1.0, "sparsegpt": 1.02}, layers=[use])))
    assert "pruned auto sparsegpt, time ÷ best dense 0.51" in line
    (line,) = model_lines(run_of(layer({"magnitude": 1.0, "sparsegpt": 1.1}, layers=[use])))
    assert "pruned auto magnitude, time ÷ best dense 0.50" in line


def network(kernels: tuple[str, str] = ("cusparselt", "cusparselt"), **more: Any) -> list[Info]:
    likes = [{"cosine": cosine, "least_cosine": cosine, "spearman": cosine} for cosine in (1.0, 0.634, 0.894)]
    dense = networked("dense_single", 10.0, 8.0, likes[0], algorithm="dense", **DENSE)
    found = [
        networked(f"pruned auto {pruner}", ms, 5.0, like, algorithm=kernel, **of(pruner))
        for pruner, ms, like, kernel in zip(LOSSES, (8.0, 8.8), likes[1:], kernels, strict=True)
    ]
    return [dense, found[0], found[1] | more]


def test_in_a_network_of_rows_of_one_kernel_which_no_builds_tell_apart() -> None:
    """Of a network a row has a single build: nothing says how far its time is chance."""
    (line,) = network_lines(run_of(network()))
    assert "pruned auto sparsegpt, time ÷ dense 0.88 (0.80–0.88 of the 2 rows that run the same kernel); " in line
    assert "cosine with the dense embeddings 0.894" in line
    (within,) = within_lines(run_of(network()), 0.5)
    assert "B = 8 pruned auto sparsegpt (0.88)" in within


@pytest.mark.parametrize(
    "infos",
    [
        network(("cusparselt", "streamed")),
        network(weight_bytes=1),
        network(picks={"kernel": "auto", "pruner": "sparsegpt:permute=yes"}),
        network(picks={"kernel": "auto", "pruner": "sparsegpt", "format": "int8"}),
    ],
    ids=["another kernel", "other bytes", "permuted", "another format"],
)
def test_other_work_is_told_apart_by_its_time(infos: list[Info]) -> None:
    (line,) = network_lines(run_of(infos))
    assert "pruned auto magnitude, time ÷ dense 0.80; " in line


def test_of_verdicts_on_a_network_too() -> None:
    likes = {"magnitude": 0.634, "sparsegpt": 0.894}
    found = [
        gained(f"pruned auto {pruner}", whole, 0.5, {"cosine": cosine, "least_cosine": cosine, "spearman": cosine})
        | of(pruner)
        | {"blocks": None, "ratio": whole, "ratio_low": whole - 0.02, "ratio_high": whole + 0.02}
        for (pruner, cosine), whole in zip(likes.items(), (0.8, 0.81), strict=True)
    ]
    table = verdict_table(run_of(found))
    assert table is not None
    assert table.rows[0][1] == "pruned auto sparsegpt"
