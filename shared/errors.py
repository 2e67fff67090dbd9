"""The one error class for bad input, and how a program ends on it.

Every reader, loader and option check raises :class:`DataError` (or its child :class:`MissingFileError`). A program
wraps its ``main`` in :func:`exit_on_error`, so that a user sees one line that names the file and the remedy, and exit
status 2.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path


class DataError(ValueError):
    """Input that cannot be used: a file, an option or an array. The message names it and says what to do.

    Args:
        message: what was expected and what came.
        path: the file concerned, put in front of the message.
        remedy: what the user can try, put behind it.
    """

    def __init__(self, message: str, *, path: str | Path | None = None, remedy: str | None = None) -> None:
        if message.startswith("Caught ") and "Original Traceback" in message:
            # torch raises a loader process's exception again with that process's traceback as its message
            message = re.sub(r"^[\w.]+Error: ", "", message.strip().splitlines()[-1])
        self.path = None if path is None else Path(path)
        self.remedy = remedy
        parts = [f"{path}: {message}" if path is not None else message]
        if remedy:
            parts.append(remedy)
        super().__init__(" -- ".join(parts))


class MissingFileError(DataError, FileNotFoundError):
    """A file or folder that has to be there and is not."""

    def __str__(self) -> str:  # OSError would print an errno tuple
        return str(self.args[0]) if self.args else ""


def exit_on_error(main: Callable[[], int | None]) -> None:
    """Runs a program's ``main``; a :class:`DataError` becomes one line on stderr and exit status 2.

    So does what the system says about a file: a folder that cannot be written, a full disk, a file in a folder's place.
    """
    try:
        code = main()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None:  # not about a file of the user's
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(code or 0)
