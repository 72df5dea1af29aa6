"""Attacks that are shared by processes, one on each of several devices: whoever is free takes the next setting."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from wmdp_fast.robustness.one_run import attacked, not_run
from wmdp_fast.robustness.retained.measure import Measured
from wmdp_fast.robustness.retained.measuring import Measuring
from wmdp_fast.robustness.runs import Run
from wmdp_fast.runtime import workers
from wmdp_fast.runtime.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from wmdp_fast.robustness.protocol import Attack
    from wmdp_fast.robustness.retained.measure import RetainedMeasure
    from wmdp_fast.robustness.subject import Role, Subject
    from wmdp_fast.runtime.devices import Devices


class Opens(Protocol):
    """Opens a model with all that attacks may use."""

    def __call__(self, *, device: str | None = None) -> Subject:
        """Opens it, on a device of its own if there is one."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the processes need to begin.

    Attributes:
        attacks: The attacks.
        measures: What is measured beside them.
        open: Opens a model, by what it is.
    """

    attacks: Sequence[Attack]
    measures: Sequence[RetainedMeasure]
    open: Mapping[Role, Opens]


@dataclass(frozen=True)
class Measure:
    """Takes the measures of a model that are missing, one after the other.

    Attributes:
        role: Which model.
        done: What is not missing, by key.
    """

    role: Role
    done: Mapping[str, Measured] = field(repr=False)


Job = Run | Measure
"""A run without readings, or measures."""

Message = Run | Measured | str


@dataclass(frozen=True, kw_only=True)
class Take:
    """What takes what comes: runs, measurements, lines for the user."""

    run: Callable[[Run], None]
    measured: Callable[[Measured], None]
    note: Callable[[str], None]


def do_shared(
    plan: Plan,
    jobs: Sequence[Job],
    devices: Devices,
    left: Callable[[Job], Job | None],
    take: Take,
    *,
    progress: bool,
) -> None:
    """Has jobs done by a process on each device.

    Args:
        plan: What they need.
        jobs: Runs and measures, a model's together.
        devices: The devices.
        left: What is still to do of a job whose process was killed.
        take: Takes what comes of them.
        progress: Whether to show a bar on stderr.

    Raises:
        ModelError: A model cannot be loaded or asked, or all processes were killed.
        ValueError: The plan cannot be pickled.
    """
    runs = sum(isinstance(job, Run) for job in jobs)
    ended: list[Run] = []
    take.note(f"{runs} runs, shared by {len(devices.names)} processes")
    with (
        progress_bar(what="attacking", unit="run", total=runs, shown=progress) as bar,
        workers.started(begin, plan, devices) as others,
    ):
        for message in others.each(jobs, left):
            match message:
                case Run():
                    take.run(message)
                    ended.append(message)
                    bar.set_postfix(attack=message.attack, refresh=False)
                    bar.update(1)
                case Measured():
                    take.measured(message)
                case _:
                    take.note(message)
    order = {job.key: place for place, job in enumerate(jobs) if isinstance(job, Run)}
    for line in not_run(sorted(ended, key=lambda run: order[run.key])):
        take.note(line)


def begin(plan: Plan, device: str) -> Callable[[Job, Callable[[Message], None]], None]:
    """Returns what does jobs on a device."""
    return _Attacker(plan, device).work


class _Attacker:
    """A process on a device, with the model that its last job was on."""

    def __init__(self, plan: Plan, device: str) -> None:
        self._plan, self._device = plan, device
        self._attacks = {attack.name: attack for attack in plan.attacks}
        self._subject: Subject | None = None

    def work(self, job: Job, tell: Callable[[Message], None]) -> None:
        """Does a job."""
        subject = self._opened(job.role)
        match job:
            case Run():
                tell(attacked(self._attacks[job.attack], subject, job, tell))
            case Measure():
                Measuring(measures=self._plan.measures, note=tell, done=dict(job.done)).measure(subject, tell)

    def _opened(self, role: Role) -> Subject:
        if self._subject is None or self._subject.role != role:
            self._subject = None
            gc.collect()  # before the next model is read
            self._subject = self._plan.open[role](device=self._device)
        return self._subject
