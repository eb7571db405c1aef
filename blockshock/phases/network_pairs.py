"""Two rows in a network, timed in pairs: of each the whole pass, and its linear layers alone in the same blocks.

A build is a copy of the compressed network, which lies elsewhere in memory; pruned and packed each is once.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import nn

from blockshock.measure import timing
from blockshock.phases.builds import PairBlocks, pairs_in_blocks, protocol_of_ranks
from blockshock.phases.network import algorithms
from blockshock.phases.networks import NetworkCase, compressed


@dataclass
class NetworkPair:
    """What one rank measured.

    Attributes:
        blocks: of a pass, ``network``, and of the layers that are meant by themselves, ``linears``.
        likeness, algorithm: of the first, as of ``NetworkResult``.
    """

    blocks: dict[str, PairBlocks]
    likeness: dict[str, float]
    algorithm: str


@torch.inference_mode()
def run(
    case: NetworkCase, rival: NetworkCase, mode: str, rounds: int, warmup: int, flush: bool, judged: bool = True
) -> NetworkPair:
    """Time the two in blocks; all ranks call it together.

    Args:
        judged: find the first's likeness too.

    Raises:
        InputError: a row can take none of the layers.
    """
    ready = [compressed(case, judged), compressed(rival, judged=False)]

    def calls(index: int, model: nn.Module) -> tuple[timing.Call, timing.Call]:
        call, met = ready[index].call, ready[index].met(model)
        return (lambda: model(*call)), (lambda: [layer(x) for layer, x in met])

    algorithm = algorithms(ready[0].met())
    stream = random.Random(f"{case.id} {rival.id} {case.seed}")
    (network, linears), _ = pairs_in_blocks(
        lambda index: copy.deepcopy(ready[index].model), calls, stream, protocol_of_ranks(mode, rounds, warmup, flush)
    )
    return NetworkPair({"network": network, "linears": linears}, ready[0].likeness, algorithm)
