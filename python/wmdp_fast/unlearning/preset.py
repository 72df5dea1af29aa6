"""Published settings of a method, each with its source and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


# Settings with a value for each forget corpus; tuples here.
PER_TOPIC = frozenset({"steering_coeff", "alpha", "max_length"})


@dataclass(frozen=True)
class Preset:
    """Settings that somebody has published.

    Attributes:
        name: What it is called here.
        model: The model it was published for, by its name on the hub.
        settings: Fields of the method's configuration and their values.
        source: Where it was published.
        note: What is known of it: results, and what of the source it does not reproduce.
    """

    name: str
    model: str
    settings: Mapping[str, Any] = field(hash=False)
    source: str
    note: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def for_topics(self, count: int) -> dict[str, Any]:
        """The settings for a number of forget corpora.

        What is per topic is cut to their number, or goes on with its last value: so the original gives every topic
        after the first the second one's length.
        """
        settings = dict(self.settings)
        for name in PER_TOPIC & settings.keys():
            values = settings[name]
            settings[name] = (values + values[-1:] * count)[:count]
        return settings
