"""The command line: one file a noun. Whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main() -> None:
    """The command `docsum`."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Runs a command line to its exit code. An error is one sentence; with `--debug`, a traceback too."""
    from docsum.cli.app import application

    debug = "--debug" in arguments  # wherever it stands
    rest = [argument for argument in arguments if argument != "--debug"]
    try:
        application(rest)(rest, prog_name="docsum")
    except SystemExit as exit_:
        return int(exit_.code or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the last place: whatever it is, a person reads a sentence
        from docsum.cli.output import explain

        return explain(error, debug)
    return 0
