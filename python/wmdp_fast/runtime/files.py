"""Files that appear whole or not at all: written under another name beside their place, and renamed when on the disk.

A full disk, a kill or Ctrl-C in the middle leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# What Linux's file systems allow.
_LONGEST_NAME = 255


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file that is the old one until the new one is complete and safe on disk.

    A symbolic link is followed, so that it still is one afterwards, and permissions of an old file are kept. What is no
    regular file (`/dev/stdout`, a pipe) cannot be replaced and is written to.

    Args:
        path: The file; its folder is made if it is missing.
        content: Text is encoded as UTF-8; what cannot be (lone surrogates, as Python has them in file names that are no
            UTF-8) becomes a backslash escape.

    Raises:
        OSError: It cannot be written; names `path`, and nothing is left beside it.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with replacing(path) as fresh, fresh.open("wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the path to write to; what stands there at the end takes the place of `path`.

    If the block raises, what it wrote is removed and `path` is as it was. For code that writes files itself; the rules
    are those of `write_whole`.

    Args:
        path: The file to be replaced; its folder is made if it is missing.

    Raises:
        OSError: It cannot be written; names `path`, also where the error of a write did not (a full disk).
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Of a long name a part, for a name has at most 255 bytes; a thread's own, for two may write the same file.
    fresh = target.with_name(f".{target.name[:40]}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield fresh
        if target.is_file():
            shutil.copymode(target, fresh)
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(fresh)):
            # A failed write does not know its file's name.
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def check_folder(path: str | os.PathLike[str]) -> None:
    """Makes sure that a folder can be made or written to, before hours are spent on what belongs into it.

    Raises:
        FileExistsError: It, or a folder that it should be in, is a symbolic link that leads nowhere.
        NotADirectoryError: It, or a folder that it should be in, is a file.
        PermissionError: It, or the folder that it should be in, cannot be written to.
        OSError: Nothing can be made there for another reason: no space, a file system that holds no files, a name that
            is too long.
    """
    folder = Path(path)
    longest = max((len(os.fsencode(part)) for part in folder.parts), default=0)
    if longest > _LONGEST_NAME:
        why = f"a name in it has {longest} bytes, more than the {_LONGEST_NAME} that a file's name may have"
        raise OSError(errno.ENAMETOOLONG, why, str(folder))
    for home in (folder, *folder.absolute().parents):
        if home.exists():
            break
        if home.is_symlink():
            raise FileExistsError(
                f"{home} is a link to {home.readlink()}, which does not exist; make that folder, or remove the link"
            )
    if not home.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder to write into", str(home))
    if not os.access(home, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot be written to", str(home))
    try:
        # Root may do everything, as far as permissions say, and a full disk has them too.
        with tempfile.TemporaryDirectory(prefix=".wmdp-fast-", dir=home):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot be written to ({error.strerror})", str(home)) from error


def check_file(path: str | os.PathLike[str]) -> None:
    """Makes sure that `write_whole` can write a file, before hours are spent on what belongs into it.

    Raises:
        IsADirectoryError: It is a folder.
        FileExistsError, NotADirectoryError: As `check_folder`, of the folder that it should be in.
        PermissionError: That folder, or the pipe or device that it is, cannot be written to.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file to write", str(path))
    if not target.exists() or target.is_file():
        check_folder(target.parent)
    elif not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written to", str(path))


def explain_full_disk(error: OSError, target: Path) -> OSError:
    """The error in words that help, if it came from a lack of space; else as it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        # A failed write does not know its file's name.
        named = error.filename is not None or error.errno is None
        return error if named else OSError(error.errno, error.strerror or str(error), str(target))
    free = shutil.disk_usage(target.parent).free / 1e9
    return OSError(
        error.errno,
        f"no space to write {target} ({os.strerror(error.errno)}, {free:.1f} GB free): what was there before is"
        " unchanged; make room, then run again with --resume if the run had saved a state",
    )
