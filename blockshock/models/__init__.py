"""Whole networks to try rows in, and the way to put a row into one, or into any model, block by block."""

from blockshock.models.base import NETWORKS, WHERE, Call, Network, build_network
from blockshock.models.compress import compress
from blockshock.models.likeness import likeness
from blockshock.models.tasks import TASKS, Batch, Task, build_task

NETWORKS.load_package(__name__)
TASKS.load_package(__name__)
