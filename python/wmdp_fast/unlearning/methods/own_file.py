"""A method of one's own: its configuration, from a file or a module that is not this package's."""

from __future__ import annotations

import dataclasses
import inspect

from wmdp_fast.runtime.own_code import load_own
from wmdp_fast.unlearning.training_config import TrainingConfig


def load_own_method(spec: str) -> type[TrainingConfig]:
    """The configuration that a file or a module holds.

    Args:
        spec: `FILE.py:CLASS` or `package.module:CLASS`.

    Raises:
        ValueError: There is no such class, as `load_own` has it, or it is no complete `TrainingConfig`; says what is
            wrong, with file and line where there is one.
    """
    config, text = load_own(
        spec,
        TrainingConfig,
        base_name="wmdp_fast.TrainingConfig",
        called="the method's configuration",
        kind="configuration of a method",
    )
    if not getattr(config, "method_name", ""):
        raise ValueError(f"{text} lacks method_name, which records and cards call it by")
    known = {one.name for one in dataclasses.fields(config)}
    own = {name for name, kind in inspect.get_annotations(config).items() if "ClassVar" not in str(kind)}
    if own - known:
        raise ValueError(
            f"{text} has settings that are no fields ({', '.join(sorted(own - known))}): decorate it with"
            " @dataclass(frozen=True, kw_only=True)"
        )
    return config
