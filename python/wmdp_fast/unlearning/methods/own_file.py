"""A method of one's own, in a file or a module that is not this package's: found, checked, and told from another."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wmdp_fast.unlearning.training_config import TrainingConfig

if TYPE_CHECKING:
    from wmdp_fast.unlearning.method import Method

# How a method of one's own is named.
FORM = "FILE.py:CLASS or package.module:CLASS"

# Modules of files are called by this and a hash of path and content, which no import statement can mean.
_PREFIX = "wmdp-fast method "

# The hash of the content that a module of a file was made from, by its name.
_LOADED: dict[str, str] = {}


def load_own_method(spec: str) -> type[TrainingConfig]:
    """The configuration that a file or a module holds.

    A file is run once in a process, as an import would; the folder it is in does not become one to import from.

    Args:
        spec: `FILE.py:CLASS` or `package.module:CLASS`.

    Raises:
        ValueError: There is no such file, module or class, it does not run, or is no complete `TrainingConfig`; says
            which, with file and line where there is one.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise ValueError(f"which class of {spec} is the method's configuration? name it as {FORM}")
    is_file = where.endswith(".py") or os.sep in where
    module = _module_of_file(where) if is_file else _module_by_name(where)
    found = getattr(module, name, None)
    known = [key for key, value in vars(module).items() if _is_config(value) and value is not TrainingConfig]
    if found is None:
        has = f"; it has {', '.join(known)}" if known else ", nor any other configuration of a method"
        raise ValueError(f"{where} has no class {name}{has}")
    if not _is_config(found):
        raise ValueError(f"{name} of {where} is no subclass of wmdp_fast.TrainingConfig, which a method's settings are")
    _check_complete(found, f"{name} of {where}")
    return found  # type: ignore[no-any-return]  # `_is_config` has looked


def own_name(config: type[TrainingConfig]) -> str | None:
    """What `load_own_method` finds a class by, or None: in a notebook there is nothing to load it from."""
    module = sys.modules.get(config.__module__)
    file = getattr(module, "__file__", None)
    if file is None or config.__module__ == "__main__" or "." in config.__qualname__:
        return None
    where = _short(Path(file)) if config.__module__.startswith(_PREFIX) else config.__module__
    return f"{where}:{config.__qualname__}"


def own_code(*parts: TrainingConfig | Method) -> list[dict[str, str]]:
    """The files that a method of one's own is in.

    Args:
        parts: Its settings, and the method itself, which may be in another file.

    Returns:
        Of each file its `path`, below the working directory without that, and the `sha256` of its content; nothing for
        a method of this package, or where there is no file.
    """
    ours = Path(__file__).resolve().parents[2]
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


def _is_config(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, TrainingConfig)


def _check_complete(config: type[TrainingConfig], called: str) -> None:
    """Raises ValueError if a class cannot be made an object of, or would lose its settings."""
    if inspect.isabstract(config):
        raise ValueError(f"{called} lacks {' and '.join(sorted(config.__abstractmethods__))}")
    if not getattr(config, "method_name", ""):
        raise ValueError(f"{called} lacks method_name, which records and cards call it by")
    known = {one.name for one in dataclasses.fields(config)}
    own = {name for name, kind in inspect.get_annotations(config).items() if "ClassVar" not in str(kind)}
    if own - known:
        raise ValueError(
            f"{called} has settings that are no fields ({', '.join(sorted(own - known))}): decorate it with"
            " @dataclass(frozen=True, kw_only=True)"
        )


def _short(path: Path) -> str:
    """A path below the working directory without that; a record should not say more of a machine than it must."""
    here = Path.cwd()
    return os.fspath(path.relative_to(here) if path.is_relative_to(here) else path)
