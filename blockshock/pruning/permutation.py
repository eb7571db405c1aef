"""A permutation of the input channels under which 2:4 keeps more: which columns share a group of four decides what is
lost.

Groups are improved in rounds. In each, every group gives up one column, drawn at random, and all of these are dealt out
again where they add up to the most. That is an assignment problem, which is solved exactly, and what is to be assigned
is cheap to know: of three columns p ≥ q ≥ r and a fourth, y, a row keeps p + max(q, y), and Σ max(q, y) over the rows
is ½(Σq + Σy + ‖q − y‖₁), so that one L1 distance matrix tells of every column in every group. The start, columns dealt
out by size, and the assignment are those of Zhang et al. ("Plug-and-Play", ICLR 2024), who go once through the places
of a group; to go on, and to get out of where no round leads on, is what Pool and Yu (NeurIPS 2021) do with pairs of
groups.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from blockshock.errors import InputError
from blockshock.matrices import Piece, WeightSource, check_shape, row_blocks
from blockshock.pruning.assignment import assign
from blockshock.pruning.base import Inputs, Pruner, calibration, pruner_of

GROUPS = 128
"""Whose columns are dealt out together: an assignment takes the host longer by the square of it for each."""
WORK = 10**9
"""Elements of distances in all rounds together, where that leaves rounds enough."""
ROUNDS = 64, 2000
"""At least, at most."""
PATIENCE = 60
"""Rounds without a gain after which it goes on near by: from the best so far, the columns of a few groups shuffled."""
SHUFFLED = 4

REMEMBERED = 100
"""Permutations at most."""
_found: dict[str, torch.Tensor] = {}

SEARCH_BYTES = 13
"""An element of W at most: the scores in float32, and what is drawn of them in a round, or their sums in float64."""


def permutation_of(spec: str, source: WeightSource, inputs: Inputs | None) -> torch.Tensor | None:
    """The order of the columns, int64 (K,) on W's device, in which a pruner is to prune W; None for their own.

    The same for the same W, inputs and kind of device. Holds ``SEARCH_BYTES`` for each element of W meanwhile.

    Args:
        spec: of the pruner: with ``permute=yes`` one is searched for, by its ``scores`` of all of W.

    Raises:
        UnknownName, InputError: as of ``pruner_of`` and ``calibration``; or scores that are none.
    """
    kind, parameters, permute = pruner_of(spec)
    if not permute:
        return None
    check_shape(source.N, source.K)
    whole = Piece(source)
    x_TK = calibration(spec, whole, inputs) if kind.needs_inputs else None
    # A pruner that has no scores of its own may take long to make, and is not needed.
    pruner = Pruner(whole, x_TK) if kind.scores is Pruner.scores else kind(whole, x_TK, **parameters)
    return _remembered(_scaled(pruner, whole, spec), source.seed)


def _remembered(score_KN: torch.Tensor, seed: int) -> torch.Tensor:
    """What a search finds, which for the same scores is done once in a process: a layer is built again and again.

    Scores are the same if their sums are, of each row and each column; were they not, it would be a permutation too.
    """
    sums = [score_KN.sum(dim, dtype=torch.float64).cpu().numpy().tobytes() for dim in (0, 1)]
    rounds = _rounds(score_KN.shape[0] // 4, score_KN.shape[1])
    key = hashlib.sha256(b"".join([*sums, f"{seed} {rounds} {score_KN.device}".encode()])).hexdigest()
    if key not in _found:
        while len(_found) >= REMEMBERED:
            del _found[next(iter(_found))]
        _found[key] = search(score_KN, seed).cpu()
    return _found[key].to(score_KN.device, copy=True)


def _scaled(pruner: Pruner, piece: Piece, name: str) -> torch.Tensor:
    """The scores of a piece in float32, the largest 1; each column in a row of its own, (K, N)."""
    blocks = list(row_blocks(piece.N, piece.K * 8, block_bytes=16 << 20))
    score_KN = torch.empty(piece.K, piece.N, dtype=torch.float32, device=piece.device)

    def of(start: int, stop: int) -> torch.Tensor:
        w_RK = piece.block(start, stop)
        score_RK = pruner.scores(w_RK).double()
        if score_RK.shape != w_RK.shape or not (torch.isfinite(score_RK) & (score_RK >= 0)).all():
            raise InputError(f"pruner {name}: scores gives a finite number of at least 0 for each weight")
        return score_RK

    largest = max(of(*block).amax().item() for block in blocks)
    for start, stop in blocks:
        score_KN[:, start:stop] = (of(start, stop) / (largest or 1.0)).T
    return score_KN


def retained(score_KN: torch.Tensor, order_K: torch.Tensor) -> float:
    """Σ of the two largest scores of each four columns, in that order, of each row."""
    groups_S4 = order_K.view(-1, 4)
    first, second = _two_of_three(score_KN, groups_S4[:, :3])
    fourth = _column(score_KN, groups_S4[:, 3])
    return (first.sum(dtype=torch.float64) + torch.maximum(second, fourth).sum(dtype=torch.float64)).item()


def search(score_KN: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """An order of the columns, int64 (K,), that keeps as much of the scores as was found: never less than their own.

    Args:
        score_KN: finite, at least 0 and at most 1, float32; each column in a row of its own.
        seed: of what is drawn.
    """
    K, N = score_KN.shape
    stream = torch.Generator().manual_seed(seed)
    best_S4 = torch.arange(K).view(-1, 4)
    groups_S4, most, still = _dealt(score_KN), retained(score_KN, best_S4.flatten()), 0
    for _ in range(_rounds(K // 4, N)):
        groups_S4, gained = _exchanged(score_KN, groups_S4, stream)
        still = 0 if gained else still + 1
        if still == PATIENCE:
            best_S4, most = _better(score_KN, groups_S4, best_S4, most)
            groups_S4, still = _shuffled(best_S4, stream), 0
    best_S4, _ = _better(score_KN, groups_S4, best_S4, most)
    return best_S4.flatten().to(score_KN.device)


def _rounds(groups: int, N: int) -> int:
    """As many as the work allows, and fewer for few groups: of one there is nothing to search."""
    least, most = ROUNDS
    return 0 if groups == 1 else min(max(WORK // (groups * min(groups, GROUPS) * N), least), most, 128 * groups)


def _better(
    score_KN: torch.Tensor, groups_S4: torch.Tensor, best_S4: torch.Tensor, most: float
) -> tuple[torch.Tensor, float]:
    found = retained(score_KN, groups_S4.flatten())
    return (groups_S4, found) if found > most else (best_S4, most)


def _dealt(score_KN: torch.Tensor) -> torch.Tensor:
    """Groups of columns of each quarter by size: every second quarter is dealt backwards."""
    quarters_4S = score_KN.sum(1, dtype=torch.float64).argsort(descending=True, stable=True).cpu().view(4, -1)
    return torch.stack([part if index % 2 == 0 else part.flip(0) for index, part in enumerate(quarters_4S)], dim=1)


def _shuffled(groups_S4: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """The same, but for the columns of a few groups."""
    groups_S4 = groups_S4[torch.randperm(len(groups_S4), generator=stream)]
    some = groups_S4[:SHUFFLED].flatten()
    return torch.cat([some[torch.randperm(len(some), generator=stream)].view(-1, 4), groups_S4[SHUFFLED:]])


def _exchanged(score_KN: torch.Tensor, groups_S4: torch.Tensor, stream: torch.Generator) -> tuple[torch.Tensor, bool]:
    """The groups after a round, and whether they keep more."""
    groups_S4 = groups_S4[torch.randperm(len(groups_S4), generator=stream)]
    groups_S4 = groups_S4.gather(1, torch.rand(groups_S4.shape, generator=stream).argsort(dim=1))
    parts = -(-len(groups_S4) // GROUPS)
    size = len(groups_S4) // parts
    three_S3, fourth_S = groups_S4[: parts * size, :3], groups_S4[: parts * size, 3]
    value_PSS = _values(score_KN, three_S3, fourth_S, parts).cpu().double().numpy()
    to_PS = np.stack([assign(value_SS) for value_SS in value_PSS])
    before = value_PSS.diagonal(axis1=1, axis2=2).sum()
    after = np.take_along_axis(value_PSS, to_PS[:, :, None], axis=2).sum()
    if after - before <= 1e-6 * before:  # no more than roundings of float32 may come to
        return groups_S4, False
    to_S = torch.from_numpy((to_PS + size * np.arange(parts)[:, None]).flatten())
    dealt_S4 = torch.cat([three_S3, fourth_S[to_S, None]], dim=1)
    return torch.cat([dealt_S4, groups_S4[parts * size :]]), True


def _values(score_KN: torch.Tensor, three_S3: torch.Tensor, fourth_S: torch.Tensor, parts: int) -> torch.Tensor:
    """What three columns of each group of a part would keep with the fourth of each other, (P, S/P, S/P)."""
    first, second = _two_of_three(score_KN, three_S3)
    fourth = _column(score_KN, fourth_S)
    second_PSN, fourth_PSN = (side.unflatten(0, (parts, -1)) for side in (second, fourth))
    sums_PSS = second_PSN.sum(-1)[:, :, None] + fourth_PSN.sum(-1)[:, None]
    return first.sum(1).view(parts, -1, 1) + (sums_PSS + torch.cdist(second_PSN, fourth_PSN, p=1)) / 2


def _two_of_three(score_KN: torch.Tensor, three_S3: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest and the second of three columns, (S, N)."""
    one, two, three = (_column(score_KN, index_S) for index_S in three_S3.unbind(1))
    larger, smaller = torch.maximum(one, two), torch.minimum(one, two)
    return torch.maximum(larger, three), torch.maximum(smaller, torch.minimum(larger, three))


def _column(score_KN: torch.Tensor, index_S: torch.Tensor) -> torch.Tensor:
    return score_KN.index_select(0, index_S.to(score_KN.device))
