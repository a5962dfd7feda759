"""Whether the worker or the API of this container answers, for engines that ask: ends with 0 or 1."""

import os
import sys
import urllib.request

PORTS = (os.environ.get("DOCSUM_WORKER__PORT", "9090"), os.environ.get("DOCSUM_API__PORT", "8080"))


def answers(port: str) -> bool:
    """Whether somebody says there that the process is alive."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=3) as page:
            return bool(page.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if any(map(answers, PORTS)) else 1)
