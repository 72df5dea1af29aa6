"""Settings as the options of `wmdp-fast unlearn` that set them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wmdp_fast.unlearning.training_config import TrainingConfig


def as_options(config: type[TrainingConfig], settings: Mapping[str, Any]) -> list[str]:
    """The words of a command line that give a built-in method these settings.

    Args:
        config: The method's configuration.
        settings: Fields of it and their values.
    """
    types = {one.name: one.type for one in dataclasses.fields(config)}
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if types[name] == "bool":
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", value_text(value)]
    return words


def value_text(value: Any) -> str:
    """The value of a setting as it is written, exactly: 1200 for 1200.0; those of topics comma-separated."""
    if isinstance(value, tuple):
        return ",".join(map(value_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
