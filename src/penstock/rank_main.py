"""A further rank of a model: `python -m penstock.rank_main PARENT`, told on standard input what to do.

It ends with its input, or with its parent: a share of a model serves nobody.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

import msgspec

from penstock.core.errors import UserError
from penstock.engine_main import NeverWaiting, end_with_parent
from penstock.launch import build_rank
from penstock.options import EngineOptions
from penstock.runtime.follow import FirstRankGone, Leader

log = logging.getLogger("penstock.rank")


def main() -> int:
    """Follow until the first rank is gone. Exit codes: 0 it is, 1 a broken step, 2 options or model, 3 the parent."""
    end_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front end decides what a signal means
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    to_first = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whoever prints must not write between our messages
    # the first rank says what is the same for all
    logging.basicConfig(level=logging.WARNING, handlers=[NeverWaiting()])
    try:
        leader = Leader(sys.stdin.buffer, to_first)
    except FirstRankGone:
        return 0
    try:
        code = _follow(leader)
    except (FirstRankGone, BrokenPipeError):
        log.debug("the first rank ended while this one was built")
        code = 0
    leader.clear()
    if code:
        return code
    os._exit(0)  # a step may be under way that waits for a rank which is gone


def _follow(leader: Leader) -> int:
    """Until the first rank is gone, or with what it is told about a start that failed."""
    try:
        executor = build_rank(msgspec.json.decode(leader.options, type=EngineOptions), leader)
    except (FirstRankGone, BrokenPipeError):
        raise
    except UserError as wrong:
        leader.fail(wrong, is_user_error=True)
        return 2
    except Exception as broken:
        log.exception("rank %d cannot start", leader.shard.rank)
        leader.fail(broken, is_user_error=False)
        return 1
    leader.follow(executor)
    return 0


if __name__ == "__main__":
    sys.exit(main())
