"""What a sweep found: accuracies by point, the Pareto front, and the commands that make a point again."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from wmdp_fast.runtime.tables import aligned, number_text
from wmdp_fast.unlearning.methods.as_options import as_options, value_text
from wmdp_fast.unlearning.methods.catalog import DEFAULT, METHODS, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from wmdp_fast.unlearning.training_config import TrainingConfig


# Most points that the best run may lose on the retain tasks: the published runs lost 1 to 2 on MMLU, and the rest is
# for the chance of samples of some hundred questions.
MAX_LOSS = 5.0


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers over all questions of some tasks.

    Attributes:
        value: The share.
        low: Lower end of Wilson's 95 % interval.
        high: Its upper end.
        n: Number of questions.
        chance: Share that guessing gives.
    """

    value: float
    low: float
    high: float
    n: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One point of a sweep.

    Attributes:
        settings: The swept settings; empty for the model before unlearning.
        steps: Optimizer steps done: less than `max_steps` if the corpora ended before.
        forget: Accuracy on the forget tasks; None if the run failed.
        retain: Accuracy on the retain tasks; None if the run failed.
        scores: Metrics by task and group.
        steering_coeffs: RMU's, of each topic, as given or found; empty for other methods.
        measures: What the last step measured: losses, norms, cosines.
        effects: RMU's, of each topic: how activations differ from those of the model before; `rmu.effect.Effect` has
            the meaning.
        failed: Why there is no result, or None.
        seconds: Of training (of all steps so far, if runs shared them) and of evaluating.
        params: What Optuna drew, or None.
        results: Where the evaluation is kept, below the sweep's folder, or None.
        kl: How far the model is from the one before, in nats per token, if that was limited.
    """

    settings: dict[str, Any]
    steps: int
    forget: Accuracy | None
    retain: Accuracy | None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    steering_coeffs: tuple[float, ...] = ()
    measures: dict[str, float] = field(default_factory=dict)
    effects: list[dict[str, Any]] = field(default_factory=list)
    failed: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    params: dict[str, Any] | None = None
    results: str | None = None
    kl: float | None = None

    @property
    def objectives(self) -> tuple[float, float] | None:
        """What should be low (forget accuracy, where below chance counts as chance) and what should be high."""
        if self.forget is None or self.retain is None:
            return None
        return max(self.forget.value, self.forget.chance), self.retain.value

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> SweepRun:
        """The run of a line of `runs.jsonl`."""
        accuracies = {name: None if line[name] is None else Accuracy(**line[name]) for name in ("forget", "retain")}
        settings = {name: _as_setting(value) for name, value in line["settings"].items()}
        coefficients = tuple(line["steering_coeffs"])
        return cls(**{**line, **accuracies, "settings": settings, "steering_coeffs": coefficients})


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A finished sweep. `print` shows its table.

    Attributes:
        base: The model before unlearning.
        runs: The runs, in the order of the grid or of their drawing.
        front: Indices of those on the Pareto front, by ascending forget accuracy: no other run is at least as good
            in both accuracies and better in one, and the model before is not as good in both.
        best: Index of the run that loses most accuracy on the forget tasks minus what it loses on the retain tasks,
            among those on the front that lose at most `max_loss`; None if there is none that gains more than it loses.
        config: The settings that were not swept.
        swept: The names of those that were.
        output: The folder.
        kept: Folder of the best run's checkpoint, or None.
        max_loss: Most points of accuracy that the best run may lose on the retain tasks.
        texts: The names of the texts whose perplexity was measured, which decides about nothing.

    Example:
        >>> from wmdp_fast import RMUConfig, demo, sweep
        >>> corpora = {"forget": demo.corpus_path("forget"), "retain": demo.corpus_path("retain")}
        >>> tasks = {f"{domain}_tasks": str(demo.questions_path(domain)) for domain in ("forget", "retain")}
        >>> config = RMUConfig(max_steps=2, max_length=64, retain_max_length=64)
        >>> options = {"config": config, "eval_options": {"limit": 8}, "progress": False}
        >>> result = sweep(demo.model_path(), **corpora, **tasks, over={"layer_id": [2]}, output="swept", **options)
        >>> result.config_of(0).layer_id, "layer_id" in result.table()
        (2, True)
    """

    base: SweepRun
    runs: list[SweepRun]
    front: list[int]
    best: int | None
    config: TrainingConfig
    swept: tuple[str, ...]
    output: Path
    kept: Path | None
    max_loss: float = MAX_LOSS
    texts: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return self.table()

    @property
    def why_no_best(self) -> str | None:
        """Why no run is called the best, or None if one is."""
        retain = self.base.retain
        if self.best is not None or retain is None:
            return None
        if not self.front:
            return "no run is worth having: the model before is at least as good as each in both accuracies"
        losses = [100 * (retain.value - run.retain.value) for run in self.runs if run.retain is not None]
        on_front = [
            100 * (retain.value - objectives[1])
            for objectives in (self.runs[index].objectives for index in self.front)
            if objectives
        ]
        if min(on_front) > self.max_loss:
            return (
                f"no setting meets it: every run on the front loses more than {self.max_loss:g} points on the retain"
                f" tasks (max_loss); all runs lose {min(losses):.1f} to {max(losses):.1f}"
            )
        return "no run is called the best: each within max_loss loses as much on the retain as on the forget tasks"

    @property
    def cautions(self) -> list[str]:
        """What speaks against these accuracies: where the model before may be guessing, none of them can show much."""
        nothing_shows = {"forget": "nothing shows there as forgotten", "retain": "no loss shows there"}
        return [
            f"{kind}: the model before is not told from guessing ({of.value:.4f}, guessing gives {of.chance:.4f}), so"
            f" {what}; take tasks that it can do, or more questions"
            for kind, what in nothing_shows.items()
            if (of := getattr(self.base, kind)) is not None and of.low <= of.chance
        ]

    def config_of(self, index: int) -> TrainingConfig:
        """All settings of a run, for `wmdp_fast.unlearn`."""
        return dataclasses.replace(self.config, **self.runs[index].settings)

    def command(self, index: int, output: str = "OUTPUT") -> str | None:
        """The shell command that makes a run's checkpoint, or None.

        There is none if model or corpora were not given by name, or if the method is in no file or module.

        Args:
            index: Of the run.
            output: The folder to write.
        """
        given = self.inputs
        config = self.config_of(index)
        named = given["model"] is not None and None not in given["forget"] and None not in given["retain"]
        method = name_of(type(config))
        if not named or method is None:
            return None
        words = ["wmdp-fast", "unlearn", given["model"]]
        for kind in ("forget", "retain"):
            words += [word for name in given[kind] for word in (f"--{kind}", name)]
        if method != DEFAULT:
            words += ["--method", method]
        settings = _told_settings(config, self.swept)
        if method in METHODS:
            words += as_options(type(config), settings)
        else:
            words += [word for name, value in settings.items() for word in ("--set", f"{name}={value_text(value)}")]
        for name in ("data", "revision", "device", "max_kl", "kl_text", "kl_every", "memory"):
            if given.get(name) is not None:
                words += [f"--{name.replace('_', '-')}", str(given[name])]
        if given.get("stream"):
            words.append("--stream")
        if given["trust_remote_code"]:
            words.append("--trust-remote-code")
        return shlex.join([*words, "--output", output])

    def table(self) -> str:
        """The runs by ascending forget accuracy, with the model before as the last row."""
        measured = ("forget", "95 % interval", "retain", "95 % interval", "lost")
        rows = [(*self.swept, *measured, *self._limited, *self.texts, "")]
        order = sorted(range(len(self.runs)), key=lambda index: (self.runs[index].objectives or (2.0, 0.0), index))
        for index in order:
            run = self.runs[index]
            named = tuple(cell(run.settings[name]) for name in self.swept)
            mark = "best" if index == self.best else "front" if index in self.front else ""
            rows.append((*named, *self._cells(run), mark))
        rows.append((*("" for _ in self.swept), *self._cells(self.base), "before"))
        lines = aligned(rows, "r" * len(rows[0]))
        forget, retain = self.base.forget, self.base.retain
        if forget is not None and retain is not None:
            lines.append(
                f"chance: forget {forget.chance:.4f}, retain {retain.chance:.4f}; forget is {forget.n} questions,"
                f" retain {retain.n}"
            )
        lines += self.cautions
        if self.texts:
            lines.append(f"{', '.join(self.texts)}: word perplexity, lower is better; it decides about no run")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "base": asdict(self.base),
            "runs": [
                {
                    **asdict(run),
                    "front": index in self.front,
                    "best": index == self.best,
                    "command": self.command(index),
                }
                for index, run in enumerate(self.runs)
            ],
            "swept": list(self.swept),
            "settings": self.config.to_json(),
            "inputs": self.inputs,
            "max_loss": self.max_loss,
            "why_no_best": self.why_no_best,
            "cautions": self.cautions,
            "kept": None if self.kept is None else str(self.kept),
        }

    @property
    def _limited(self) -> tuple[str, ...]:
        """The column of the distance from the model before, if that was limited."""
        return ("KL",) if any(run.kl is not None for run in self.runs) else ()

    def _cells(self, run: SweepRun) -> tuple[str, ...]:
        forget, retain, before = run.forget, run.retain, self.base.retain
        if forget is None or retain is None or before is None:
            return ("failed", "", "failed", "", "", *("" for _ in (*self._limited, *self.texts)))
        lost = "" if run is self.base else f"{before.value - retain.value:+.4f}"
        return (
            f"{forget.value:.4f}",
            f"{forget.low:.3f}-{forget.high:.3f}",
            f"{retain.value:.4f}",
            f"{retain.low:.3f}-{retain.high:.3f}",
            lost,
            *("" if run.kl is None else f"{run.kl:.4f}" for _ in self._limited),
            *(number_text(run.scores[name]["word_perplexity"]) for name in self.texts),
        )


def check_max_loss(max_loss: float) -> None:
    """Raises ValueError if it is no number of points from 0 to 100."""
    if not 0 <= max_loss <= 100:
        raise ValueError(f"max_loss must be a number of points of accuracy from 0 to 100, not {max_loss}")


def cell(value: Any) -> str:
    """A setting as text, the values of topics with slashes between."""
    return "/".join(map(cell, value)) if isinstance(value, tuple) else value_text(value)


def _told_settings(config: TrainingConfig, always: Sequence[str]) -> dict[str, Any]:
    """The settings that a command has to give: those that are not the default, and those that were swept."""
    given = {one.name: (getattr(config, one.name), _default(one)) for one in dataclasses.fields(config)}
    given.pop("save_every")
    return {name: value for name, (value, default) in given.items() if value != default or name in always}


def _default(one: dataclasses.Field[Any]) -> Any:
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


def _as_setting(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
