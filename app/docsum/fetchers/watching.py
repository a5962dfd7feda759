"""What changes in a folder, as the system tells it (inotify, FSEvents)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from docsum.following import WatchFailed

_AT_MOST = 500  # milliseconds without a word


async def watch(folder: str) -> AsyncIterator[Collection[str]]:
    """Implements `following.Watch`."""
    from watchfiles import awatch

    changes = awatch(
        folder,
        watch_filter=None,
        debounce=200,
        rust_timeout=_AT_MOST,
        yield_on_timeout=True,
        ignore_permission_denied=True,
    )
    try:
        async for found in changes:
            yield {path for _, path in found}
    except FileNotFoundError as error:
        raise WatchFailed(f"{folder} is not there.") from error
    except (OSError, RuntimeError) as error:  # the library has no errors of its own
        raise WatchFailed(
            f"{folder} cannot be watched ({error}): on Linux raise fs.inotify.max_user_watches."
        ) from error
    raise WatchFailed(f"{folder} is not watched any more.")
