"""The fastest row at each batch size within a given loss: which loss counts, who is named, and what is left out."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rows import Info, checked, networked, run_of, saved, timed, verdict

from blockshock.__main__ import main
from blockshock.errors import InputError
from blockshock.registry import not_negative
from blockshock.report import screen
from blockshock.report.answer import answer
from blockshock.report.ending import print_ending
from blockshock.report.within import within_lines
from blockshock.saved import MEASURES, MOST_LOSS

LAYERS = {"magnitude": (1.0, 0.4), "alps": (1.2, 0.2), "random": (0.8, 0.9)}
"""Of a pruner: ms, where dense takes two, and what is lost."""


def ours(pruner: str, **more: object) -> Info:
    picks = {"kernel": "auto", "pruner": pruner}
    return {"role": "subject", "span": "one", "promise": "own weights", "picks": picks, "method": "pruned"} | more


def rows(B: int = 4, slow: float = 1.0, N: int = 64) -> list[Info]:
    found = [timed("dense_single", N, B, 2.0)]
    for pruner, (ms, error) in LAYERS.items():
        label = f"pruned auto {pruner}"
        quality = {"output_error": error, "kept_magnitude": 0.5, "kept_energy": 0.5}
        found += [timed(label, N, B, slow * ms, **ours(pruner)), checked(label, N, B, quality=quality, **ours(pruner))]
    return found


def told(infos: list[Info], most: float) -> list[str]:
    return list(within_lines(run_of(infos), most))


@pytest.mark.parametrize(
    ("most", "fastest"),
    [
        (0.1, "B = 4 dense_single; faster rows that lose more lose 0.2 or more (pruned auto alps)"),
        (0.2, "B = 4 pruned auto alps (0.60); faster rows that lose more lose 0.4 or more (pruned auto magnitude)"),
        (0.5, "B = 4 pruned auto magnitude (0.50); faster rows that lose more lose 0.9 or more (pruned auto random)"),
        (2.0, "B = 4 pruned auto random (0.40)"),
    ],
)
def test_of_those_that_lose_no_more_the_fastest_is_named(most: float, fastest: str) -> None:
    assert told(rows(), most) == [f"forward, losing at most {most:g} of the output: fastest, time ÷ dense: {fastest}"]


def test_each_batch_size_has_its_own_and_neighbours_that_share_one_are_told_together() -> None:
    many = [row for B, slow in ((4, 1.0), (8, 1.1), (16, 3.0), (64, 1.0)) for row in rows(B, slow)]
    (line,) = told(many, 0.2)
    names = "B = 4–8 pruned auto alps (0.63, 0.60–0.66), B = 16 dense_single, B = 64 pruned auto alps (0.60)"
    assert f"fastest, time ÷ dense: {names}; " in line
    (mixed,) = told([*rows(), *rows(N=128, slow=3.0)], 0.2)
    assert "B = 4 pruned auto alps at 1, dense_single at 1 (0.80, 0.60–1.00); " in mixed


def test_a_pair_decides_and_what_is_no_faster_beyond_doubt_is_not_named() -> None:
    close = [
        row | ({"p50_ms": 1.96} if row["label"] == "pruned auto alps" and "p50_ms" in row else {}) for row in rows()
    ]
    assert "B = 4 dense_single" in told(close, 0.2)[0]
    pair = verdict("pruned auto alps", 64, 4, 0.97, rival="dense_single", hypothesis="H6", **ours("alps"))
    assert "B = 4 pruned auto alps (0.97)" in told([*close, pair], 0.2)[0]
    undecided = pair | {"verdict": "undecided"}
    assert "B = 4 dense_single" in told([*rows(), undecided], 0.2)[0]


def test_what_nobody_checked_or_is_no_number_or_wrong_is_not_named() -> None:
    known, *others = rows()
    unknown = [row for row in others if "quality" not in row or "alps" not in row["label"]]
    (line,) = told([known, *unknown], 0.5)
    assert line.endswith("(pruned auto random); nothing says what pruned auto alps loses")
    none = [
        row | ({"quality": row["quality"] | {"output_error": math.nan}} if "quality" in row else {}) for row in rows()
    ]
    one = [nan if "alps" in nan["label"] else row for nan, row in zip(none, rows(), strict=True)]
    (line,) = told(one, 0.5)
    assert line.endswith("(pruned auto random); nothing says what pruned auto alps loses")
    assert not told(none, 0.5), "as where nobody checked"
    wrong = [row | ({"status": "wrong", "error_ratio": 1e3} if "quality" in row else {}) for row in rows()]
    assert not told(wrong, 0.5)
    assert not told([row for row in rows() if "quality" not in row], 0.5), "where no loss is known there is no choice"


def test_an_ablation_is_none_of_them_and_a_rival_with_weights_of_its_own_is() -> None:
    picks = {"role": "ablation"}
    ablated = [row | (picks if row["label"] == "pruned auto magnitude" else {}) for row in rows()]
    assert "B = 4 pruned auto alps (0.60)" in told(ablated, 0.5)[0]
    theirs = [row | ({"role": "rival"} if row["label"] == "pruned auto magnitude" else {}) for row in rows()]
    assert "B = 4 pruned auto magnitude (0.50)" in told(theirs, 0.5)[0]


def test_dtypes_and_what_runs_on_one_device_are_told_apart_where_there_are_several() -> None:
    both = [*rows(), *(row | {"dtype": "fp16"} for row in rows())]
    assert [line.partition(", losing")[0] for line in told(both, 0.2)] == ["forward, bf16", "forward, fp16"]
    group = [row | ({"span": "group"} if row["method"] == "pruned" else {}) for row in rows(N=128)]
    assert [line.partition(", losing")[0] for line in told([*rows(), *group], 0.2)] == [
        "forward, on one device",
        "forward",
    ]


def networks(B: int = 8, **more: object) -> list[Info]:
    dense = {"role": "rival", "promise": "dense", "span": "one", "ranks": 1}
    found = [networked("dense_single", 10.0, 8.0, _like(1.0), B=B, **dense, **more)]
    for pruner, ms, cosine in (("wanda", 8.0, 0.75), ("alps", 8.5, 0.92), ("ria", 9.9, 0.99)):
        found.append(networked(f"pruned auto {pruner}", ms, 5.0, _like(cosine), B=B, **ours(pruner), **more))
    return found


def _like(cosine: float) -> Info:
    return {"cosine": cosine, "least_cosine": cosine, "spearman": cosine}


def test_of_a_network_the_loss_is_how_far_its_embeddings_are() -> None:
    place = "minilm, all linear layers of its blocks, bf16, losing at most"
    many = "faster rows that lose more lose 0.25 or more (pruned auto wanda)"
    assert told([*networks(), *networks(64)], 0.1) == [
        f"{place} 0.1 by 1 − cosine: fastest, time ÷ dense: B = 8–64 pruned auto alps (0.85); {many}"
    ]
    assert told(networks(), 0.05)[0].startswith(
        f"{place} 0.05 by 1 − cosine: fastest, time ÷ dense: B = 8 the network as it is; "
    )
    assert not told([row | {"likeness": {}} for row in networks()], 0.1), "drawn weights lose nobody knows what"


def test_of_a_language_model_it_is_the_bits_that_are_added() -> None:
    added = {"pruned auto wanda": 0.3, "pruned auto alps": 0.21, "pruned auto ria": 0.01, "dense_single": 0.0}
    likeness = {
        label: {"likeness": {"bits_per_byte": 2.0 + more, "added_bits_per_byte": more}} for label, more in added.items()
    }
    of_lm = [row | likeness[row["label"]] for row in networks(network="lm", workload="lm")]
    (line,) = told(of_lm, 0.25)
    assert line.startswith(
        "lm, all linear layers of its blocks, bf16, losing at most 0.25 bits per byte: fastest, time ÷ dense: B = 8"
    )
    assert "B = 8 pruned auto alps (0.85); faster rows that lose more lose 0.3 or more (pruned auto wanda)" in line


def test_the_answer_names_them_where_it_is_asked_and_the_command_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(rows())
    assert not any("losing at most" in line for line in answer(run))
    assert told(rows(), 0.2)[0] in answer(run, 0.2)
    assert "losing at most 0.2 of the output" in " ".join(screen.of_run(run, "", "", most_loss=0.2))
    print_ending(run, [], None, out := io.StringIO(), most_loss=0.2)
    assert "losing at most 0.2 of the output" in " ".join(out.getvalue().split())
    path = tmp_path / "run.json"
    path.write_text(json.dumps(saved(rows())))
    for arguments, most in (([], MOST_LOSS), (["--most-loss", "0.05"], 0.05), (["--format", "md"], MOST_LOSS)):
        assert main(["report", str(path), *arguments]) == 0
        assert f"losing at most {most:g} of the output" in " ".join(capsys.readouterr().out.split())


def test_a_run_without_any_loss_says_so_where_a_loss_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_loss, without = tmp_path / "with.json", tmp_path / "without.json"
    with_loss.write_text(json.dumps(saved(rows())))
    without.write_text(json.dumps(saved([row for row in rows() if "quality" not in row])))
    for paths, options, says in (
        ([without], ["--most-loss", "0.2"], True),
        ([with_loss, without], ["--most-loss", "0.2"], True),
        ([with_loss], ["--most-loss", "0.2"], False),
        ([without], [], False),
    ):
        assert main(["report", *map(str, paths), *options]) == 0
        said = capsys.readouterr().err
        assert (f"--most-loss: no row of {without} has a loss that counts: " in said) is says
        assert f"no row of {with_loss}" not in said


def test_its_help_says_what_is_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"{MEASURES}. Default {MOST_LOSS:g}" in told


@pytest.mark.parametrize("text", ["-0.1", "nan", "inf", "much", ""])
def test_what_is_no_loss_is_refused_by_name(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=f"--most-loss takes a number from 0 up, got '{text}'"):
        not_negative("--most-loss", text)
    with pytest.raises(SystemExit) as refused:
        main(["report", f"--most-loss={text}"])
    assert refused.value.code == 2
    assert f"argument --most-loss: it takes a number from 0 up, got '{text}'" in capsys.readouterr().err
