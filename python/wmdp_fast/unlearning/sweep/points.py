"""Points of a sweep: what tells one from another, and what people and folders call it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from wmdp_fast.unlearning.sweep.result import cell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wmdp_fast.unlearning.training_config import TrainingConfig


def full(base: TrainingConfig, point: Mapping[str, Any]) -> dict[str, Any]:
    """A point with the values of what is not swept, so that it is known again if that is swept later."""
    names = [axis.name for axis in base.search_axes]
    return {name: point.get(name, getattr(base, name)) for name in names}


def key(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings: 100 and 100.0 are, a tuple and what JSON makes of it."""
    return json.dumps({name: _as_number(value) for name, value in settings.items()}, sort_keys=True)


def folder_name(settings: Mapping[str, Any]) -> str:
    """Where the evaluation of a point lies: the same for the same settings, and readable."""
    named = (f"{name}={cell(value)}" for name, value in settings.items())
    name = ",".join(named).replace("/", "+") or "before"
    # Of many topics it may be longer than a file system takes.
    return name if len(name) <= 200 else f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def told(point: Mapping[str, Any], but: str = "") -> str:
    """A point for people, without one of its settings."""
    return ", ".join(f"{name} {cell(value)}" for name, value in point.items() if name != but) or "one run"


def _as_number(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_number(one) for one in value]
    return float(value) if isinstance(value, int) else value
