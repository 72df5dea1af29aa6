"""A run, once everything is read: the loop around a method's steps."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.exceptions import DivergedError, InternalError, WmdpFastWarning
from wmdp_fast.models.row_length import fresh_rotary
from wmdp_fast.models.threads import computing, only_user
from wmdp_fast.models.vocabulary import refuse_unknown_in_corpus
from wmdp_fast.runtime.own_code import own_code
from wmdp_fast.runtime.progress import Bar, progress_bar
from wmdp_fast.unlearning import divergence, output, reporting
from wmdp_fast.unlearning.adapter import weights_of
from wmdp_fast.unlearning.batch_reader import BatchReader
from wmdp_fast.unlearning.budget import Budget
from wmdp_fast.unlearning.document_lengths import longest_document
from wmdp_fast.unlearning.evaluation_loop import EvaluationLoop
from wmdp_fast.unlearning.memory_plan import layers_below
from wmdp_fast.unlearning.method import MethodState, Setup, StepInput
from wmdp_fast.unlearning.metrics import Metrics
from wmdp_fast.unlearning.optim import optimizer_of, update
from wmdp_fast.unlearning.padding import why_padded
from wmdp_fast.unlearning.parameters import told, trained_parameters
from wmdp_fast.unlearning.result import UnlearnResult
from wmdp_fast.unlearning.source import asked_how, steps_available, tokens_digest
from wmdp_fast.unlearning.state import State, load_state, save_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from wmdp_fast.checkpoints.shard_copies import ShardCopies
    from wmdp_fast.runtime.clock import PhaseClock
    from wmdp_fast.unlearning.activation_cache import TrunkCache
    from wmdp_fast.unlearning.layers_below import LayersBelow
    from wmdp_fast.unlearning.method import Findings, Method
    from wmdp_fast.unlearning.optim import AdamW
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.source import Corpora, Source
    from wmdp_fast.unlearning.training_config import TrainingConfig


# How names of tensors in a state begin that are not the method's.
_OURS = ("weights.", "first.", "second.", "master.", "best.")

# Where in the working folder shards are copied to.
_SHARDS = "shards"


class Run:
    """The run itself, once everything is read.

    Args:
        request: What the user asked for.
        source: The model.
        corpora: The tokens.
        clock: Adds up seconds by phase.
        target: Folder to write the new checkpoint to, or None.
        work: Folder for metrics and state, or None.
        cache: Where activations are kept that training does not change.
        after_step: Called after each step with the number of steps done, while the model has their weights.
        at_end: Called with the finished run, while the model has the weights that it ended with, as they are saved.

    Attributes:
        last_measures: What the last step measured, by the names of the metrics.
        total_steps: Steps of the run; fewer than were asked for if the corpora end before.
    """

    def __init__(
        self,
        request: Request,
        source: Source,
        corpora: Corpora,
        clock: PhaseClock,
        target: Path | None,
        work: Path | None,
        cache: TrunkCache | None = None,
        after_step: Callable[[int], None] | None = None,
        at_end: Callable[[UnlearnResult], None] | None = None,
    ) -> None:
        self._request, self._source, self._corpora, self._clock = request, source, corpora, clock
        self._cache, self._after_step = cache, after_step or (lambda _steps: None)
        self._is_scored = request.evaluates or after_step is not None
        self._at_end = at_end or (lambda _result: None)
        self._config, self._target, self._work = request.config, target, work
        self.last_measures: dict[str, float] = {}
        decoder, config = source.decoder, request.config
        config.check_depth(source.name, source.num_layers)
        for corpus in (*corpora.forget, *corpora.retain):
            refuse_unknown_in_corpus(decoder.model, source.tokenizer, corpus)
        self._picked = trained_parameters(config, decoder, source.whole, source.num_layers)
        self._weights = weights_of(config, self._picked, source)
        self._largest_weight = 0.0
        self._saved_step = 0
        for line in told(self._picked, config.lora):
            request.note(line)
        for name in dict.fromkeys(one.name for one in (*corpora.forget, *corpora.retain) if one.kind == "answers"):
            request.note(f"{name}: prompts with responses, of which the responses count in the loss")
        if config.master_weights and self._weights.narrow:
            request.note(
                f"the optimizer keeps weights and moments in float32: steps in {self._weights.narrow} alone would leave"
                " most weights as they are"
            )
        self.total_steps = self._count_steps()
        self._longest = longest_document(config, request.topics, corpora, decoder.model)
        self._batches = BatchReader(
            forget_corpora=corpora.forget,
            retain_corpora=corpora.retain,
            max_lengths=[topic.max_length for topic in request.topics],
            retain_max_length=config.retain_max_length,
            batch_size=config.batch_size,
            grad_accum=config.grad_accum,
            pad_id=source.pad_id,
            device=self._weights.device,
        )
        self._evaluations = EvaluationLoop(request, source, self._weights, clock, work, self.total_steps)
        self._method: Method | None = None

    def result(self, *, resume: bool) -> UnlearnResult:
        """Trains, evaluates, writes, and puts the model's flags back."""
        model = self._weights.model
        below = self._layers_below()
        # What is a part of a model in each of several processes is nothing to go on with.
        keep = self._source.shared is None
        with only_user(model), fresh_rotary(model), self._weights.in_model(keep=keep):
            setup = Setup(
                name=self._source.name,
                decoder=self._source.decoder,
                model=self._source.whole,
                trained=self._weights.parameters,
                originals=self._weights.originals,
                as_original=self._weights.as_original,
                batches=self._batches,
                total_steps=self.total_steps,
                cache=self._cache,
                tokenizer=self._source.tokenizer,
                below=below,
                shared=self._source.shared,
            )
            self._method = method = self._config.method(setup)
            if self._request.budget is not None and self._corpora.general is not None:
                self._evaluations.budget = Budget(self._request.budget, self._corpora.general, setup)
            self._batches.packed = self._can_pack(method)
            result = self._trained_result(method, resume=resume)
        if self._cache is not None:
            self._request.note(self._cache.summary())
        return result

    def findings(self, steps: int) -> Findings:
        """What the method finds after so many steps, with the weights as they are.

        Raises:
            DivergedError: Some of it is infinite or NaN.
        """
        if self._method is None:
            raise RuntimeError("the run has not begun")
        found = self._method.findings(steps)
        divergence.check_findings(self._source.name, steps, found.figures, self._config, self._weights.dtype)
        return found

    def as_saved(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that would be saved now: what is measured is what others will load."""
        return self._weights.as_saved()

    def _trained_result(self, method: Method, *, resume: bool) -> UnlearnResult:
        config = self._config
        # Of a method that changes the weights itself, the optimizer only counts the steps.
        optimized = {} if config.one_shot else self._weights.parameters
        optimizer = optimizer_of(config, optimized)
        identity = self._identity(method)
        state = load_state(self._work, identity) if resume and self._work is not None else None
        if self._source.shared is not None:
            # The others have no working folder.
            state = self._source.shared.from_first(state)
        begun = time.perf_counter()
        if state is None:
            method.prepare()
            self._evaluations.begin()
        else:
            self._restore(state, optimizer, method)
            begun -= state.seconds
            self._request.note(f"resuming after step {state.step}")
        if (line := method.describe()) is not None:
            self._request.note(line)
        trackers = reporting.open_trackers(
            self._request.report_to, self._target.name if self._target else "unlearn", config.to_json()
        )
        metrics = Metrics(self._work, optimizer.steps, trackers)

        def save() -> None:
            if self._work is not None:
                with self._clock("save state"):
                    self._save(self._work, optimizer, method, identity, time.perf_counter() - begun)

        with self._shard_copies() as copies:
            try:
                self._train(method, optimizer, metrics, save)
            finally:
                metrics.close()
            return self._finished(method, optimizer.steps, metrics, copies)

    @contextlib.contextmanager
    def _shard_copies(self) -> Iterator[ShardCopies | None]:
        """Inside, the shards that the run changes are copied, to be there when it is done."""
        copies = None
        if self._target is not None and self._work is not None:
            copies = self._weights.shard_copies(self._work / _SHARDS)
        try:
            yield copies
        finally:
            if copies is not None:
                copies.close()

    def _train(self, method: Method, optimizer: AdamW, metrics: Metrics, save: Callable[[], None]) -> None:
        every, evaluations = self._config.save_every, self._evaluations
        if evaluations.is_due(0) and not evaluations.evaluations:
            evaluations.evaluate(0, metrics)
        with self._bar(optimizer.steps) as bar:
            while optimizer.steps < self.total_steps and evaluations.stopped is None:
                with self._clock("steps"):
                    row = self._step(method, optimizer)
                self._measure_kl(row)
                metrics.add(row)
                self._check(row["step"])
                shown = {name.removesuffix("_loss"): f"{row[name]:.4g}" for name in method.metrics[:2]}
                bar.set_postfix(refresh=False, **shown)
                bar.update()
                self._after_step(optimizer.steps)
                evaluations.look(optimizer.steps, metrics)
                if every and optimizer.steps % every == 0:
                    save()
        if every and optimizer.steps % every:
            save()

    def _step(self, method: Method, optimizer: AdamW) -> dict[str, Any]:
        """One step and the numbers to watch."""
        config, done = self._config, optimizer.steps
        begun = time.perf_counter()
        topic, pairs = self._batches.pairs(done)
        with computing(), self._weights.training(done, config.seed):
            made = method.step(StepInput(done, topic, pairs))
        norm = update(optimizer, made.gradients, config, total_steps=self.total_steps, device=self._weights.device)
        largest = divergence.largest_weight(self._weights.parameters.values())
        # One copy from the device.
        *values, self._largest_weight = torch.cat([made.measured, norm.reshape(1), largest.reshape(1)]).tolist()
        self.last_measures = dict(zip((*method.metrics, "grad_norm"), values, strict=True))
        seconds = time.perf_counter() - begun
        tokens = made.tokens
        if tokens is None:
            tokens = sum(forget.num_tokens + retain.num_tokens for forget, retain in pairs)
        return {
            "step": optimizer.steps,
            "topic": topic,
            **self.last_measures,
            **({} if config.one_shot else {"learning_rate": optimizer.learning_rate}),
            "seconds": round(seconds, 6),
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "peak_memory_mb": round(reporting.peak_memory(self._weights.device), 1),
        }

    def _finished(self, method: Method, steps: int, metrics: Metrics, copies: ShardCopies | None) -> UnlearnResult:
        """Takes the best weights as they are saved, and writes them."""
        best_step = self._evaluations.take_best(steps)
        self._evaluations.evaluate_best(best_step)
        saving = self._weights.round()
        findings = self.findings(best_step)
        if best_step == 0 < steps:
            findings = replace(findings, verdict=_went_back(self._config, self._evaluations.budget is not None))
        with self._clock("write"):
            result = UnlearnResult(
                config=self._config,
                steps=steps,
                best_step=best_step,
                stopped=self._evaluations.stopped,
                picked=tuple(map(str, self._picked)),
                findings=findings,
                saving=saving,
                tensors=self._weights.changed(saving),
                metrics=metrics.rows,
                evaluations=self._evaluations.evaluations,
                seconds=self._clock.seconds,
                model=None if self._source.shared is not None else self._source.whole,
                output=self._target,
                budget=None if self._evaluations.budget is None else self._evaluations.budget.to_json(best_step),
            )
            if self._target is not None:
                self._write(self._target, method, result, copies)
        self._at_end(result)
        return result

    def _write(self, target: Path, method: Method, result: UnlearnResult, copies: ShardCopies | None) -> None:
        packed = self._batches.packed
        record = output.run_record(
            result, method, self._request, self._source, self._corpora, self._weights, self._cache, packed=packed
        )
        output.write(target, result, record, self._source, self._weights, method.card(record), self._work, copies)

    def _layers_below(self) -> LayersBelow | None:
        """The layers that are not in memory, with the memory that they may take, which the run says."""
        source = self._source
        if source.streamed is None:
            return None
        pairs = (pair for step in range(self.total_steps) for pair in self._batches.pairs(step)[1])
        batches = (batch for pair in pairs for batch in pair)
        found = layers_below(source.streamed, self._config, self._weights, batches, source.held, scored=self._is_scored)
        self._request.note(found.about)
        return found

    def _count_steps(self) -> int:
        config = self._config
        available = steps_available(config, self._corpora)
        if available < config.max_steps:
            warnings.warn(
                f"the corpora last for {available} steps, not {config.max_steps}: add documents, or raise epochs",
                WmdpFastWarning,
                stacklevel=2,
            )
        return min(config.max_steps, available)

    def _check(self, step: int) -> None:
        """Raises DivergedError if the last step has no numbers any more."""
        name, dtype = self._source.name, self._weights.dtype
        with self._saying_what_is_kept():
            divergence.check_step(name, step, self.last_measures, self._largest_weight, self._config, dtype)

    def _measure_kl(self, row: dict[str, Any]) -> None:
        """Adds to the numbers of a step how far it is from the original model, if that is due and there are numbers."""
        if not math.isfinite(self._largest_weight):
            return
        with self._saying_what_is_kept():
            if (kl := self._evaluations.measure_kl(row["step"])) is not None:
                row["kl"] = kl

    @contextlib.contextmanager
    def _saying_what_is_kept(self) -> Iterator[None]:
        """Says, if the run diverges inside, what is kept of the steps before."""
        try:
            yield
        except DivergedError as error:
            if self._saved_step and self._work is not None:
                error.add_note(
                    f"the state after step {self._saved_step} is kept in {self._work}; the same settings would diverge"
                    f" again from there. max_steps {self._saved_step} gives the checkpoint of that step; remove the"
                    " folder to start over with other settings"
                )
            raise

    def _can_pack(self, method: Method) -> bool:
        """Whether documents are run without padding; if they are not, although the loss leaves it out, says why."""
        if self._config.reference:
            return False
        reason = why_padded(method, self._source.decoder.model, self._batches, self._longest)
        if reason is not None:
            self._request.note(f"documents are padded: {reason}")
        return reason is None

    def _bar(self, done: int) -> Bar:
        return progress_bar(
            what="unlearning", unit="step", total=self.total_steps, done=done, shown=self._request.progress
        )

    def _identity(self, method: Method) -> dict[str, Any]:
        """What two runs must agree in for one to go on where the other stopped."""
        config, budget = self._config, self._request.budget
        settings = config.to_json()
        settings.pop("save_every")
        return {
            "method": config.method_name,
            "settings": settings,
            "weights": self._weights.digest(),
            "forget corpora": [tokens_digest(corpus) for corpus in self._corpora.forget],
            "retain corpora": [tokens_digest(corpus) for corpus in self._corpora.retain],
            "number of steps": self.total_steps,
            "evaluations": [self._request.eval_tasks, self._request.eval_every, asked_how(self._request)],
            # A state of a run without texts, or with a method of this package, does not name them.
            **({"code of the method": code} if (code := [one["sha256"] for one in own_code(config, method)]) else {}),
            **({} if budget is None else {"max_kl": budget.identity}),
            **({"texts": texts} if (texts := [text.content_hash for text in self._request.eval_text]) else {}),
        }

    def _save(self, work: Path, optimizer: AdamW, method: Method, identity: dict[str, Any], seconds: float) -> None:
        config, trained, remembered = self._config, self._weights.parameters, method.state()
        tensors: dict[str, Tensor] = {f"weights.{name}": parameter for name, parameter in trained.items()}
        tensors |= optimizer.state
        best_step = None
        if self._evaluations.best is not None:
            best_step, weights = self._evaluations.best
            tensors |= {f"best.{name}": tensor for name, tensor in weights.items()}
        if taken := [name for name in remembered.tensors if name.startswith(_OURS)]:
            raise InternalError(f"{config.method_name} may not call a tensor {taken[0]}")
        tensors |= remembered.tensors
        evaluations, budget = self._evaluations.evaluations, self._evaluations.budget
        kl = [] if budget is None else budget.measured
        state = State(optimizer.steps, tensors, remembered.values, evaluations, best_step, seconds, kl)
        save_state(work, state, identity)
        self._saved_step = state.step

    def _restore(self, state: State, optimizer: AdamW, method: Method) -> None:
        optimizer.steps = self._saved_step = state.step
        self._weights.put({name: state.tensors[f"weights.{name}"] for name in self._weights.parameters})
        for name, tensor in optimizer.state.items():
            tensor.copy_(state.tensors[name])
        tensors = {name: tensor for name, tensor in state.tensors.items() if not name.startswith(_OURS)}
        method.restore(MethodState(tensors=tensors, values=state.method))
        self._evaluations.restore(state)


def _went_back(config: TrainingConfig, budget: bool) -> str:
    """What is wrong with a run whose weights are the original ones again, whatever its steps would have done."""
    every = "--kl-every" if budget else "--eval-every"
    remedy = f"Lower the learning rate, or measure more often ({every})"
    if config.one_shot:
        remedy = f"Take other settings of {config.method_name}, with which weights change less"
    return (
        "no step was within the limits that are set, so the weights are the original model's: nothing was unlearned."
        f" {remedy}"
    )
