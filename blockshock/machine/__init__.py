"""What this machine is, and how ranks agree: memory, collectives, turns at GPUs, the environment."""

from blockshock.machine import environment, memory, torch_internals
from blockshock.machine.borrowed import Borrowed
from blockshock.machine.cache_folder import cache_folder
from blockshock.machine.capturing import is_capturing
from blockshock.machine.collectives import (
    Alone,
    Group,
    aligner,
    all_gather,
    global_ranks,
    groups_of,
    of_rank_0,
    ranks_of,
    shard,
    slowest_of_ranks,
)
from blockshock.machine.combines import COMBINES, Combine, Part, Peers, Place, build_combine, combine_of, most_elements
from blockshock.machine.compiled import compiled
from blockshock.machine.conjugates import (
    ColumnShard,
    Entry,
    Exit,
    Gathered,
    KeptColumns,
    OwnFeatures,
    Replicated,
    Summed,
)
from blockshock.machine.cuda_kernel import CudaKernel
from blockshock.machine.meeting import meet, next_name
from blockshock.machine.memory import held_bytes, indexed
from blockshock.machine.streams import on_gpu
from blockshock.machine.tensor_states import all_states_of, kept_states_of, state_of, states_of
from blockshock.machine.tried_internals import INTERNALS
