"""The processes that draw. They are forked from a server that has imported what draws, and that starts early."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

DRAWS = "blockshock.report.render"


def start_server() -> BaseContext:
    """Start the server, unless it runs: it imports in another process while this one reads the runs.

    A fork of this process would do without it, but could inherit the locked locks of threads. Where the server cannot
    listen (in a TMPDIR whose name is longer than a socket's may be, say) each process starts for itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([DRAWS])
    with suppress(OSError):
        forkserver.ensure_running()
        return context
    return multiprocessing.get_context("spawn")
