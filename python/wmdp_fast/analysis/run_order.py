"""Whether two runs look as if they had been given in the wrong order."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wmdp_fast.results.saved import SavedResults

# Words in names of models and files that tell which of two runs is the earlier one.
_EARLIER = frozenset({"before", "base", "baseline", "original"})
_LATER = frozenset({"after", "unlearned", "unlearnt", "rmu"})


def order_doubt(before: SavedResults, after: SavedResults) -> str | None:
    """Why two runs look as if they had been given in the wrong order; None if they do not.

    What unlearning has left beside a model (`unlearn.json`) decides; then what models and files are called; then when
    the evaluations were made, if the models differ.
    """
    unlearned = [_unlearned_from(run.model_name) for run in (before, after)]
    if unlearned[1] is not None and unlearned[0] is None:
        return None
    if unlearned[0] is not None and unlearned[1] is None:
        return f"{before.model_name}, which is taken as before, was made by unlearning (from {unlearned[0]})"
    said = [_said_by_names(run) for run in (before, after)]
    if said == ["after", "before"]:
        return f"the run taken as before is called {_shown_name(before)}, the one taken as after {_shown_name(after)}"
    earlier, later = (run.raw.get("date") for run in (before, after))
    if said == ["before", "after"] or before.model_name == after.model_name:
        return None
    if earlier is None or later is None or earlier <= later:
        return None
    return f"{before.model_name}, which is taken as before, was evaluated later than {after.model_name}"


def _unlearned_from(model: str) -> str | None:
    """The model that a folder's model was made of by unlearning."""
    try:
        record = json.loads((Path(model) / "unlearn.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # A name on the hub, a folder that is not here, or no record of ours: nothing is known.
    return str(record.get("model") or "another model") if isinstance(record, dict) else None


def _said_by_names(run: SavedResults) -> str | None:
    folders = [] if run.path is None else [run.path.parent.name, run.path.parent.parent.name]
    words = {word for name in (run.model_name, *folders) for word in re.split(r"[^a-z]+", name.lower())}
    if bool(words & _EARLIER) == bool(words & _LATER):
        return None
    return "before" if words & _EARLIER else "after"


def _shown_name(run: SavedResults) -> str:
    return run.model_name if run.path is None else str(run.path.parent)
