"""Runs attacks on a model and its controls; what is done is on the disk and is not done again."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import ModelError
from wmdp_fast.results.runs_file import RunsFile
from wmdp_fast.robustness.one_run import attacked, not_run
from wmdp_fast.robustness.runs import Run
from wmdp_fast.robustness.shared import Measure, Plan, Take, do_shared
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import write_whole
from wmdp_fast.runtime.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from wmdp_fast.robustness.protocol import Attack, Budget, Setting
    from wmdp_fast.robustness.retained.measure import Measured
    from wmdp_fast.robustness.retained.measuring import Measuring
    from wmdp_fast.robustness.shared import Job, Opens
    from wmdp_fast.robustness.subject import Role, Subject
    from wmdp_fast.runtime.devices import Devices

IDENTITY = "attack.json"
RUNS = "runs.jsonl"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is to be run.

    Attributes:
        attacks: The attacks; the first only asks.
        budget: How many of their settings.
        seed: Of all that is drawn.
        open: Opens a model with all that attacks may use, by what it is; in the order in which they are attacked.
            For another process it is pickled.
        identity: What tells this suite from another in the same folder, as JSON has it.
        code: Hashes of the files of attacks that are not of this package, by name.
        folder: Where what is done is kept, or None.
        controls: A folder with attacks on another unlearned model, whose runs on the controls are taken over; or None.
        measuring: What is measured beside the attacks.
        progress: Whether to show a bar on stderr.
        note: Takes lines meant for the user.
        devices: Those that share the runs, a process on each; None for this process alone.
    """

    attacks: Sequence[Attack]
    budget: Budget
    seed: int
    open: Mapping[Role, Opens]
    identity: Mapping[str, Any]
    code: Mapping[str, str]
    folder: Path | None
    controls: Path | None
    measuring: Measuring
    progress: bool
    note: Callable[[str], None]
    devices: Devices | None = None

    def run(self) -> list[Run]:
        """Runs what has not been run, and measures what has not been measured.

        Returns:
            All runs of these attacks, model after model; among them those that were in the folder.

        Raises:
            JournalError: What is in the folder is damaged, or another process writes it.
            ModelError: A model cannot be loaded, or what is in the folder is of other models, questions or settings.
        """
        taken = self._of_controls()
        if self.folder is None:
            with self.measuring.kept_in(None, self.controls) as keep_measured:
                return self._run_all(taken, lambda _run: None, keep_measured)
        self.folder.mkdir(parents=True, exist_ok=True)
        check_identity(self.folder, self.identity)
        with (
            RunsFile(self.folder / RUNS) as file,
            self.measuring.kept_in(self.folder, self.controls) as keep_measured,
        ):
            before = [Run.from_json(line) for line in file.lines]
            # What failed is tried again: memory may be there now, or a corpus.
            done = taken | {run.key: run for run in before if run.failed is None}
            return self._run_all(done, lambda run: file.add(run.to_json()), keep_measured)

    def _of_controls(self) -> dict[str, Run]:
        """What was run before on the same base and never-learned model, with the same questions, by its key."""
        if self.controls is None:
            return {}
        path, now = self.controls / IDENTITY, _as_json(self.identity)
        if not path.is_file():
            raise ModelError(f"{self.controls} has no attacks: controls are the --output of `wmdp-fast attack`")
        before = _read_identity(path)
        for one in (before, now):
            one["models"] = {role: found for role, found in one["models"].items() if role != "unlearned"}
        if differing := _differing(before, now):
            raise ModelError(
                f"{self.controls} has controls with other {differing}; leave controls out to run them here"
            )
        lines = (self.controls / RUNS).read_text(encoding="utf-8").splitlines()
        runs = [Run.from_json(json.loads(line)) for line in lines]
        return {run.key: run for run in runs if run.role != "unlearned" and run.failed is None}

    def _run_all(
        self, done: Mapping[str, Run], keep: Callable[[Run], None], keep_measured: Callable[[Measured], None]
    ) -> list[Run]:
        if self.devices is not None:
            return self._run_shared(self.devices, done, keep, keep_measured)
        found: list[Run] = []
        for role, open_subject in self.open.items():
            planned = self._planned_on(role)
            missing = [run for run in planned if run.key not in done]
            finished = {run.key: done[run.key] for run in planned if run.key in done}
            if missing or self.measuring.missing(role):
                subject = open_subject()
                for run in self._attack(subject, missing) if missing else ():
                    keep(run)
                    finished[run.key] = run
                self.measuring.measure(subject, keep_measured)
                del subject
                gc.collect()  # before the next model is read
            found += [finished[run.key] for run in planned]
        return found

    def _run_shared(
        self,
        devices: Devices,
        done: Mapping[str, Run],
        keep: Callable[[Run], None],
        keep_measured: Callable[[Measured], None],
    ) -> list[Run]:
        """The same by a process on each of several devices, which does none of it here."""
        planned = [run for role in self.open for run in self._planned_on(role)]
        finished = {run.key: done[run.key] for run in planned if run.key in done}

        def keep_run(run: Run) -> None:
            keep(run)
            finished[run.key] = run

        def left(job: Job) -> Job | None:
            if isinstance(job, Run):
                return None if job.key in finished else job
            return Measure(job.role, dict(self.measuring.done)) if self.measuring.missing(job.role) else None

        def keep_one(measured: Measured) -> None:
            keep_measured(measured)
            self.measuring.done[measured.key] = measured

        every: list[Job] = []
        for role in self.open:
            every += [*(run for run in planned if run.role == role), Measure(role, {})]
        jobs = [job for one in every if (job := left(one)) is not None]
        if jobs:
            plan = Plan(attacks=self.attacks, measures=self.measuring.measures, open=self.open)
            take = Take(run=keep_run, measured=keep_one, note=self.note)
            do_shared(plan, jobs, devices, left, take, progress=self.progress)
        return [finished[run.key] for run in planned]

    def _planned_on(self, role: Role) -> list[Run]:
        return [self._planned(role, attack, setting) for attack, setting in self._pairs()]

    def _pairs(self) -> Iterator[tuple[Attack, Setting]]:
        for attack in self.attacks:
            for setting in attack.settings(self.budget, self.seed):
                yield attack, setting

    def _planned(self, role: Role, attack: Attack, setting: Setting) -> Run:
        return Run(role=role, attack=attack.name, setting=setting, code=self.code.get(attack.name))

    def _attack(self, subject: Subject, missing: Sequence[Run]) -> Iterator[Run]:
        """Runs what is missing on one model."""
        attacks = {attack.name: attack for attack in self.attacks}
        ended: list[Run] = []
        costs = [attacks[run.attack].cost(subject, run.setting) for run in missing]
        self.note(
            f"{subject.role}: {len(missing)} runs, about {sum(costs):.0f} times all {len(subject.questions)} questions"
        )
        with progress_bar(
            what=f"attacking ({subject.role})", unit="reading", total=sum(costs), shown=self.progress
        ) as bar:
            for run, cost in zip(missing, costs, strict=True):
                bar.set_postfix(attack=run.attack, refresh=False)
                ended.append(attacked(attacks[run.attack], subject, run, self.note))
                bar.update(cost)
                yield ended[-1]
        for line in not_run(ended):
            self.note(line)


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Compares with what is in a folder, or writes down what this is.

    Raises:
        ModelError: Other models, questions or settings were attacked there; says which, or that the file is damaged.
    """
    path, now = folder / IDENTITY, _as_json(identity)
    if not path.exists():
        write_whole(path, strict_json.dumps(now, indent=2) + "\n")
        return
    if differing := _differing(_read_identity(path), now):
        raise ModelError(f"{folder} has attacks with other {differing}; name the same, or another --output")


def _as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(strict_json.dumps(dict(identity)))
    return found


def _read_identity(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("models"), dict):
            return found
        problem: object = "it does not say of which models"
    except ValueError as error:
        problem = error
    raise ModelError(f"{path} is damaged ({problem}); remove {path.parent} to start over")


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)))
