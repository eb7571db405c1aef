"""Layers by the names of their models, points out of a file, and which rows have which: what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from resolving import CPU_DEFAULTS, GPU_DEFAULTS, Resolve, no_gpus, resolve

from blockshock.matrices import MODELS
from blockshock.methods import METHODS, Promise
from blockshock.phases import Case
from blockshock.plugin.cases import backward_grid, drifts, forward_grid, hypotheses, training_grid, trajectories
from blockshock.plugin.points import Points, Use
from blockshock.plugin.records import describe_layers
from blockshock.plugin.settings import Settings

pytest_plugins = ["pytester"]
__all__ = ["no_gpus", "resolve"]

PARAMETERS = {"llama3-8b": 6_979_321_856, "llama3-70b": 68_451_041_280, "vit-l": 301_989_888, "gpt2-xl": 1_474_560_000}
"""Of all linear layers of the blocks, by the papers' widths: 12 d² a block where the inner width is 4 d."""


def test_every_model_says_where_its_shapes_are_from_and_has_as_many_parameters_as_it_should() -> None:
    found = {name: sum(one.N * one.K * one.count for one in MODELS.get(name).layers) for name in MODELS.names()}
    assert found == PARAMETERS
    assert found["gpt2-xl"] == 48 * 12 * 1600**2
    assert found["vit-l"] == 24 * 12 * 1024**2
    assert all("config.json of " in MODELS.get(name).source for name in MODELS.names())


def test_layers_by_name_are_sizes_that_know_what_they_stand_for(resolve: Resolve) -> None:
    settings = resolve("--layers=llama3-8b,gpt2-xl", "--B=1", "--methods=dense_single", "--workloads=gaussian")
    sizes = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))
    assert settings.points == Points((*sizes, (4800, 1600), (1600, 1600), (6400, 1600), (1600, 6400)), (1,))
    assert settings.training_points == settings.points
    assert settings.uses(1024, 4096, 1) == [Use("llama3-8b", name, 32, 1024, 4096) for name in ("k_proj", "v_proj")], (
        "one size is timed once, whatever it stands for"
    )
    assert len(forward_grid(settings)) == 8
    assert resolve("--layers=vit-l", "--sweep=B").points.tokens == (4, 16, 64)


def test_a_file_lists_points_not_sizes_with_every_b(resolve: Resolve, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("\ufeffB, N,K,count\n4,64,128,3\n\n16,64,64,1\n4,64,128,2\n")
    settings = resolve(f"--points={file}", "--methods=dense_single", "--optimizers=sgd")
    listed = [(case.N, case.K, case.B) for case in forward_grid(settings) if case.workload == "gaussian"]
    assert sorted(listed) == [(64, 64, 16), (64, 128, 4)]
    assert settings.uses(64, 128, 4) == [Use("mine", "64x128", count, 64, 128, 4) for count in (3, 2)]
    assert settings.uses(64, 128, 16) == []
    trained = [(case.N, case.K, case.B) for case in training_grid(settings) if case.workload == "gaussian"]
    assert sorted(trained) == sorted(listed)


def test_files_of_one_name_are_told_apart_by_what_they_list(resolve: Resolve, tmp_path: Path) -> None:
    lists = []
    for folder, points in (("a", "64,64,4,1\n"), ("b", "64,64,4,1\n128,64,4,1\n"), ("c", "64,64,4,1\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.csv").write_text(f"N,K,B,count\n{points}")
        settings = resolve(f"--points={tmp_path / folder / 'mine.csv'}", "--methods=dense_single")
        (layer,) = describe_layers(Case("dense_single", {}, "gaussian", 64, 64, 4, "bf16"), settings)["layers"]
        assert (layer["model"], layer["listed"]) == ("mine", True)
        lists.append(layer["list"])
    assert lists[0] == lists[2] != lists[1]


WRONG = [
    ("N,K,B\n64,64,4\n", ["line 1: the columns are N,K,B,count, and it has 'N,K,B'"]),
    ("N,K,B,count,what\n", ["line 1", "'N,K,B,count,what'"]),
    ("", ["line 1", "and it has nothing"]),
    ("N,K,B,count\n", ["lists no point", "4096,4096,16,32"]),
    ("N,K,B,count\n64,64,4,1\n64,x,4,1\n", ["line 3: K takes whole numbers, got 'x'"]),
    ("N,K,B,count\n64,64,0,1\n", ["line 2: B must be at least 1, got 0"]),
    ("N,K,B,count\n64,64,4\n", ["line 2: count is missing"]),
    ("N,K,B,count\n64,64,4,1,7\n", ["line 2: '7' is beyond the columns N,K,B,count"]),
    ("N,K,B,count\n64,66,4,1\n", ["line 2: N 64, K 66: K must be a multiple of 4", "the nearest are 64 and 68"]),
    ('N,K,B,count\n"64,64,4,1\n', ["is no CSV file"]),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said[0][:30] for _, said in WRONG])
def test_a_file_that_is_wrong_is_refused_by_line_column_and_value(
    text: str, said: list[str], resolve: Resolve, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    with pytest.raises(pytest.UsageError) as error:
        resolve(f"--points={file}")
    message = str(error.value)
    assert message.startswith(f"--points {file}")
    assert [part for part in said if part not in message] == [], message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--points=none.csv", "--points none.csv: No such file or directory"),
        ("--points=x.csv --N=64", "--points x.csv and --N 64 say two things: give one of them"),
        ("--points=x.csv --B=4", "--points x.csv and --B 4 say two things"),
        ("--points=x.csv --layers=vit-l", "--points x.csv and --layers vit-l say two things"),
        ("--points=x.csv --sweep=B", "--points x.csv and --sweep B say two things"),
        ("--layers=vit-l --N=64", "--layers vit-l and --N 64 say two things"),
        ("--layers=vit-l --sweep=N,B", "--layers vit-l and --sweep N,B say two things"),
        ("--layers=lama3-8b", "--layers: no model is named 'lama3-8b'. Did you mean 'llama3-8b'? Choices: llama3-8b, "),
        ("--layers=", "--layers is empty. Choices: all, llama3-8b, "),
    ],
)
def test_options_that_say_two_things_or_nothing_are_refused(arguments: str, says: str, resolve: Resolve) -> None:
    with pytest.raises(pytest.UsageError) as error:
        resolve(*arguments.split())
    assert says in str(error.value)


def test_what_is_checked_on_small_layers_goes_by_the_b_and_the_picks_that_were_asked_for(resolve: Resolve) -> None:
    usual, few = resolve("--methods=block_shock,pruned"), ["--methods=block_shock,pruned", "--B=8,128"]
    assert {case.B for case in drifts(usual)} == {16}
    assert {case.B for case in trajectories(usual)} == {32}
    asked = resolve(*few, "--pruners=random", "--kernels=reference", "--masks=tile", "--storages=masked")
    assert {case.B for case in drifts(asked)} == {8, 128}
    by_workload = {(case.workload, case.B) for case in trajectories(asked)}
    assert by_workload == {("gaussian", 8), ("gaussian", 128), ("recorded", 8)}, "which has 512 tokens, for 8 batches"
    for made in (drifts(asked), trajectories(asked)):
        assert {case.label for case in made if case.method == "pruned"} <= {
            "pruned reference random",
            "pruned reference random masked",
        }
        assert {tuple(case.picks.values())[:2] for case in made if case.method == "block_shock"} == {
            ("reference", "tile")
        }
    assert {claim.case.pick("pruner") for claim in hypotheses(asked) if claim.case.method == "pruned"} == {"random"}
    rarely = resolve("--methods=block_shock", "--recompress-every=10", "--storages=masked,compressed")
    assert {case.pick("storage") for case in trajectories(rarely)} == {"compressed"}, "the other is not equivalent"


Place = tuple[str, int, int, int]
"""Workload, N, K and B."""
LEARN = {name for name in METHODS.names() if METHODS.get(name).promise is Promise.LEARNS}


def met(settings: Settings, learns: bool, grid: Callable[[Settings], list[Case]] = forward_grid) -> set[Place]:
    return {(case.workload, case.N, case.K, case.B) for case in grid(settings) if (case.method in LEARN) is learns}


@pytest.mark.parametrize("settings", [CPU_DEFAULTS, GPU_DEFAULTS], ids=["cpu", "cuda"])
@pytest.mark.parametrize("grid", [forward_grid, backward_grid])
def test_what_learns_is_where_it_is_trained_with_all_that_it_is_compared_with(
    settings: Settings, grid: Callable[[Settings], list[Case]]
) -> None:
    some, training = met(settings, True, grid), settings.training_points
    assert {place for place in some if place[0] == "gaussian"} == {
        ("gaussian", N, K, B)
        for N, K in set(settings.points.sizes) & set(training.sizes)
        for B in set(settings.points.tokens) & set(training.tokens)
    }
    largest = max(B for B in settings.points.tokens if B <= 512)
    assert {place for place in some if place[0] == "recorded"} == {
        ("recorded", N, K, largest) for N, K in ((1536, 384), (384, 1536))
    }, "its shapes are its own, and of the tokens of training it has none on a GPU"
    every = {
        *(("gaussian", N, K, B) for N, K in settings.points.sizes for B in settings.points.tokens),
        *(("recorded", N, K, B) for N, K in ((1536, 384), (384, 1536)) for B in settings.points.tokens if B <= 512),
    }
    assert met(settings, False, grid) == every
    dense = {(case.workload, case.N, case.K, case.B) for case in grid(settings) if case.label == "dense_single"}
    assert some <= dense
    assert met(settings, True, training_grid) == met(settings, False, training_grid)


@pytest.mark.parametrize(
    ("arguments", "sizes", "tokens"),
    [
        ("--N=512,64x128 --B=4,8", ((512, 512), (64, 128)), (4, 8)),
        ("--N=512,64x128", ((512, 512), (64, 128)), (16,)),
        ("--B=4,8", ((256, 256),), (4, 8)),
        ("--sweep=N,B", ((128, 128), (256, 256), (512, 512)), (4, 16, 64)),
        ("--layers=gpt2-xl --B=4", ((4800, 1600), (1600, 1600), (6400, 1600), (1600, 6400)), (4,)),
    ],
)
def test_what_is_asked_for_holds_for_what_learns(
    arguments: str, sizes: tuple[tuple[int, int], ...], tokens: tuple[int, ...], resolve: Resolve
) -> None:
    settings = resolve(*arguments.split(), "--workloads=gaussian")
    assert met(settings, True) == {("gaussian", N, K, B) for N, K in sizes for B in tokens}


def test_all_points_of_a_file_are_those_of_what_learns(resolve: Resolve, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("N,K,B,count\n64,128,3,1\n128,64,16,1\n")
    settings = resolve(f"--points={file}", "--workloads=gaussian")
    assert met(settings, True) == met(settings, False) == {("gaussian", 64, 128, 3), ("gaussian", 128, 64, 16)}
