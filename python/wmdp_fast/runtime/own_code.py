"""A class of one's own, in a file or a module that is not this package's: found, checked, and told from another.

Methods of unlearning and attacks are plugged in so.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

# How a class of one's own is named.
FORM = "FILE.py:CLASS or package.module:CLASS"

# Modules of files are called by this and a hash of path and content, which no import statement can mean.
_PREFIX = "wmdp-fast own "

# The hash of the content that a module of a file was made from, by its name.
_LOADED: dict[str, str] = {}


def load_own(spec: str, base: type, *, base_name: str, called: str, kind: str) -> tuple[type[Any], str]:
    """The class that a file or a module holds.

    A file is run once in a process, as an import would; the folder it is in does not become one to import from.

    Args:
        spec: `FILE.py:CLASS` or `package.module:CLASS`.
        base: What it must be a subclass of.
        base_name: By what name users know that.
        called: What it is, for messages: "the attack".
        kind: What others of its kind are, for messages: "attack".

    Returns:
        The class, and what messages call it.

    Raises:
        ValueError: There is no such file, module or class, it does not run, or the class is no subclass or lacks
            methods; says which, with file and line where there is one.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise ValueError(f"which class of {spec} is {called}? name it as {FORM}")
    is_file = where.endswith(".py") or os.sep in where
    module = _module_of_file(where) if is_file else _module_by_name(where)
    found = getattr(module, name, None)
    known = [key for key, value in vars(module).items() if _is_below(value, base) and value is not base]
    if found is None:
        has = f"; it has {', '.join(known)}" if known else f", nor any other {kind}"
        raise ValueError(f"{where} has no class {name}{has}")
    if not _is_below(found, base):
        raise ValueError(f"{name} of {where} is no subclass of {base_name}, as {called} must be")
    text = f"{name} of {where}"
    if inspect.isabstract(found):
        raise ValueError(f"{text} lacks {' and '.join(sorted(found.__abstractmethods__))}")
    return found, text


def own_name(found: type) -> str | None:
    """What `load_own` finds a class by, or None: in a notebook there is nothing to load it from."""
    module = sys.modules.get(found.__module__)
    file = getattr(module, "__file__", None)
    if file is None or found.__module__ == "__main__" or "." in found.__qualname__:
        return None
    where = _short(Path(file)) if found.__module__.startswith(_PREFIX) else found.__module__
    return f"{where}:{found.__qualname__}"


def loaded_files() -> list[str]:
    """The files that classes of one's own were loaded from, for `load_files` in another process."""
    return [str(sys.modules[name].__file__) for name in _LOADED if name in sys.modules]


def load_files(files: Iterable[str]) -> None:
    """Loads files that another process has loaded, so that what it has pickled is known here too.

    Raises:
        ValueError: One is gone or does not run.
    """
    for file in files:
        _module_of_file(file)


def own_code(*parts: object) -> list[dict[str, str]]:
    """The files that code of one's own is in.

    Args:
        parts: Objects whose classes are looked up: a method's settings and the method itself, which may be in another
            file; an attack.

    Returns:
        Of each file its `path`, below the working directory without that, and the `sha256` of its content; nothing for
        classes of this package, or where there is no file.
    """
    ours = Path(__file__).resolve().parents[1]
    found = {}
    for module in (type(part).__module__ for part in parts):
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None and not Path(file).resolve().is_relative_to(ours):
            digest = _LOADED.get(module) or hashlib.sha256(Path(file).read_bytes()).hexdigest()
            found[file] = {"path": _short(Path(file)), "sha256": digest}
    return list(found.values())


def _module_of_file(where: str) -> ModuleType:
    """The file as a module; one that has changed since it was last asked for is another module."""
    path = Path(where).resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {where}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    name = f"{_PREFIX}{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]} {digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    # Dataclasses look their module up there.
    sys.modules[name] = module
    try:
        # As an import would, but neither a cache of bytecode beside the file nor a path to import from comes of it.
        exec(compile(content, path, "exec"), vars(module))  # noqa: S102 (the user has named the file to be run)
        _LOADED[name] = digest
    except (Exception, SystemExit) as error:
        raise ValueError(_told(error, path, where)) from error
    finally:
        if name not in _LOADED:
            del sys.modules[name]
    return module


def _module_by_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"there is no module {name} here; a file is named by its path, as ./mine.py") from None
        raise ValueError(f"{name} cannot be imported: {error}") from error
    except Exception as error:
        raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _told(error: BaseException, path: Path, where: str) -> str:
    """What kept a file from running, with the line of it."""
    if isinstance(error, SyntaxError):
        line = f", line {error.lineno}" if error.filename == str(path) and error.lineno else ""
        return f"{where}{line}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = f", line {lines[-1]}" if lines else ""
    return f"{where}{line}: {type(error).__name__}: {error}"


def _is_below(value: Any, base: type) -> bool:
    # Not `issubclass`: the base may be a protocol, which only says yes to classes that name it.
    return isinstance(value, type) and base in value.__mro__


def _short(path: Path) -> str:
    """A path below the working directory without that; a record should not say more of a machine than it must."""
    here = Path.cwd()
    return os.fspath(path.relative_to(here) if path.is_relative_to(here) else path)
