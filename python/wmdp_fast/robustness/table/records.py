"""From one result on one model to its measures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.analysis.contrast import NEAR_SUBJECTS, section_of
from wmdp_fast.analysis.statistics import correct_answers, letters_of, share
from wmdp_fast.results.saved import RECOMPUTABLE, SavedGroup, SavedTask
from wmdp_fast.robustness.attacks.ask import Ask
from wmdp_fast.robustness.curves import SHARES
from wmdp_fast.robustness.retained.figures import figures_of
from wmdp_fast.robustness.table.content import Absent, Answered, Cell, Measure
from wmdp_fast.robustness.utility import ACCURACY
from wmdp_fast.runtime import strict_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from wmdp_fast.analysis.statistics import Estimate
    from wmdp_fast.results.saved import SavedResults
    from wmdp_fast.robustness.findings import Finding
    from wmdp_fast.robustness.result import AttackResult
    from wmdp_fast.robustness.subject import Role
    from wmdp_fast.robustness.table.content import Kind


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one result says of one model.

    Attributes:
        name: What the model is called.
        kind: What it is.
        model: The model's name or folder as the result has it.
        measures: What was measured, or could have been, by key.
        cells: The values, by key.
        absent: Why others have none, by key.
        source: The file, or the publication.
        conditions: What must be the same for attacks to be comparable, in words.
        derived: Keys of what an evaluation would measure as well; these give way to one.
        identity: What tells the model from others of its name; None if that is not known.
        attacked: The attacks that it is of; None for controls and what is no attack.
    """

    name: str
    kind: Kind
    model: str
    measures: Mapping[str, Measure]
    cells: Mapping[str, Cell]
    absent: Mapping[str, Absent] = field(default_factory=dict)
    source: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)
    derived: frozenset[str] = frozenset()
    identity: str | None = None
    attacked: AttackResult | None = field(default=None, repr=False)


def record(values: Mapping[Measure, Cell | Absent], **fields: Any) -> Record:
    """A record of values and of what is missing."""
    return Record(
        measures={measure.key: measure for measure in values},
        cells={measure.key: one for measure, one in values.items() if isinstance(one, Cell)},
        absent={measure.key: one for measure, one in values.items() if isinstance(one, Absent)},
        **fields,
    )


def of_attacks(result: AttackResult, name: str | None, source: str) -> list[Record]:
    """A record for each model of a result of attacks, the unlearned one first."""
    return [_of_role(result, role, name, source) for role in result.models]


def of_evaluation(results: SavedResults, name: str | None, source: str, forget: Collection[str]) -> Record:
    """The record of an evaluation.

    Args:
        results: The evaluation.
        name: What the model is called; None is its own name.
        source: Where it is from.
        forget: Tasks and groups that were to be forgotten, beside WMDP.
    """
    values: dict[Measure, Cell | Absent] = {}
    shown = [found for found, depth in results.hierarchy() if depth == 0 or section_of(found.name) == "forget"]
    for found in shown:
        leaves = [results.tasks[leaf] for leaf in found.leaves] if isinstance(found, SavedGroup) else [found]
        for_forget = found.name in forget or section_of(found.name, alias=found.alias) == "forget"
        values |= _of_task(found, leaves, for_forget=for_forget)
    near = [task for task in results.tasks.values() if task.name.removeprefix("mmlu_") in NEAR_SUBJECTS]
    if len(near) == len(NEAR_SUBJECTS):
        values |= _near(near)
    model = results.model_name
    return record(values, name=name or model, kind="evaluated", model=model, source=source)


def _of_task(found: SavedTask | SavedGroup, leaves: Sequence[SavedTask], *, for_forget: bool) -> dict[Measure, Cell]:
    """A task's or group's first metric, and what was to be forgotten also without a preference for letters."""
    if not found.metrics:
        return {}
    metric, value = next(iter(found.metrics.items()))
    is_share = metric in RECOMPUTABLE or metric.startswith(("exact_match", "prompt_level_"))
    measure = Measure(
        key=f"task:{found.name}",
        title=found.name if metric == "acc" else f"{found.name} {metric}",
        section="forget" if for_forget else "kept",
        unit="%" if is_share else "",
        tested=metric == "acc",
    )
    if metric != "acc":
        low, high = _rust.wilson(round(value * found.n), found.n) if is_share and found.n else (None, None)
        return {measure: Cell(value=value, low=low, high=high, n=found.n)}
    cells = {measure: _accuracy(found.metrics["acc"], found.n, leaves)}
    if for_forget and (calibrated := letters_of(leaves).calibrated) is not None:
        beside = Measure(key=f"{measure.key}:calibrated", title=f"{found.name}, calibrated", section="forget")
        cells[beside] = _cell(calibrated, found.n)
    return cells


def _near(tasks: Sequence[SavedTask]) -> dict[Measure, Cell]:
    """The subjects of MMLU that are near to WMDP, taken together: each alone has too few questions."""
    counts = [task.n for task in tasks]
    if None in counts or not all("acc" in task.metrics for task in tasks):
        return {}
    right = sum(round(task.metrics["acc"] * (task.n or 0)) for task in tasks)
    n = sum(count or 0 for count in counts)
    return {Measure(key="near", title="near (MMLU)", section="kept"): _accuracy(right / n, n, tasks)}


def _accuracy(value: float, n: int | None, leaves: Sequence[SavedTask]) -> Cell:
    each = [correct_answers(task, "acc") for task in leaves]
    answers = [one for one in each if one is not None]
    if answers and len(answers) == len(leaves):
        correct = np.concatenate(answers)
        return _cell(share(correct), len(correct), Answered(_asked(leaves), correct))
    low, high = _rust.wilson(round(value * n), n) if n else (None, None)
    return Cell(value=value, low=low, high=high, n=n)


def _asked(tasks: Sequence[SavedTask]) -> str | None:
    """A hash of the prompts, right answers and choices of all questions; None if lm-eval recorded no hashes."""
    found = hashlib.sha256()
    for task in tasks:
        samples = task.samples
        if samples is None or "" in samples.prompt_hashes or "" in samples.target_hashes:
            return None
        for place, doc_id in enumerate(samples.doc_ids.tolist()):
            asked = [task.name, doc_id, samples.prompt_hashes[place], samples.target_hashes[place]]
            found.update(strict_json.dumps([*asked, list(samples.continuations(place))]).encode())
    return found.hexdigest()


def _of_role(result: AttackResult, role: Role, name: str | None, source: str) -> Record:
    topic = "+".join(result.tasks)
    values: dict[Measure, Cell | Absent] = dict(_whole(result, role))
    derived = frozenset(measure.key for measure in values)
    values |= _utility(result, role) | dict(_kept(result, role))
    for attack, finding in result.findings[role].items():
        values |= _of_attack(result, attack, finding, topic)
    for attack, why in result.missing(role).items():
        values[_attack_measure(attack, topic)] = Absent(why="; ".join(why))
    if role == "unlearned":
        values |= dict(_of_curves(result, topic))
        values |= dict(_summary(result, topic))
    return record(
        values,
        name=(name or result.models[role]) if role == "unlearned" else role,
        kind=role,
        model=result.models[role],
        source=source,
        conditions=_conditions(result),
        derived=derived,
        identity=strict_json.dumps(result.identity.get("models", {}).get(role)),
        attacked=result if role == "unlearned" else None,
    )


def _conditions(result: AttackResult) -> dict[str, str]:
    identity = result.identity
    return {
        "budget": result.budget,
        "slack": f"{result.slack:g}",
        "questions": str(identity.get("questions"))[:12],
        "questions that are reported": hashlib.sha256(result.is_for_choosing.tobytes()).hexdigest()[:12],
        "way of asking": strict_json.dumps(identity.get("way of asking")),
        "utility": _measured_on(identity.get("utility")),
        "dtype": str(identity.get("dtype")),
        "version of wmdp_fast": str(identity.get("version of wmdp_fast")),
    }


def _measured_on(measured: Any) -> str:
    """What utility was measured on, by kind and the beginning of its hash."""
    if not isinstance(measured, list) or not measured:
        return "not measured"
    told = [[str(part)[:12] for part in one] if isinstance(one, list) else [str(one)] for one in measured]
    return ", ".join(" ".join(parts) for parts in told)


def _whole(result: AttackResult, role: Role) -> Iterator[tuple[Measure, Cell]]:
    """Accuracy on all questions of each task, as an evaluation would have it: nothing was chosen for it."""
    asked = result.findings[role][Ask.name].reading.answers
    start = 0
    for task, n in result.tasks.items():
        part = np.zeros(len(asked.correct), dtype=bool)
        part[start : start + n] = True
        start += n
        key = f"task:{task}"
        # How an evaluation would hash its prompts is not known here, so these are compared with other attacks' only.
        identity = strict_json.dumps([task, result.identity.get("questions"), result.identity.get("way of asking")])
        if (acc := asked.accuracy(part)) is not None:
            answered = Answered(identity, asked.correct[part])
            yield Measure(key=key, title=task, section="forget", tested=True), _cell(acc, n, answered)
        if (calibrated := asked.accuracy(part, calibrated=True)) is not None:
            yield Measure(key=f"{key}:calibrated", title=f"{task}, calibrated", section="forget"), _cell(calibrated, n)


def _utility(result: AttackResult, role: Role) -> dict[Measure, Cell]:
    """What the model can do besides, without an attack."""
    which = hashlib.sha256(strict_json.dumps(result.identity.get("utility")).encode()).hexdigest()[:8]
    n = sum(result.utility_tasks.values())
    cells = {}
    for name, value in result.utility(role).items():
        if name == ACCURACY:
            names = list(result.utility_tasks)
            title = f"utility: {names[0]}" if len(names) == 1 else f"utility ({len(names)} tasks)"
            low, high = _rust.wilson(round(value * n), n)
            measure = Measure(key=f"utility:{which}", title=title, section="kept")
            cells[measure] = Cell(value=value, low=low, high=high, n=n)
        elif not name.startswith(f"{ACCURACY} "):
            measure = Measure(key=f"utility:{which}:{name}", title=name.replace("_", " "), section="kept", unit="")
            cells[measure] = Cell(value=value)
    return cells


def _kept(result: AttackResult, role: Role) -> Iterator[tuple[Measure, Cell | Absent]]:
    """What else was to be kept; other texts and questions are other columns."""
    for measured in result.measured:
        which = hashlib.sha256(strict_json.dumps([measured.kind, dict(measured.identity)]).encode()).hexdigest()[:8]
        for one in figures_of(measured) if measured.role == role else ():
            measure = Measure(
                key=f"kept:{which}:{one.title}",
                title=one.title,
                section="kept",
                unit=one.unit,
                tested=one.correct is not None,
            )
            if one.value is None:
                yield measure, Absent(text=one.text, why=one.why)
            else:
                answered = None if one.correct is None else Answered(one.asked, one.correct)
                yield measure, Cell(value=one.value, low=one.low, high=one.high, n=one.n, answered=answered)


def _attack_measure(name: str, topic: str) -> Measure:
    return Measure(key=f"attack:{topic}:{name}", title=name, section="attacks", tested=name == Ask.name)


def _of_attack(result: AttackResult, name: str, finding: Finding, topic: str) -> dict[Measure, Cell]:
    """Accuracy under an attack on the questions that nothing was chosen on."""
    measure = _attack_measure(name, topic)
    cells = {measure: _half(result, finding)}
    if name == Ask.name and finding.calibrated is not None:
        beside = Measure(key=f"{measure.key}:calibrated", title=f"{name}, calibrated", section="attacks")
        cells[beside] = _cell(finding.calibrated, int((~result.is_for_choosing).sum()))
    return cells


def _half(result: AttackResult, finding: Finding, label: str = "") -> Cell:
    reported: NDArray[np.bool_] = ~result.is_for_choosing
    asked = strict_json.dumps(
        [
            result.identity.get("questions"),
            result.identity.get("way of asking"),
            hashlib.sha256(reported.tobytes()).hexdigest(),
        ]
    )
    return _cell(finding.acc, int(reported.sum()), Answered(asked, finding.reading.answers.correct[reported]), label)


def _of_curves(result: AttackResult, topic: str) -> Iterator[tuple[Measure, Cell | Absent]]:
    """How fast knowledge comes back under the chosen setting of attacks with steps."""
    for name, several in result.curves["unlearned"].items():
        chosen = result.findings["unlearned"][name].setting
        curve = next((one for one in several if one.setting == chosen), None)
        if curve is None:
            continue
        most, steps = curve.steps[-1], {one.share: one.steps for one in curve.regained}
        late = Absent(text=f">{most}", why=f"not within the {most} steps that it was trained for")
        for share_of_gap in SHARES:
            key = f"attack:{topic}:{name}:{share_of_gap:.0%}"
            title = f"{name}: steps to {share_of_gap:.0%}"
            measure = Measure(key=key, title=title, section="summary", unit="steps")
            if share_of_gap not in steps:
                yield measure, _no_gap(result, Ask.name)
            elif (found := steps[share_of_gap]) is None:
                yield measure, late
            else:
                yield measure, Cell(value=found, label=curve.kind)
        area = Measure(key=f"attack:{topic}:{name}:area", title=f"{name}: area", section="summary")
        yield area, Cell(value=curve.area, label=curve.kind)


def _summary(result: AttackResult, topic: str) -> Iterator[tuple[Measure, Cell | Absent]]:
    """The worst attack, what it regains, and the same recipe on what cannot bring anything back."""
    attacks = {name: one for name, one in result.findings["unlearned"].items() if name != Ask.name}
    worst = result.worst()
    measures = [
        Measure(key=f"{key}:{topic}", title=title, section="summary", tested=key == "worst")
        for key, title in (("worst", "worst"), ("recovered", "R"), ("null", "null"))
    ]
    if worst is None or not attacks:
        yield from ((measure, Absent(why="no attack was run")) for measure in measures)
        return
    yield measures[0], _half(result, result.findings["unlearned"][worst], worst)
    regained = result.recovery(worst)
    if regained is None:
        yield measures[1], _no_gap(result, worst)
    else:
        yield measures[1], Cell(value=regained)
    null = result.nulls["unlearned"].get(worst)
    if null is None:
        yield measures[2], Absent(text="n/a", why=f"{worst} has no control that was run")
    else:
        yield measures[2], _half(result, null)


def _no_gap(result: AttackResult, attack: str) -> Absent:
    """Why no share of the gap to the base can be told."""
    if attack in result.findings.get("base", {}):
        return Absent(text="n/a", why="the gap to the base is less than two standard errors")
    return Absent(text="n/a", why=f"the base was not attacked by {attack}")


def _cell(estimate: Estimate, n: int | None, answered: Answered | None = None, label: str = "") -> Cell:
    return Cell(value=estimate.value, low=estimate.low, high=estimate.high, n=n, label=label, answered=answered)
