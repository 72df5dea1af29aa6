"""Records of attacks with made-up answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast.robustness.answers import Answers
from wmdp_fast.robustness.protocol import Reading, Setting
from wmdp_fast.robustness.result import AttackResult
from wmdp_fast.robustness.runs import Run

if TYPE_CHECKING:
    from wmdp_fast.robustness.subject import Role

N = 400


def reading(accuracy: float, utility: float | None = None, step: int | None = None, shift: int = 0) -> Reading:
    """Answers of which such a share is right, evenly over both halves."""
    right = np.roll((np.arange(N) % 100) < round(100 * accuracy), shift)
    answers = Answers(predicted=right.astype(np.int64), correct=right, calibrated=np.roll(right, 7))
    return Reading(answers=answers, utility=None if utility is None else {"acc": utility}, step=step)


def run(role: Role, attack: str, *readings: Reading, failed: str | None = None, null: bool = False) -> Run:
    return Run(role=role, attack=attack, setting=Setting(values={}, null=null), readings=readings, failed=failed)


def attacked(model: str, ask: float, relearn: float, **fields: object) -> AttackResult:
    """A model with an accuracy when asked and one under an attack, and its base with 0.8 under both."""
    runs = [
        run("unlearned", "ask", reading(ask, 0.6)),
        run("unlearned", "relearn", reading(ask, 0.6, step=0), reading(relearn, 0.58, step=50)),
        run("unlearned", "relearn", reading(ask, 0.6), null=True),
        run("unlearned", "gcg", failed="it needs a target: pass --target"),
        run("base", "ask", reading(0.8, 0.6)),
        run("base", "relearn", reading(0.8, 0.6)),
    ]
    given = {
        "models": {"unlearned": model, "base": "org/base"},
        "tasks": {"wmdp_bio": N},
        "utility_tasks": {"mmlu_virology": 100},
        "is_for_choosing": np.arange(N) < N // 2,
        "chance": 0.25,
        "runs": runs,
        "slack": 0.1,
        "budget": "standard",
        "seed": 0,
        "identity": {"questions": "abc", "models": {"unlearned": [model], "base": ["b"]}},
    }
    return AttackResult(**(given | fields))
