"""A group of rank processes that lasts for many calls: spawned here, or those that torchrun started.

    with spawn(2, device="cuda") as ranks:
        per_rank = ranks.run(function, *args, **kwargs)

Every rank has the default ``torch.distributed`` process group up: NCCL on ``cuda``, where the i-th rank of a machine
owns its GPU i; gloo on ``cpu``. A failure of any rank ends the whole group, and the next call starts a new one. Nothing
here knows what the ranks are for.
"""

from blockshock.ranks.constants import DEVICES, START_SECONDS
from blockshock.ranks.errors import RankError, RankLost, RankTimeout
from blockshock.ranks.group import Ranks
from blockshock.ranks.member import end_with_parent_thread
from blockshock.ranks.place import Place
from blockshock.ranks.start import adopt, spawn
