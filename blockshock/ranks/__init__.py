"""A group of rank processes that lasts for many calls: spawned here, or those that torchrun started.

    with spawn(2, device="cuda") as ranks:
        per_rank = ranks.run(function, *args, **kwargs)

Every rank has the default ``torch.distributed`` process group up: NCCL on ``cuda``, where the i-th rank of a machine
owns its GPU i; gloo on ``cpu``. A failure of any rank ends the whole group, and the next call starts a new one. Nothing
here knows what the ranks are for.
"""

from blockshock.ranks.constants import DEVICES as DEVICES
from blockshock.ranks.constants import START_SECONDS as START_SECONDS
from blockshock.ranks.errors import RankError as RankError
from blockshock.ranks.errors import RankLost as RankLost
from blockshock.ranks.errors import RankTimeout as RankTimeout
from blockshock.ranks.group import Ranks as Ranks
from blockshock.ranks.member import end_with_parent_thread as end_with_parent_thread
from blockshock.ranks.place import Place as Place
from blockshock.ranks.start import adopt as adopt
from blockshock.ranks.start import spawn as spawn
