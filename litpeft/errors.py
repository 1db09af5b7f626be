"""Errors that are the user's to mend: one sentence that names the option or file and says what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM}


class UserError(Exception):
    """Something that the user gave cannot be used.

    The command line prints the message as one line without a traceback and exits with code 2. The message names the
    option or the file, says what is wrong with it, and what to do.
    """


def one_line(sentence: str, most: int = 900) -> str:
    """A sentence as it can be shown: in one line, letters that move the cursor or cannot be seen by their codes, cut.

    What a sentence quotes may be anything: a megabyte, colours for a terminal, text that runs from right to left.
    """
    sentence = re.sub(r"\s*[\r\n]+\s*", " ", sentence.strip())
    if len(sentence) > most:
        sentence = f"{sentence[: 2 * most // 3]} ... {sentence[-most // 3 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Within, what the system says against writing a file becomes a sentence with the `option` that named it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror or error}.") from error


def of_the_system(error: BaseException | None) -> OSError | None:
    """What the system said against reading or writing: an error itself, or one of the disk that it was raised from."""
    first = error
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None and (error is first or error.errno in DISK):
            return error
        error = error.__cause__ or error.__context__
    return None


def first_sentence(error: BaseException) -> str:
    """Of what a library says at length, the beginning, on one line and without its full stop."""
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")
