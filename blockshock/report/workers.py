"""The processes that draw. They are forked from a server that has imported what draws, and that starts early."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

DRAWS = "blockshock.report.render"


def start_server() -> ForkServerContext:
    """Start the server, unless it runs: it imports in another process while this one reads the runs.

    A fork of this process would do without it, but could inherit the locked locks of threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([DRAWS])
    forkserver.ensure_running()
    return context
