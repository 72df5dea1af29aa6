"""What is measured on the way: when it is due, what follows from it, and the weights that it calls the best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.unlearning import evaluations as measuring

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from wmdp_fast.runtime.clock import PhaseClock
    from wmdp_fast.unlearning.budget import Budget
    from wmdp_fast.unlearning.metrics import Metrics
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.source import Source
    from wmdp_fast.unlearning.state import State
    from wmdp_fast.unlearning.stopping import Scores
    from wmdp_fast.unlearning.trained_weights import TrainedWeights


class EvaluationLoop:
    """The evaluations of a run, and its distance from the original model.

    Args:
        request: What the user asked for: tasks, texts, conditions.
        source: The model.
        weights: What is trained.
        clock: Adds up seconds by phase.
        work: Folder for results, or None.
        total: Steps of the run.

    Attributes:
        evaluations: Of each, its step, scores, numbers of questions, what guessing gives, and where its results are
            kept.
        stopped: Why the run should end, or None.
        budget: Measures the distance from the original model, if that is limited; set once the model is there.
        best: The last step that fulfilled `keep_while` and was within the budget, and its weights; None without either.
    """

    def __init__(
        self,
        request: Request,
        source: Source,
        weights: TrainedWeights,
        clock: PhaseClock,
        work: Path | None,
        total: int,
    ) -> None:
        self._request, self._source, self._weights = request, source, weights
        self._clock, self._work, self._total = clock, work, total
        self.evaluations: list[dict[str, Any]] = []
        self.stopped: str | None = None
        self.budget: Budget | None = None
        self.best: tuple[int, dict[str, Tensor]] | None = None

    def is_due(self, steps: int) -> bool:
        """Whether the model is to be evaluated after so many steps."""
        if not self._request.evaluates:
            return False
        every = self._request.eval_every
        return steps in (0, self._total) or (every is not None and steps % every == 0)

    def measure_kl(self, steps: int) -> float | None:
        """How far the model is from the original after a step, if that is due: with every evaluation, too."""
        if self.budget is None or not (self.budget.is_due(steps) or self.is_due(steps)):
            return None
        with self._clock("measure KL"), self._weights.as_saved():
            return self.budget.measure(steps)

    def look(self, steps: int, metrics: Metrics) -> None:
        """Evaluates after a step if that is due, and decides whether the run goes on."""
        if self.budget is not None and self.budget.is_exceeded():
            self.stopped = self.budget.why_stopped()
        elif self.is_due(steps):
            self.evaluate(steps, metrics)
        elif self.budget is not None and self.budget.is_measured(steps) and not self._request.keep_while:
            self.best = (steps, self._weights.copies())

    def begin(self) -> None:
        """Before the first step the original weights are the best."""
        if self.budget is not None:
            self.best = (0, self._weights.originals)

    def evaluate_best(self, step: int) -> None:
        """Scores the weights that are saved, if they are those of a step that was not evaluated."""
        if self._request.evaluates and self.evaluations[-1]["step"] != step:
            self._measure(step)

    def evaluate(self, steps: int, metrics: Metrics) -> None:
        """Scores the whole model as it is now, and looks at the conditions."""
        scores = self._measure(steps)
        metrics.add({"step": steps, "evaluation": scores})
        self._decide(steps, scores)

    def _measure(self, steps: int) -> Scores:
        """Scores the whole model as it is now."""
        request = self._request
        folder = None if self._work is None else self._work / checkpoint.EVALUATIONS / f"step-{steps}"
        with self._clock("evaluate"), self._weights.as_saved():
            result = measuring.measure(
                self._source,
                request.eval_tasks,
                request.eval_options,
                steps=steps,
                folder=folder,
                samples=request.log_samples,
                texts=request.eval_text,
                progress=request.progress,
            )
        scores = {name: dict(result[name].metrics) for name in result}
        if self._source.shared is not None:
            # The same in all, on the same kind of device: but what is decided by them must be.
            scores = self._source.shared.from_first(scores)
        kept = {} if folder is None else {"results": f"{checkpoint.EVALUATIONS}/{folder.name}"}
        questions = {name: result[name].sample_len for name in result}
        chance = {name: given for name in result if (given := result.chance(name)) is not None}
        self.evaluations.append({"step": steps, "scores": scores, "questions": questions, "chance": chance, **kept})
        shown = ", ".join(f"{task} {metric} {value:.3f}" for task, of in scores.items() for metric, value in of.items())
        request.note(f"step {steps}: {shown}")
        return scores

    def restore(self, state: State) -> None:
        """Takes over what a run had evaluated before it was interrupted."""
        self.evaluations = list(state.evaluations)
        if state.best_step is not None:
            device, parameters = self._weights.device, self._weights.parameters
            self.best = (state.best_step, {name: state.tensors[f"best.{name}"].to(device) for name in parameters})
        if self.budget is not None:
            self.budget.measured = list(state.kl)
            if self.budget.is_exceeded():
                self.stopped = self.budget.why_stopped()
                return
        # A run that was stopped by its conditions and then could not write: look at them once more.
        if self.evaluations and self.evaluations[-1]["step"] == state.step > 0:
            scores, before = self.evaluations[-1]["scores"], self.evaluations[0]["scores"]
            if self._broken(scores, before) or self._has_reached_its_goal(scores, before):
                self.stopped = f"at step {state.step}"

    def take_best(self, steps: int) -> int:
        """Puts the weights of the best step into the model, and returns its number."""
        if self.best is None or self.best[0] == steps:
            return steps
        best_step, weights = self.best
        self._weights.put(weights)
        # What was evaluated after it belongs to weights that are gone.
        self.evaluations = [one for one in self.evaluations if one["step"] <= best_step]
        return best_step

    def _decide(self, steps: int, scores: Scores) -> None:
        before = self.evaluations[0]["scores"]
        if broken := self._broken(scores, before):
            self.stopped = f"at step {steps} no longer {broken[0]}"
            return
        if self._request.keep_while or self.budget is not None:
            self.best = (steps, self._weights.copies())
        if steps and self._has_reached_its_goal(scores, before):
            self.stopped = f"at step {steps} {' and '.join(one.text for one in self._request.stop_when)}"

    def _broken(self, scores: Scores, before: Scores) -> list[str]:
        return [one.text for one in self._request.keep_while if not one.holds(scores, before)]

    def _has_reached_its_goal(self, scores: Scores, before: Scores) -> bool:
        goal = self._request.stop_when
        return bool(goal) and all(one.holds(scores, before) for one in goal)
