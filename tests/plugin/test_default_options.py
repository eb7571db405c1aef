"""What is measured where nothing is asked for: by the GPUs that there are, and by torchrun's ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from resolving import CPU_DEFAULTS, GPU_DEFAULTS, Resolve, no_gpus, resolve, say_gpus

from blockshock.methods import METHODS
from blockshock.ranks.place import Place

pytest_plugins = ["pytester"]
__all__ = ["no_gpus", "resolve"]


def test_defaults_fit_a_cpu(resolve: Resolve) -> None:
    assert resolve() == CPU_DEFAULTS
    assert resolve().marker is None


def test_defaults_fit_two_gpus(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    say_gpus(monkeypatch, 2)
    assert resolve() == GPU_DEFAULTS
    assert resolve().marker == "gpu2"
    assert resolve("--device=cpu") == CPU_DEFAULTS


def test_defaults_fit_one_gpu(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    say_gpus(monkeypatch, 1)
    methods = ("dense_single", "block_shock", "masked_split_dense", "torch_semi_structured", "pruned", "pruned_dense")
    methods += ("block_sparse", "block_sparse_dense", "recipe")
    alone = replace(GPU_DEFAULTS, ranks=1, methods=methods)
    assert resolve() == resolve("--device=cuda") == alone
    assert resolve().marker == "gpu"
    asked = replace(alone, methods=METHODS.names(), asked=("methods",))
    assert resolve("--methods=all") == asked, "they may run"
    assert resolve("--methods=dense_tp_row").methods == ("dense_tp_row",)
    assert resolve("--device=cpu") == CPU_DEFAULTS


@pytest.mark.parametrize(
    ("gpus", "ranks", "device"),
    [(0, 1, "cpu"), (1, 1, "cuda"), (1, 2, "cpu"), (2, 1, "cuda"), (2, 2, "cuda"), (2, 4, "cpu"), (8, 4, "cuda")],
)
def test_auto_takes_gpus_where_there_is_one_for_each_rank(
    gpus: int, ranks: int, device: str, resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    say_gpus(monkeypatch, gpus)
    settings = resolve(f"--ranks={ranks}")
    assert (settings.device, settings.ranks) == (device, ranks)
    assert settings.marker == (None if device == "cpu" else "gpu" if ranks == 1 else "gpu2")


@pytest.mark.parametrize(("gpus", "nodes", "device"), [(0, 1, "cpu"), (1, 1, "cpu"), (2, 1, "cuda"), (1, 2, "cuda")])
def test_under_torchrun_gpus_are_those_of_one_machine(
    gpus: int, nodes: int, device: str, resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    say_gpus(monkeypatch, gpus)
    place = Place(rank=0, size=2, local_rank=0, local_size=2 // nodes, nodes=nodes)
    monkeypatch.setattr(Place, "here", lambda: place)
    assert (resolve().device, resolve().ranks) == (device, 2)


def test_more_ranks_than_gpus_says_how_many_there_are(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    say_gpus(monkeypatch, 2)
    wanted = "--ranks 4 needs 4 CUDA GPUs, this machine has 2: choose --ranks 2 or fewer, or --device cpu"
    with pytest.raises(pytest.UsageError, match=wanted):
        resolve("--device=cuda", "--ranks=4")
