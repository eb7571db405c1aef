"""cuSPARSELt's searched algorithms: checked before use, remembered, one for many lengths; one GPU a thread."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cusparselt import fake_cusparselt
from torch import nn

from blockshock import BlockShockLinear
from blockshock.errors import KernelUnavailable
from blockshock.kernels import cusparselt, cusparselt_helper, cusparselt_search, cusparselt_thread
from blockshock.kernels.cusparselt import PackedCusparselt
from blockshock.kernels.cusparselt_helper import Searcher
from blockshock.kernels.cusparselt_search import DEFAULT, Found, Request, Setting, checked
from blockshock.kernels.cusparselt_thread import claim_thread, thread_obstacle
from blockshock.kernels.cusparselt_trial import Trial
from blockshock.kernels.octaves import bucket_of
from blockshock.machine import cache_folder
from blockshock.machine.collectives import Alone
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import GeneratedWeights

__all__ = ["fake_cusparselt"]

CPU = torch.device("cpu")
SEVEN, TWENTY = (7, 2, 0), (20, 1, -1)
FAULTS = {
    "a flipped sign": lambda y, x, w: y.index_fill(1, torch.tensor([3]), 0) - y * (torch.arange(y.shape[1]) == 3),
    "two columns swapped": lambda y, x, w: y[:, [1, 0, *range(2, y.shape[1])]],
    "one element": lambda y, x, w: y + (torch.arange(y.numel()) == 70).view(y.shape) * y.std(),
    "one element, by little": lambda y, x, w: y + (torch.arange(y.numel()) == 70).view(y.shape) * y.std() / 5,
    "one term of each sum": lambda y, x, w: (y.float() - x[: len(y), :1].float() @ w.float()[:, :1].T).to(y.dtype),
    "the last row": lambda y, x, w: torch.cat([y[:-1], torch.zeros_like(y[-1:])]),
    "nan": lambda y, x, w: y.where(y != y.max(), float("nan")),
    "half of K": lambda y, x, w: y / 2,
}


def _trial(dtype: torch.dtype = torch.bfloat16, bias: bool = True) -> Trial:
    return Trial(64, 256, 32, dtype, bias, CPU)


def _right(trial: Trial, x_BK: torch.Tensor, split: int = 1) -> torch.Tensor:
    """A product whose sum over K is split, each part rounded."""
    parts = zip(x_BK.double().chunk(split, 1), trial.w_NK.double().chunk(split, 1), strict=True)
    y_BN = sum(((x @ w.T).to(trial.w_NK.dtype) for x, w in parts), torch.zeros((), dtype=trial.w_NK.dtype))
    assert isinstance(y_BN, torch.Tensor)
    return y_BN if trial.bias is None else y_BN + trial.bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_right_product_passes_split_or_not(dtype: torch.dtype, bias: bool) -> None:
    trial = _trial(dtype, bias)
    for split in (1, 2, 4):
        assert trial.is_right(_right(trial, trial.x_BK, split))
        assert trial.is_right(_right(trial, trial.x_BK[:8], split))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_candidate_is_turned_away(fault: str) -> None:
    trial = _trial()

    def multiply(x_BK: torch.Tensor, setting: Setting) -> torch.Tensor:
        y_BN = _right(trial, x_BK)
        return FAULTS[fault](y_BN, x_BK, trial.w_NK) if setting == TWENTY else y_BN

    found = checked(TWENTY, trial, 24, multiply)
    assert found == Found(DEFAULT, (TWENTY,))
    assert found.name == "default algorithm (turned away: algorithm 20, split_k 1, split_k_mode -1)"
    assert checked(SEVEN, trial, 24, multiply) == Found(SEVEN)


@pytest.mark.parametrize("wrong_at", [24, 32])
def test_a_candidate_must_be_right_at_both_ends_of_its_range(wrong_at: int) -> None:
    trial = _trial()

    def multiply(x_BK: torch.Tensor, setting: Setting) -> torch.Tensor:
        return _right(trial, x_BK) * (2 if setting == SEVEN and len(x_BK) == wrong_at else 1)

    assert checked(SEVEN, trial, 24, multiply) == Found(DEFAULT, (SEVEN,))


def test_a_wrong_default_is_noticed() -> None:
    trial = _trial()

    def multiply(x_BK: torch.Tensor, setting: Setting) -> torch.Tensor:
        return -_right(trial, x_BK) if setting == DEFAULT else _right(trial, x_BK)

    assert checked(SEVEN, trial, 32, multiply) == Found(SEVEN, (DEFAULT,))
    assert checked(DEFAULT, trial, 32, multiply) == Found(None, (DEFAULT,))


class FakeSearcher:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: Found) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    def search(self, request: Request) -> Found:
        self.asked.append(request)
        return self.answer


@pytest.fixture
def searcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_cusparselt: Any) -> FakeSearcher:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cusparselt, "library_key", lambda device: "a GPU")
    monkeypatch.setattr(cusparselt, "identity", lambda device: "GPU-1")
    found = FakeSearcher(Found(SEVEN, (TWENTY,)))
    monkeypatch.setattr(cusparselt, "_searcher", found)
    _forget(monkeypatch)
    return found


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process would begin."""
    fits = cusparselt._algorithms._fits
    monkeypatch.setattr(cusparselt, "_algorithms", cusparselt.AlgorithmCache("cusparselt-checked", fits))


def _packed(bias: bool = False) -> PackedCusparselt:
    source = GeneratedWeights(32, 48, torch.bfloat16, CPU, with_bias=bias)
    half = Piece(source, slice(0, 48), build_mask("random", source))
    packed = cusparselt.Cusparselt().pack(half, source.bias)
    assert isinstance(packed, PackedCusparselt)
    return packed


def _x(tokens: int) -> torch.Tensor:
    return torch.ones(tokens, 48, dtype=torch.bfloat16)


def test_what_was_turned_away_is_remembered_and_named(searcher: FakeSearcher, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "algorithm 7, split_k 2, split_k_mode 0 (turned away: algorithm 20, split_k 1, split_k_mode -1)"
    for _ in range(2):
        packed = _packed()
        packed(_x(16))
        assert packed.algorithm == name
        _forget(monkeypatch)
    assert len(searcher.asked) == 1
    (stored,) = json.loads((cache_folder() / "cusparselt-checked.json").read_text()).values()
    assert stored == {"setting": [7, 2, 0], "turned_away": [[20, 1, -1]], "failed": ""}


def test_both_directions_name_what_they_run(searcher: FakeSearcher) -> None:
    linear = nn.Linear(48, 32).bfloat16()
    layer = BlockShockLinear(linear, Alone(), kernel="cusparselt", mask="tile")
    layer(_x(16).requires_grad_()).sum().backward()
    forward, backward = layer.layer.algorithm.split("; ")[0].split(", backward ")
    assert forward == backward == f"cusparselt {searcher.answer.name}"


@pytest.mark.parametrize(
    "old",
    [
        [20, 1, -1],
        {"setting": [20, 1]},
        {"setting": [20, 1, "1"], "turned_away": []},
        {"setting": [0, 1, -1], "turned_away": []},
        None,
    ],
)
def test_what_was_remembered_without_a_check_is_searched_again(
    old: Any, searcher: FakeSearcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    _packed()(_x(16))
    path = cache_folder() / "cusparselt-checked.json"
    key = next(iter(json.loads(path.read_text())))
    path.write_text(json.dumps({key: old}))
    (cache_folder() / "cusparselt.json").write_text(json.dumps({key: [20, 1, -1]}))
    _forget(monkeypatch)
    packed = _packed()
    packed(_x(16))
    assert packed.algorithm.startswith("algorithm 7")
    assert len(searcher.asked) == 2


def test_lengths_of_one_octave_share_one_search(searcher: FakeSearcher) -> None:
    packed = _packed(bias=True)
    for tokens in range(1, 70):
        packed(_x(tokens))
    ranges = [(request.least, request.tokens) for request in searcher.asked]
    assert ranges == [(8, 8), (16, 16), (24, 32), (40, 64), (72, 128)]
    assert searcher.asked[0] == Request(32, 48, 8, 8, "bfloat16", True, "GPU-1")
    assert {bucket_of(tokens) for tokens in (16, 64, 256, 1024, 4096)} == {16, 64, 256, 1024, 4096}
    assert bucket_of(2**40) == 2**40


def test_where_nothing_is_right_nothing_is_multiplied(searcher: FakeSearcher) -> None:
    searcher.answer = Found(None, (TWENTY, DEFAULT))
    with pytest.raises(KernelUnavailable, match="nothing multiplies right on this GPU: no algorithm"):
        _packed()(_x(16))


def test_a_searchers_crash_costs_the_search_of_that_dtype_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    searcher, asked, started = Searcher(), [], []

    def ask(request: str) -> str:
        asked.append(json.loads(request)["dtype"])
        return "" if "float16" in asked[-1] else '{"setting": [7, 2, 0], "turned_away": [], "failed": ""}'

    monkeypatch.setattr(searcher, "_ask", ask)
    monkeypatch.setattr(searcher, "_start", lambda: started.append(list(asked)))
    found = [searcher.search(Request(8, 8, 8, 8, dtype, False, "")) for dtype in ("float16", "float16", "half")]
    assert found == [Found(DEFAULT, failed="its process ended")] * 2 + [Found(SEVEN)]
    assert asked == ["float16", "half"]
    assert started == [["float16"]], "the next helper, before it is asked for"


HELPERS = {
    "raise RuntimeError('CUDA error: internal error when calling `cusparseLtMatmulSearch(`\\nCUDA kernel')": (
        "RuntimeError: CUDA error: internal error"
    ),
    "import os; os.kill(os.getpid(), 9)": "its process ended with status -9",
}


@pytest.mark.parametrize("program", HELPERS)
def test_what_a_searchers_helper_died_of_is_told(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = subprocess.Popen

    def start(command: list[str], **how: Any) -> Any:
        return started([*command[:2], f"import sys; sys.stdin.readline(); {program}"], **how)

    monkeypatch.setattr(cusparselt_helper.subprocess, "Popen", start)
    searcher = Searcher()
    found = searcher.search(Request(8, 8, 8, 8, "float16", False, ""))
    assert found == Found(DEFAULT, failed=HELPERS[program])
    assert searcher._helper is not None
    assert searcher._helper.poll() is None, "another one waits"
    searcher._discard()
    assert found.name == f"default algorithm (the search failed: {HELPERS[program]})"


def test_a_search_that_raises_is_told_and_the_helper_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def search(request: Request) -> Found:
        if request.least % 16:
            raise RuntimeError(f"{request.least} tokens are no multiple of 16\nsee there")
        return Found(SEVEN)

    monkeypatch.setattr(cusparselt_search, "_search", search)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    asked = [Request(32, 32, 1024, least, "int8", False, to="bfloat16") for least in (520, 528)]
    monkeypatch.setattr("sys.stdin", [json.dumps(asdict(request)) for request in asked])
    cusparselt_search.serve()
    found = [Found.read(json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert found == [Found(DEFAULT, failed="RuntimeError: 520 tokens are no multiple of 16"), Found(SEVEN)]


def test_a_thread_that_began_with_one_gpu_is_refused_another(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    monkeypatch.setattr(cusparselt_thread, "_thread", threading.local())
    assert thread_obstacle(first) is thread_obstacle(second) is None
    claim_thread(second)
    claim_thread(second)
    with pytest.raises(KernelUnavailable, match="began with cuda:1, so it cannot use cuda:0: run one process for each"):
        claim_thread(first)
    told: list[str | None] = []
    other = threading.Thread(target=lambda: told.append(thread_obstacle(first)))
    other.start()
    other.join()
    assert told == [None], "each thread has a handle of its own"
