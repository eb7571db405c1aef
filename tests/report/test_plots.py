"""Plots: few lines, no panel that says nothing, no value out of sight, and marks that mean something."""

from __future__ import annotations

import re

import pytest
from inner_pytest import ROOT
from rows import Info, checked, limited, run_of, stepped, timed, verdict

from blockshock.report.fastest import against_best
from blockshock.report.plots import drawings
from blockshock.report.plots.heat import break_even, heat, shade
from blockshock.report.plots.panels import Point, layer, parts, sized
from blockshock.report.plots.scales import over, round_values, that_fit
from blockshock.report.plots.stages import kinds
from blockshock.report.plots.svg import Figure, wrapped
from blockshock.report.render import draw
from blockshock.saved import read_run

OURS, SLOW, ABLATION = "block_shock gathered 1100", "block_shock cusparselt 1100", "masked_split_dense 1100"
RIVALS = ("dense_single", "dense_tp_row", "dense_tp_col", "dtensor_row", "dtensor_col")


def grid(labels: dict[str, float], sizes: tuple[int, ...] = (64, 128), Bs: tuple[int, ...] = (4, 16)) -> list[Info]:
    return [timed(label, N, B, ms * N * B) for label, ms in labels.items() for N in sizes for B in Bs]


def drawn(infos: list[Info], **machine: object) -> dict[str, Figure]:
    return {f"{one.view.section} {one.plot.name}": one.figure for one in drawings(run_of(infos, **machine))}


def test_at_most_six_lines_of_which_what_is_asked_about_comes_first() -> None:
    masks = {f"block_shock auto mask{number}": 1.0 + number for number in range(6)}
    figure = drawn(grid(masks | dict.fromkeys(RIVALS, 0.5) | {ABLATION: 0.1}))["forward time"]
    bodies = [panel.body for panel in figure.panels]
    lines = re.compile(r'<path class="[cg][^"]*(?<! s)" d="M')
    assert [len(lines.findall(body)) for body in bodies] == [6, 6]
    assert len(figure.left_out) == 6
    assert {"block_shock auto mask4", "block_shock auto mask5"} <= set(figure.left_out)
    (picture,) = [one for one in draw(run_of(grid(masks | {"dense_single": 1.0})), "") if one.name.endswith("-time")]
    assert picture.caption.endswith("Not drawn, but in the tables: block_shock auto mask5.")


def test_each_ratio_names_the_rival_that_it_is_of() -> None:
    infos = [timed(OURS, 64, B, 1.0) for B in (4, 16)]
    infos += [timed(rival, 64, B, ms) for rival, times in (("dense_single", (2.0, 5.0)), ("dense_tp_row", (4.0, 2.5)))
              for B, ms in zip((4, 16), times, strict=True)]  # fmt: skip
    (panel,) = drawn(infos)["forward ratio"].panels
    for B, told in ((4, "0.500 of dense_single's"), (16, "0.400 of dense_tp_row's")):
        assert f"{OURS}, B = {B}: {told}" in panel.body


def test_a_panel_has_two_columns_of_points_at_least() -> None:
    assert "forward time" not in drawn(grid({OURS: 1.0, "dense_single": 2.0}, (64,), (4,)))
    over_B = drawn(grid({OURS: 1.0}, (64,), (4, 16)) + grid({OURS: 1.0}, (128,), (4,)))["forward time"]
    assert [panel.says for panel in over_B.panels] == ["N = K = 64: time, ms over B"]
    over_N = drawn(grid({OURS: 1.0}, (64, 128, 256), (4,)))["forward time"]
    assert [panel.says for panel in over_N.panels] == ["B = 4: time, ms over N = K"]


def test_layers_that_are_not_square_have_panels_of_their_own() -> None:
    points = [Point(OURS, N, N, 4, 1.0) for N in (64, 128, 256)] + [Point(OURS, 512, 64, B, 1.0) for B in (4, 16)]
    assert [(part.title, part.axis) for part in parts(points)] == [("B = 4", "N = K"), ("N×K = 512×64", "B")]
    assert (layer(64, 64), layer(512, 64)) == ("64²", "512×64")
    many = [Point(OURS, N, N, B, 1.0) for N in range(64, 128) for B in range(1, 80)]
    titles = [part.title for part in parts(many)]
    assert (titles[0], titles[-1], len(titles)) == ("N = K = 64", "N = K = 127", 6)


def test_the_best_dense_alternative_divides_and_intervals_are_drawn_where_there_are_any() -> None:
    best = {"rivals": {"dense_single": 2.0, "dense_tp_row": 3.0}}
    pairs = [verdict(OURS, N, B, ratio=0.625, rival="dense_single", **best) for N in (64, 128) for B in (4, 16)]
    figure = drawn(grid({OURS: 1.0, SLOW: 3.0, "dense_single": 2.0, "dense_tp_row": 3.0}) + pairs)["forward ratio"]
    (first, *_) = figure.panels
    assert "block_shock gathered 1100, B = 4: 0.625 of dense_single" in first.body
    assert "block_shock cusparselt 1100, B = 4: 1.500 of dense_single" in first.body
    assert first.body.count(' s" d="M') > 4, "the strokes of the intervals, beside the names' own"
    assert ">best dense<" in first.body


def test_no_drawn_value_is_out_of_sight() -> None:
    figure = drawn(grid({OURS: 1e-4, "dense_single": 5.0}))["forward time"]
    for panel in figure.panels:
        heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', panel.body)]
        assert len(heights) == 4
        assert all(26 <= y <= 206 for y in heights)
    stages = {name: {"p50_ms": ms} for name, ms in (("matmul", 0.001), ("reduce", 0.5), ("x", 0.1))}
    found = kinds({"p50_ms": 1.0, "stages": stages})
    assert found == pytest.approx({"products": 0.001, "communication": 0.5, "not told apart": 0.1 + 0.399})


def test_the_limit_of_errors_is_drawn_though_all_are_far_below() -> None:
    infos = [checked(label, N, B) for label in (OURS, "dense_single") for N in (64, 128) for B in (4, 16)]
    errors = {name: [1e-3] * 3 for name in ("relative_error", "dense_relative_error", "max_error")}
    drifts = checked(OURS, worst_drift=1.2, ratio=[1.0, 1.1, 1.2], steps=3) | errors
    figures = drawn([*infos, drifts])
    for name in ("accuracy error", "drift drift"):
        assert all(">passes below<" in panel.body for panel in figures[name].panels)


def test_what_is_wrong_is_drawn_with_its_mark_and_divides_nothing() -> None:
    infos = grid({OURS: 1.0, SLOW: 1.0, "dense_single": 4.0, "dense_tp_col": 2.0})
    wrong = [checked("dense_tp_col", error_ratio=9.0), checked(SLOW, error_ratio=9.0)]
    figures = drawn(infos + wrong)
    assert "dense_tp_col ‡, B = 4" in figures["forward time"].panels[0].body
    assert f"{OURS}, B = 4: 0.250 of dense_single" in figures["forward ratio"].panels[0].body
    assert SLOW not in figures["forward ratio"].panels[0].body


def test_claims_that_no_other_plot_shows_have_one_each() -> None:
    infos = grid({OURS: 1.0, "dense_tp_row": 2.0})
    pairs = [verdict(OURS, 64, B, rival="dense_tp_row") for B in (4, 16)]
    ablation = [verdict(OURS, 64, B, rival=ABLATION, hypothesis="H3", statement="it is leaner") for B in (4, 16)]
    (claim,) = [one for one in drawings(run_of(infos + pairs + ablation)) if one.plot.name == "claim"]
    assert claim.view.about == "H3: it is leaner"


def test_the_roof_of_2_4_says_what_it_counts() -> None:
    ceilings = {"memory_bytes_per_s": 3e12, "dense_flops_per_s": {"bf16": 8e14}, "sparse_flops_per_s": {"bf16": 6e14}}
    infos = [
        info | limited(0.5) | {"work": {"flops": 1e9 * info["B"], "memory_bytes": 1e8}}
        for info in grid({OURS: 0.001, "dense_single": 0.002})
    ]
    (panel,) = drawn(infos, ceilings=ceilings)["forward roofline"].panels
    assert "bf16 2:4, counting kept values alone: 600 TFLOP/s" in panel.body
    assert "bf16 dense: 800 TFLOP/s" in panel.body
    assert "forward roofline" not in drawn(infos)


def test_the_map_marks_what_is_sure_and_where_the_two_break_even() -> None:
    best = {"rivals": {"dense_single": 1.0, "dense_tp_row": 1.0}}
    pairs = [
        verdict(OURS, 64, 4, ratio=0.5, rival="dense_single", **best),
        verdict(OURS, 64, 16, ratio=1.004, rival="dense_single", verdict="tie", **best),
    ]
    figure = heat(against_best(run_of(grid({OURS: 3.0, "dense_single": 2.0}, (64, 128)) + pairs)))
    assert figure is not None
    (panel,) = figure.panels
    told = re.findall(r'class="k p( w)?"[^>]*>([^<]+)<', panel.body)
    assert told == [(" w", "0.50"), ("", "~1.00"), ("", "1.50"), ("", "1.50")]
    assert panel.body.count('class="even"') == panel.body.count('class="halo"') == 1
    assert f"{OURS} takes 0.500 (0.490–0.510) of dense_single's time: faster" in panel.body
    assert sorted(break_even({(0, 0): 0.5, (0, 1): 1.0, (1, 0): 1.5})) == [(0, 1, 1, 1), (1, 0, 1, 1)]
    assert [shade(ratio) for ratio in (0.1, 0.5, 0.9, 1.0, 1.02, 1.1, 9.0)] == [0, 0, 3, 4, 4, 5, 8]


def test_uses_have_maps_of_their_own_with_layers_that_are_not_square() -> None:
    steps = [stepped(label, 64, 4, 1.0) for label in (OURS, "dense_single")]
    wide = [info | {"K": 512} for info in grid({OURS: 1.0, "dense_single": 2.0})]
    figure = heat(against_best(run_of(grid({OURS: 1.0, "dense_single": 2.0}) + wide + steps)))
    assert figure is not None
    assert [panel.says.partition(":")[0] for panel in figure.panels] == [
        "block_shock, forward (gathered 1100)",
        "block_shock, training step (gathered 1100)",
    ]
    assert ">64×512<" in figure.panels[0].body
    assert heat([]) is None


def test_a_map_says_of_which_rows_it_is_and_its_file_on_what_they_ran() -> None:
    """The same layer and B have other numbers with another kernel, and on another GPU."""
    auto = grid({"block_shock auto 1100": 0.5}, (64,))
    run = run_of(grid({OURS: 1.0, "dense_single": 2.0}) + auto, gpus=["NVIDIA H100, 81559 MiB"] * 2)
    (picture,) = (one for one in draw(run, "") if not one.section)
    words = "the fastest of auto 1100, gathered 1100"
    (panel,) = picture.panels
    assert words in " ".join(re.findall(r">([^<>]+)<", panel.body)), "of both, and of as many lines as it takes"
    assert panel.says.startswith(f"block_shock, forward ({words}): ")
    figure = heat(against_best(run_of(grid({"mine": 1.0, "dense_single": 2.0}))))
    assert figure is not None
    assert figure.panels[0].says.startswith("mine, forward: "), "a method of one row has no other name"
    for one in draw(run, ""):
        assert ">2 × NVIDIA H100" in one.svg()


def test_every_axis_is_named_with_what_it_counts() -> None:
    """On the runs of the repository's own page: what is across, what is upright, and of a map its rows."""
    across = {"B, rows of x", "N = K, features", "steps", "FLOPs per byte of memory"}
    for name in ("0009_2xH100", "0011_1xH100-pruned"):
        for picture in draw(read_run(ROOT / "benchmark_results" / "official" / name), ""):
            for panel in picture.panels:
                words = re.findall(r">([^<>]+)</t", panel.body)
                if picture.name.endswith("stages"):
                    assert "share of each, and ms in all" in words, "bars, each of which says its length"
                    continue
                assert len(across & set(words)) == 1, picture.name
                upright = re.search(r'<tspan class="m"[^>]*>([^<]+)</tspan>', panel.body)
                if picture.section:
                    assert upright is not None
                    assert len(upright[1]) > 5, "with its unit"
                else:
                    assert "layer N×K" in words
    assert all("N = K = " in title or "N×K = " in title for title in (sized(4, 4), sized(4, 8)))


def test_ticks_are_few_round_and_do_not_touch() -> None:
    assert round_values(1.0, 2.4) == [1.0, 1.5, 2.0]
    assert round_values(0.5, 2.7) == pytest.approx([0.5, 0.7, 1.0, 1.5, 2.0])
    assert round_values(0.02, 5.0) == pytest.approx([0.03, 0.1, 0.3, 1.0, 3.0])
    assert len(round_values(1e-30, 1e30)) <= 6
    scale = over([1.0, 2.0, 1e5], 0, 100)
    assert [value for value, _ in that_fit([1.0, 2.0, 1e5], scale)] == [1e5, 1.0]
    assert over([3.0, 3.0], 0, 10)(3.0) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("dense_single", ["dense_single"]),
        ("block_shock cusparselt tile compressed", ["block_shock cusparselt", "tile compressed"]),
        ("semi_structured_torch:compiled=yes magnitude", ["semi_structured_torch", ":compiled=yes", "magnitude"]),
        ("x" * 40, ["x" * 22 + "…"]),
        ("a" * 20 + " bb" * 30, ["a" * 20, "bb bb bb bb bb bb", "bb bb bb bb bb bb bb b…"]),
    ],
)
def test_names_are_parted_where_they_may_be(words: str, lines: list[str]) -> None:
    assert wrapped(words) == lines
