"""A launcher for tests: `python forked.py N -m saerl_lib WORDS` runs the command in N ranks, as `torchrun` would, but imports
its packages once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback


def main() -> int:
    """0, or 1 when a rank failed; the others are ended then."""
    count, words = int(sys.argv[1]), sys.argv[4:]
    from saerl_lib import train_command  # noqa: F401 (imported before the ranks part)
    from saerl_lib.__main__ import main as run

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(count):
        process = os.fork()
        if process == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            try:
                code = run(words)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            os._exit(code)
        ranks.append(process)
    failed = False
    while ranks:
        process, status = os.wait()
        ranks.remove(process)
        if status and not failed:
            failed = True
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
