"""What goes wrong with ranks."""


class RankError(RuntimeError):
    """A rank died or failed; as the cause of another exception, it holds the rank's number and its traceback."""


class RankTimeout(RankError):
    """Some rank did not answer in time; the message holds the Python stacks of every rank that could be asked."""


class RankLost(RankError):
    """A rank of another process, or the store that connects the ranks, is gone: the group cannot be built again."""
