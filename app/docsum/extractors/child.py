"""The main program of a sandbox's child: reads documents from standard input, answers on standard output."""

from __future__ import annotations

import contextlib
import ctypes
import encodings
import importlib
import json
import logging
import os
import pkgutil
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import BinaryIO

from docsum.errors import ExtractError, Scanned
from docsum.extractors import docx, html, pdf
from docsum.extractors.sandbox import ANSWER, REQUEST
from docsum.models import ExtractedText

_READERS: dict[bytes, Callable[..., ExtractedText]] = {b"P": pdf.read, b"W": docx.read, b"H": html.read}

#: So short that trafilatura asks all that it knows.
_PAGE = b"<html><body><p>A short page.</p></body></html>"

# Linux: sched.h, sys/prctl.h
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def main() -> None:
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    requests, answers = _claim_pipes()
    peak = _memory_gauge()
    try:
        _limit(memory)
        _import_libraries()
    except Exception as error:  # a lack of memory shows in many forms
        sys.exit(f"{type(error).__name__} {error} (DOCSUM_EXTRACT__MEMORY is {memory:,} bytes)")
    if sys.platform == "linux":
        leave_network()
        _die_with_parent()
    open_nothing_more()
    _send(answers, peak(), {})  # ready
    while (document := _receive(requests)) is not None:
        _allow_processor_time(seconds)
        answer = _answer(*document)
        _send(answers, peak(), answer)


def _answer(code: bytes, careful: bool, content: bytes) -> dict[str, object]:
    try:
        return asdict(_READERS[code](content, careful=careful))
    except Scanned as error:
        return {"reason": "Scanned", "message": str(error), "pages": error.pages}
    except ExtractError as error:
        return {"reason": type(error).__name__, "message": str(error)}
    except MemoryError:
        return {"reason": "MemoryError"}
    except Exception as error:  # the border of the process: the parent decides what it means
        return {"failed": type(error).__name__}


# -- the pipes -----------------------------------------------------------------------------------------------


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes for us alone: what a library prints goes to standard error, what it reads is nothing."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    logging.disable()
    return os.fdopen(requests, "rb"), os.fdopen(answers, "wb")


def _receive(requests: BinaryIO) -> tuple[bytes, bool, bytes] | None:
    """The next document; None when the parent has closed the pipe or is gone."""
    header = requests.read(REQUEST.size)
    if len(header) < REQUEST.size:
        return None
    code, careful, size = REQUEST.unpack(header)
    content = requests.read(size)
    return (code, careful, content) if len(content) == size else None


def _send(answers: BinaryIO, peak: int, answer: dict[str, object]) -> None:
    body = json.dumps(answer, ensure_ascii=False).encode()
    answers.write(ANSWER.pack(peak, len(body)) + body)
    answers.flush()


# -- the walls -----------------------------------------------------------------------------------------------


def _limit(memory: int) -> None:
    """`memory` 0: the parent watches it."""
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # no file is ever written
        (resource.RLIMIT_NPROC, 0),
    ]
    for kind, most in [*limits, *([(resource.RLIMIT_AS, memory)] if memory else [])]:
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))


def _allow_processor_time(seconds: int) -> None:
    """For the next document. The parent's clock comes first, unless the parent is frozen."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(usage.ru_utime + usage.ru_stime) + seconds + 1
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


def _memory_gauge() -> Callable[[], int]:
    """A function that says how much memory was used at most so far, bytes; it opens nothing."""
    if sys.platform == "linux":  # getrusage counts the parent's memory before exec too
        status = os.open("/proc/self/status", os.O_RDONLY)
        return lambda: 1024 * int(os.pread(status, 4096, 0).partition(b"VmHWM:")[2].split(maxsplit=1)[0])
    else:  # noqa: RET505  (mypy takes what follows a branch for this platform as unreachable)
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def open_nothing_more() -> None:
    """From here on no file and no socket is opened, on any system: each would need a descriptor.

    A document can make a library read a file only through one; those that are open, the pipes, stay.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def leave_network() -> None:
    """Into a network of our own with nothing in it, where the system lets an ordinary user do that.

    After the imports: with the old rights goes the reading of files that are not ours.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWNET)  # root in a container that refuses user namespaces
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _die_with_parent() -> None:
    """After `leave_network`: a change of rights clears it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _import_libraries() -> None:
    """All that is ever read of a library: no file can be opened later."""
    # An option of trafilatura that brings numpy: 190 ms and 40 MB for a language that we do not ask for.
    sys.modules["py3langid"] = None  # type: ignore[assignment]
    for module in ("charset_normalizer", "lxml.html", "pypdf.filters", "pypdfium2.raw"):
        importlib.import_module(module)
    for encoding in pkgutil.iter_modules(encodings.__path__):
        with contextlib.suppress(ImportError, LookupError):  # some are for Windows alone
            importlib.import_module(f"encodings.{encoding.name}")
    html.read(_PAGE)  # trafilatura has word lists in files, read on first need


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: so are we
        main()
