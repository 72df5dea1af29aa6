"""One attack with one setting on one model, and what is said of it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from wmdp_fast.exceptions import DivergedError, InternalError, ModelError
from wmdp_fast.robustness.attacks.ask import Ask
from wmdp_fast.robustness.subject import fingerprint
from wmdp_fast.scoring.padded import is_out_of_memory
from wmdp_fast.scoring.scores import NAN_ADVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from wmdp_fast.robustness.protocol import Attack, Setting
    from wmdp_fast.robustness.runs import Run
    from wmdp_fast.robustness.subject import Subject


def attacked(attack: Attack, subject: Subject, planned: Run, note: Callable[[str], None]) -> Run:
    """A run with what came of it.

    Args:
        attack: The attack.
        subject: The model.
        planned: The run without readings.
        note: Is told if it failed, and why.

    Raises:
        InternalError: The attack has left the model changed.
        ModelError: The model cannot even be asked.
    """
    run = _ended(attack, subject, planned)
    if run.failed is not None:
        if not run.skipped:
            note(f"{subject.role}, {run.attack}, {_shown(run.setting)}: failed: {run.failed}")
        if run.attack == Ask.name:
            raise ModelError(f"{subject.model.name} cannot be asked: {run.failed}")
    return run


def not_run(runs: Iterable[Run]) -> list[str]:
    """A line for each attack on a model of which settings could not be tried, and why."""
    skipped: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        if run.skipped:
            skipped.setdefault((run.role, run.attack, str(run.failed)), []).append(_shown(run.setting))
    return [
        f"{role}, {attack}, {settings[0] if len(settings) == 1 else f'{len(settings)} settings'}: not run: {reason}"
        for (role, attack, reason), settings in skipped.items()
    ]


def _ended(attack: Attack, subject: Subject, planned: Run) -> Run:
    """A run with what came of it."""
    if (reason := attack.why_not(subject, planned.setting)) is not None:
        return replace(planned, failed=reason, skipped=True)
    before, begin = fingerprint(subject.network), time.perf_counter()
    try:
        readings = tuple(attack.run(subject, planned.setting))
        failed = None if readings else "it gave no reading"
    except (ModelError, DivergedError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        readings, failed = (), _why(error, attack)
    if fingerprint(subject.network) != before:
        raise InternalError(f"the attack {attack.name} left the model changed, so that nothing after it would be true")
    return replace(planned, readings=readings, failed=failed, seconds=time.perf_counter() - begin)


def _why(error: Exception, attack: Attack) -> str:
    """Why an attack failed, in a line. Without it the model has answered, so its type or weights are not to blame."""
    if str(error) == NAN_ADVICE and attack.name != Ask.name:
        return "under this attack the model's output is not a number (NaN): it changes too much of it"
    return str(error).splitlines()[0]


def _shown(setting: Setting) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.values.items()) or "as it is"
