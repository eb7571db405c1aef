"""The command line: what the options resolve to, and what is said of wrong values."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from inner_pytest import ROOT, python_path
from resolving import CPU_DEFAULTS, Resolve, no_gpus, resolve

from blockshock.kernels import KERNELS
from blockshock.machine.collectives import Group
from blockshock.matrices.named_masks import MASKS
from blockshock.matrices.workloads import WORKLOADS
from blockshock.methods import METHODS, Layer, Method
from blockshock.phases import case as case_module
from blockshock.plugin import SETTINGS, Row, pytest_report_header, stash
from blockshock.plugin.cases import forward_grid
from blockshock.plugin.closing import most_loss
from blockshock.plugin.points import Points
from blockshock.plugin.settings import resolve as resolve_settings
from blockshock.saved import MOST_LOSS

pytest_plugins = ["pytester"]
__all__ = ["no_gpus", "resolve"]


OTHER = """
def pytest_addoption(parser):
    parser.getgroup("other").addoption("--device", action="append", default=["none"])
    parser.addoption("--ranks", default="low")
"""
"""Another plugin, with options named as two of ours are."""


@pytest.mark.parametrize(
    ("arguments", "conftest"),
    [
        (["-p", "other"], 'pytest_plugins = ["blockshock.plugin"]'),
        ([], 'pytest_plugins = ["blockshock.plugin", "other"]'),
        (["-p", "other", "-p", "blockshock.plugin"], ""),
        (["-p", "blockshock.plugin", "-p", "other"], ""),
        (["-p", "blockshock.plugin"], OTHER),
    ],
    ids=["ours by a conftest", "both by a conftest", "ours second", "ours first", "the other's by a conftest"],
)
def test_options_give_way_to_those_of_another_plugin(
    arguments: list[str], conftest: str, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(other=OTHER)
    pytester.makeconftest(conftest)
    pytester.syspathinsert()
    ours = ["--blockshock-device=cpu", "--blockshock-ranks", "4", "--seed=3", "--blockshock-B=8"]
    config = pytester.parseconfig(*arguments, *ours, "--device=Pixel", "--ranks=high")
    settings = resolve_settings(config)
    assert (settings.device, settings.ranks, settings.seed, settings.points.tokens) == ("cpu", 4, 3, (8,))
    assert (config.getoption("--device"), config.getoption("ranks")) == (["none", "Pixel"], "high")
    config.stash[SETTINGS] = settings
    told = "\n".join(pytest_report_header(config))
    assert "--device is another plugin's: ours is --blockshock-device" in told
    assert "--seed is" not in told


def test_every_option_has_a_name_of_its_own_too(resolve: Resolve) -> None:
    assert resolve("--blockshock-N=64", "--blockshock-warm-l2", "--blockshock-rank-timeout=5") == resolve(
        "--N=64", "--warm-l2", "--rank-timeout=5"
    )


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--dtype", "fp32,bf16,fp32"], {"dtypes": ("fp32", "bf16")}),
        (["--dtype", "all"], {"dtypes": ("bf16", "fp16", "fp32")}),
        (["--methods", "block_shock, dense_single"], {"methods": ("block_shock", "dense_single")}),
        (["--methods", "all"], {}),
        (["--kernels", "reference,cusparselt:search=no"], {"kernel": ("reference", "cusparselt:search=no")}),
        (["--masks", "1010,random"], {"mask": ("1010", "random")}),
        (["--optimizers", "momentum,adamw:lr=0.1"], {"optimizers": ("momentum", "adamw:lr=0.1")}),
        (["--storages", "compressed", "--recompress-every", "10"], {"storage": ("compressed",)}),
        (
            ["--recompress-every", "1,10,never"],
            {"storage": ("compressed", "masked", "masked:every=10", "masked:every=0")},
        ),
        (["--storages", "masked:every=5"], {"storage": ("masked:every=5",)}),
        (["--masks", "all"], {"mask": MASKS.names()}),
        (["--workloads", "all"], {"workloads": WORKLOADS.names()}),
        (["--workloads", "gaussian:std=0.5:mean=1"], {"workloads": ("gaussian:std=0.5:mean=1",)}),
        (["--no-search"], {"kernel": ("auto:search=no", "gathered")}),
        (["--no-search", "--kernels=reference,cusparselt"], {"kernel": ("reference", "cusparselt:search=no")}),
        (["--timing", "none"], {"timing": "none"}),
        (["--rounds=3", "--warmup-rounds=0"], {"rounds": 3, "warmup": 0}),
        (["--seed=7", "--warm-l2", "--keep-full-weight"], {"seed": 7, "flush": False, "keep_full_weight": True}),
        (["--profile"], {"profile": True}),
        (["--networks", "vit_b:blocks=2,minilm"], {"networks": ("vit_b:blocks=2", "minilm")}),
        (["--where", "all", "--batches", "1,8"], {"where": ("blocks", "mlp"), "batches": (1, 8)}),
        (["--tasks", "digits", "--steps", "7"], {"tasks": ("digits",), "steps": 7}),
        (["--ranks=4", "--cover=grid", "--rank-timeout=5"], {"ranks": 4, "cover": "grid", "rank_timeout": 5}),
    ],
    ids=" ".join,
)
def test_options_resolve(arguments: list[str], changed: dict[str, Any], resolve: Resolve) -> None:
    axes = {axis: changed.get(axis, specs) for axis, specs in CPU_DEFAULTS.axes.items()}
    others = {name: value for name, value in changed.items() if name not in axes}
    assert replace(resolve(*arguments), asked=()) == replace(CPU_DEFAULTS, axes=axes, **others)


@pytest.mark.parametrize(
    ("arguments", "sizes", "tokens"),
    [
        (["--N", "64, 128x256,256×64", "--B", "1,7,1"], ((64, 64), (128, 256), (256, 64)), (1, 7)),
        (["--N", "64,64x64,64", "--B", "8"], ((64, 64),), (8,)),
        (["--sweep", "B", "--N", "64"], ((64, 64),), (4, 16, 64)),
    ],
)
def test_sizes_that_are_asked_for_are_those_of_training_too(
    arguments: list[str], sizes: tuple[tuple[int, int], ...], tokens: tuple[int, ...], resolve: Resolve
) -> None:
    asked = Points(sizes, tokens)
    assert replace(resolve(*arguments), asked=()) == replace(CPU_DEFAULTS, points=asked, training_points=asked)
    assert resolve("--B", "8").training_points == Points(((256, 256),), (8,))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "--methods=dense_single --kernels=gathered",
            "--kernels changes nothing: none of --methods picks a kernel, as ",
        ),
        ("--methods=dense_single,block_shock --kernels=gathered", None),
        ("--methods=pruned_dense --masks=tile", "as block_shock, masked_split_dense do"),
        (
            "--methods=dense_tp_row --storages=all --recompress-every=3",
            "--storages and --recompress-every change nothing",
        ),
        ("--methods=dense_single --no-search", "--no-search changes nothing"),
        ("--methods=dense_single", None),
        ("--kernels=gathered", None),
    ],
)
def test_the_header_names_options_that_no_method_has(
    arguments: str, said: str | None, pytester: pytest.Pytester
) -> None:
    config = pytester.parseconfig("-p", "blockshock.plugin", *arguments.split())
    config.stash[SETTINGS] = resolve_settings(config)
    told = [line for line in pytest_report_header(config) if " nothing: " in line]
    assert len(told) == (said is not None)
    assert said is None or said in told[0]


def test_the_docs_list_every_option_of_the_suite_and_no_other(pytestconfig: pytest.Config) -> None:
    groups = [group for group in pytestconfig._parser._groups if group.name.startswith("blockshock")]
    names = {name for group in groups for option in group.options for name in option.names()}
    about_pytest = (ROOT / "docs" / "options.md").read_text().partition("## python -m")[0]
    listed = re.findall(r"^\| `(--[\w-]+)", about_pytest, re.MULTILINE)
    assert len(groups) == 2, "ours, and those of the suite's own tests"
    assert sorted(listed) == sorted({name.replace("--blockshock-", "--") for name in names})


def test_all_kernels_are_those_of_the_device(resolve: Resolve) -> None:
    assert resolve("--kernels=all").axes["kernel"] == tuple(
        name for name in KERNELS.names() if "cpu" in KERNELS.get(name).device_types
    )


WRONG = [
    ("--N=abc", ["--N takes N or N×K, as in 4096 or 8192x14336", "'abc'"]),
    ("--N=64x", ["'64x'"]),
    ("--N=1e3", ["'1e3'"]),
    ("--N=0", ["--N 0", "must be positive"]),
    ("--N=-64", ["--N -64", "must be positive"]),
    ("--N=64x-64", ["--N 64x-64", "must be positive"]),
    ("--N=64,66", ["--N 66", "K must be a multiple of 4", "the nearest are 64 and 68"]),
    ("--N=64x50", ["--N 64x50", "the nearest are 48 and 52"]),
    ("--N=,", ["--N is empty"]),
    ("--N=", ["--N is empty"]),
    ("--B=0", ["--B must be at least 1, got 0"]),
    ("--B=-4", ["--B must be at least 1, got -4"]),
    ("--B=4,x", ["--B takes whole numbers, got 'x'"]),
    ("--B=", ["--B is empty"]),
    ("--B=513 --workloads=recorded", ["--B 513", "recorded has 512"]),
    ("--dtype=float16", ["--dtype: no dtype is named 'float16'. Did you mean 'fp16'?", "Choices: bf16, fp16, fp32"]),
    ("--dtype=int8", ["'int8'. Choices: bf16, fp16, fp32"]),
    ("--dtype=", ["--dtype is empty. Choices: all, bf16, fp16, fp32"]),
    ("--methods=block_shok", ["--methods", "'block_shok'. Did you mean 'block_shock'?", "Choices: dense_single, "]),
    ("--methods=dense_single:x=1", ["--methods", "'dense_single:x=1'", "not 'x'"]),
    ("--methods=,", ["--methods is empty. Choices: all, dense_single, "]),
    ("--kernels=gatherd", ["--kernels", "'gatherd'. Did you mean 'gathered'?", "Choices: auto, "]),
    ("--kernels=cusparselt:serach=no", ["--kernels", "takes search, fused, not 'serach'"]),
    ("--kernels=", ["--kernels is empty. Choices: all, auto, "]),
    ("--masks=tile_magnitud", ["--masks", "'tile_magnitud'. Did you mean 'tile_magnitude'?", "Choices: 1100, "]),
    ("--masks=tile:rows=2", ["--masks", "the mask 'tile' takes no parameter, not 'rows'"]),
    ("--masks=", ["--masks is empty. Choices: all, 1100, "]),
    ("--workloads=gausian", ["--workloads", "'gausian'. Did you mean 'gaussian'?", "Choices: gaussian, "]),
    ("--workloads=gaussian:sdt=1", ["--workloads", "takes mean, std, not 'sdt'"]),
    ("--workloads=gaussian:std", ["--workloads", "'std' is not of the form name=value"]),
    ("--workloads=transformer_mlp:act=tanh", ["--workloads", "act is one of gelu, ", "got 'tanh'"]),
    ("--workloads=", ["--workloads is empty. Choices: all, gaussian, "]),
    ("--timing=cuda_graph", ["--timing cuda_graph needs --device cuda", "choose sync or none"]),
    ("--timing=cuda_events", ["--timing cuda_events needs --device cuda"]),
    ("--timing=wall", ["--timing", "'wall'", "cuda_graph"]),
    ("--device=cuda", ["--ranks 2 needs 2 CUDA GPUs, this machine has 0", "choose --device cpu"]),
    ("--device=gpu", ["--device", "'gpu'", "auto", "cpu", "cuda"]),
    ("--storages=masked:every=-1", ["--storages", "every=-1", "0 for never"]),
    ("--ranks=0", ["--ranks must be at least 1, got 0"]),
    ("--ranks=two", ["--ranks", "'two'"]),
    ("--rounds=0", ["--rounds must be at least 1, got 0"]),
    ("--warmup-rounds=-1", ["--warmup-rounds must be at least 0, got -1"]),
    ("--seed=-1", ["--seed must be at least 0, got -1"]),
    ("--seed=1.5", ["--seed", "'1.5'"]),
    ("--cover=triples", ["--cover", "'triples'", "grid", "pairs", "product"]),
    ("--rank-timeout=0", ["--rank-timeout must be at least 1, got 0"]),
    ("--rank-timeout=inf", ["--rank-timeout", "'inf'"]),
    ("--networks minilmm", ["--networks:", "Did you mean 'minilm'?"]),
    ("--networks vit_b:width=65", ["--networks:", "width must be a multiple of 64"]),
    ("--where attention", ["--where:", "Choices: blocks, mlp"]),
    ("--batches 0", ["--batches must be at least 1, got 0"]),
    ("--batches ,", ["--batches is empty"]),
    ("--tasks texts", ["--tasks:", "Did you mean 'text'?"]),
    ("--steps 0", ["--steps must be at least 1, got 0"]),
    ("--corpus no_such.txt", ["--corpus: no_such.txt: No such file", "tests/data/collect_text.py"]),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_values_are_usage_errors_that_name_them_and_the_choices(
    line: str, said: list[str], resolve: Resolve
) -> None:
    with pytest.raises(pytest.UsageError) as error:
        resolve(*line.split())
    message = str(error.value)
    assert [part for part in said if part not in message] == [], message


class Tuned(Method):
    """A user's method that takes a parameter."""

    def __init__(self, layer: Layer, group: Group, gain: float = 2.0) -> None:
        super().__init__(layer, group)


def test_parameters_of_a_users_method_are_checked_as_those_of_other_axes(
    resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS._entries, "tuned", Tuned)
    assert resolve("--methods=tuned,tuned:gain=3").methods == ("tuned", "tuned:gain=3")
    with pytest.raises(pytest.UsageError, match=r"--methods: .* the method 'tuned' takes gain, not 'gian'"):
        resolve("--methods=tuned:gian=3")
    with pytest.raises(pytest.UsageError, match=r"--methods: .* gain takes a number, not 'much'"):
        resolve("--methods=tuned:gain=much")


def test_a_usage_error_ends_pytest_with_status_4_and_no_traceback(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "blockshock.plugin", "--masks=magntiude", str(tmp_path)],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--masks: no mask is named 'magntiude'. Did you mean 'magnitude'?" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_an_odd_number_of_ranks_skips_what_needs_pairs_and_says_so(
    resolve: Resolve, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    settings = resolve(
        "--ranks=3", "--N=96", "--workloads=gaussian", "--methods=block_shock,masked_split_dense,dense_tp_row"
    )
    monkeypatch.setattr(case_module, "this_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: settings.ranks)
    three_ranks = cast(Any, SimpleNamespace(run=lambda function, *args: [function(*args)] * settings.ranks))
    groups = cast(Any, SimpleNamespace(of=lambda *cases: three_ranks))
    row, reasons = Row(request, settings, groups), {}
    for case in forward_grid(settings):
        try:
            row.run(str, case)
        except pytest.skip.Exception as skip:
            reasons[case.method] = str(skip)
    why = "two halves need 1 rank or an even number, got 3: try --ranks 2 or 4"
    assert reasons == {method: f"{method}: {why}" for method in ("block_shock", "masked_split_dense")}


@pytest.mark.parametrize(("arguments", "most"), [([], MOST_LOSS), (["--most-loss=0.3"], 0.3)])
def test_a_session_knows_the_most_that_a_row_may_lose(
    arguments: list[str], most: float, pytester: pytest.Pytester
) -> None:
    config = pytester.parseconfigure("-p", "blockshock.plugin", *arguments)
    assert config.stash[stash.MOST_LOSS] == most
    others = resolve_settings(pytester.parseconfig("-p", "blockshock.plugin"))
    assert resolve_settings(config) == others, "a session with another one goes on"


@pytest.mark.parametrize("text", ["-0.1", "nan", "inf", "much"])
def test_a_session_refuses_what_is_no_loss(text: str, pytester: pytest.Pytester) -> None:
    config = pytester.parseconfig("-p", "blockshock.plugin", f"--most-loss={text}")
    with pytest.raises(pytest.UsageError, match=f"--most-loss takes a number from 0 up, got '{text}'"):
        most_loss(config)
