"""Which options of `evaluate` its evaluations take where they are part of something else, and where others belong."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING

from wmdp_fast.evaluate_options import EvaluateOptions
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.scoring.backend import ScoreOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# How questions are asked, and how a model that is there is scored.
ASKING = frozenset(one.name for one in dataclasses.fields(PromptOptions)) - {"tasks"}
SCORING = frozenset(one.name for one in dataclasses.fields(ScoreOptions))

_EVERY = EvaluateOptions.__optional_keys__ | {"resume"}


def check_eval_options(given: Iterable[str], taken: Collection[str], elsewhere: Mapping[str, str]) -> None:
    """Looks whether `eval_options` has only what is taken; otherwise it would be found out hours later, or never.

    Args:
        given: The names of the options.
        taken: Those that there may be.
        elsewhere: Where others belong that `evaluate` has. Of those that are not named there it is said that they are
            for a model which `evaluate` loads.

    Raises:
        ValueError: There is another one; says where it belongs.
    """
    for name in given:
        if name in taken:
            continue
        if name in _EVERY:
            why = elsewhere.get(name, "it is for a model that evaluate loads itself")
            raise ValueError(f"eval_options does not take {name}: {why}")
        close = difflib.get_close_matches(str(name), taken, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(sorted(taken))}"
        raise ValueError(f"eval_options has {name!r}, which evaluate does not know; {hint}")
