"""Which points of a sweep are run, in what order, and by whom: this process, or one on each of several devices."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.runtime import workers
from wmdp_fast.runtime.progress import progress_bar
from wmdp_fast.unlearning import activation_cache
from wmdp_fast.unlearning.activation_cache import CacheUse
from wmdp_fast.unlearning.sweep import trials
from wmdp_fast.unlearning.sweep.points import full, key, told
from wmdp_fast.unlearning.sweep.result import SweepRun
from wmdp_fast.unlearning.sweep.trials import Before, Train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from wmdp_fast.results.runs_file import RunsFile
    from wmdp_fast.runtime.devices import Devices
    from wmdp_fast.unlearning.sweep.search_space import OptunaSampler
    from wmdp_fast.unlearning.sweep.trials import Job, Message, Plan
    from wmdp_fast.unlearning.training_config import TrainingConfig

    Do = Callable[[Sequence[Job]], None]
    Drawn = tuple[Mapping[str, Any], tuple[float, float] | None]


@contextlib.contextmanager
def doing(plan: Plan, device: str, devices: Devices | None, results: Results) -> Iterator[Do]:
    """Gives what does jobs and keeps what comes of them: here, or in a process on each of several devices.

    Args:
        plan: The sweep.
        device: That of this process.
        devices: Those of others, which then do all the work.
        results: Takes what comes of it.

    Raises:
        ModelError, ValueError: As `trials.begin` and `workers.started`.
    """
    if devices is None:
        work = trials.begin(plan, device)

        def alone(jobs: Sequence[Job]) -> None:
            for job in jobs:
                work(job, results.take)

        yield alone
        return
    quiet = replace(plan, request=replace(plan.request, progress=False), processes=len(devices.names))
    with workers.started(trials.begin, quiet, devices) as others:

        def shared(jobs: Sequence[Job]) -> None:
            for message in others.each(jobs, results.left):
                results.take(message)

        yield shared


class Results:
    """What a sweep has found so far, and on the disk.

    Args:
        base: The settings that are not swept.
        swept: The names of those that are.
        file: Where each result is written when it is there; what was in it is known.
        say: Takes lines meant for the user.
        several: Whether points are run side by side, so that each line must say which it is of.

    Attributes:
        use: What the trunk cache did.
    """

    def __init__(
        self,
        base: TrainingConfig,
        swept: Sequence[str],
        file: RunsFile,
        say: Callable[[str], None],
        *,
        several: bool,
    ) -> None:
        self._base, self._swept, self._file, self._say, self._several = base, swept, file, say, several
        self._done = {key(run.settings): run for run in map(SweepRun.from_json, file.lines)}
        self.use = CacheUse()
        self.arrived: Callable[[], object] = lambda: None

    @property
    def before(self) -> SweepRun:
        """The model before unlearning."""
        return self._done[key({})]

    def of(self, point: Mapping[str, Any]) -> SweepRun:
        """What came of a point."""
        return self._done[key(full(self._base, point))]

    def has(self, point: Mapping[str, Any]) -> bool:
        """Whether a point has a result."""
        return key(full(self._base, point)) in self._done

    def left(self, job: Job) -> Job | None:
        """What a job has no result of yet; None if it has all."""
        match job:
            case Before():
                return None if key({}) in self._done else job
            case Train():
                missing = tuple(point for point in job.points if not self.has(point))
                return replace(job, points=missing) if missing else None
            case _:
                return job

    def take(self, message: Message) -> None:
        """Keeps a result, or says a line."""
        match message:
            case SweepRun():
                self._add(message)
            case CacheUse():
                self.use = activation_cache.total([self.use, message])
            case _:
                self._say(message)

    def _add(self, run: SweepRun) -> None:
        self._file.add(asdict(run))
        self._done[key(run.settings)] = run
        if run.forget is None or run.retain is None:
            outcome = f"failed: {run.failed}"
        else:
            outcome = f"forget {run.forget.value:.4f}, retain {run.retain.value:.4f}"
        name = f"  after step {run.steps}" if run.settings else "before unlearning"
        if self._several and run.settings:
            name = f"  {told({one: run.settings[one] for one in self._swept})}, after step {run.steps}"
        self._say(f"{name}: {outcome}")
        self.arrived()


def grid(points: Sequence[dict[str, Any]], *, apart: bool, results: Results, base: TrainingConfig, do: Do) -> None:
    """Runs every point that has no result yet, and the model before.

    Args:
        points: The points.
        apart: Whether each is a run of its own; else those that differ in the number of steps only are one.
        results: What there is.
        base: The settings that are not swept.
        do: Does the rest.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        shared = {} if apart else {"max_steps": None}
        groups.setdefault(key({**full(base, point), **shared}), []).append(point)
    jobs: list[Job] = [Before()]
    jobs += [
        Train(tuple(group), None, f"run {number} of {len(groups)}: {told(group[0], but='max_steps')}")
        for number, group in enumerate(groups.values(), 1)
    ]
    do([left for job in jobs if (left := results.left(job)) is not None])


def drawn(sampler: OptunaSampler, trials: int, at_once: int, *, results: Results, do: Do) -> list[dict[str, Any]]:
    """Draws points and runs them, and the model before; what was drawn before is drawn again and not run again.

    Args:
        sampler: Draws.
        trials: How many to draw.
        at_once: How many are drawn without knowing what comes of each other. Points follow from this number too.
        results: What there is.
        do: Does the rest.
    """
    history: list[Drawn] = []
    points: list[dict[str, Any]] = []
    while len(points) < trials:
        params: list[dict[str, Any]] = []
        for _ in range(min(at_once, trials - len(points))):
            params.append(sampler.draw(history, params))
        new = [sampler.settings(one) for one in params]
        jobs: dict[str, Job] = {key({}): Before()}
        for number, (one, point) in enumerate(zip(params, new, strict=True), len(points) + 1):
            # The same point may be drawn twice.
            jobs.setdefault(key(point), Train((point,), one, f"run {number} of {trials}: {told(point)}"))
        do([left for job in jobs.values() if (left := results.left(job)) is not None])
        # In the order of their drawing, whoever was done first.
        history += [(one, results.of(point).objectives) for one, point in zip(params, new, strict=True)]
        points += new
    return list({key(point): point for point in points}.values())


@contextlib.contextmanager
def bar_of(results: Results, points: int, *, shown: bool) -> Iterator[None]:
    """Inside, a bar shows how many points have a result."""
    with progress_bar(what="sweeping", unit="point", total=points, shown=shown) as bar:
        results.arrived = lambda: bar.update(1)
        yield
