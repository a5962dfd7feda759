"""`python -m tests.bench.launch COMMAND...`: what one command takes, as a JSON line after its own words.

A process of its own, and a small one: the system counts what the starter of a command holds as the peak of
the command. Needs the standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time

_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss


def main() -> int:
    command = sys.argv[1:]
    began = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    found = {
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "mb": usage.ru_maxrss * _UNIT / 1e6,
    }
    print(json.dumps(found), flush=True)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
