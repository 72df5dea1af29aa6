"""A run of RMU, once everything is read: the loop."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wmdp_fast.checkpoints import tensor_file
from wmdp_fast.exceptions import DivergedError, ModelError, WmdpFastWarning
from wmdp_fast.models.row_length import fresh_rotary, length_rules
from wmdp_fast.models.threads import computing, only_user
from wmdp_fast.models.vocabulary import refuse_unknown_in_corpus
from wmdp_fast.runtime.progress import Bar, progress_bar
from wmdp_fast.scoring.trie import why_not
from wmdp_fast.unlearning import divergence, output, reporting
from wmdp_fast.unlearning.batches import Batch, lengths_by_batch, num_batches, packed_documents, padded_documents
from wmdp_fast.unlearning.evaluation_loop import EvaluationLoop
from wmdp_fast.unlearning.metrics import Metrics
from wmdp_fast.unlearning.optim import AdamW
from wmdp_fast.unlearning.parameters import select_parameters
from wmdp_fast.unlearning.preflight import check_depth
from wmdp_fast.unlearning.result import UnlearnResult
from wmdp_fast.unlearning.rmu.branches import Branches
from wmdp_fast.unlearning.rmu.effect import effect_of
from wmdp_fast.unlearning.rmu.step import (
    MEASURES,
    Step,
    clip_gradients,
    control_vectors,
    gradient_norm,
    mean_norm,
    retain_noise,
)
from wmdp_fast.unlearning.source import steps_available
from wmdp_fast.unlearning.state import State, load_state, save_state
from wmdp_fast.unlearning.trained_weights import TrainedWeights, as_found

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from wmdp_fast.prompts.documents import CorpusTokens
    from wmdp_fast.runtime.clock import PhaseClock
    from wmdp_fast.unlearning.activation_cache import TrunkCache
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.rmu.effect import Effect
    from wmdp_fast.unlearning.source import Corpora, Source


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

    Attributes:
        steering_coeffs: Of each topic, once the first step is done.
        last_measures: What the last step measured, by the names of the metrics.
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
    ) -> None:
        self._request, self._source, self._corpora, self._clock = request, source, corpora, clock
        self._cache, self._after_step = cache, after_step or (lambda _steps: None)
        self._config, self._target, self._work = request.config, target, work
        self._topics = request.topics
        self.steering_coeffs: list[float] = []
        self.last_measures: dict[str, float] = {}
        decoder, config = source.decoder, request.config
        check_depth(source.name, source.num_layers, config)
        for corpus in (*corpora.forget, *corpora.retain):
            refuse_unknown_in_corpus(decoder.model, source.tokenizer, corpus)
        self._picked = select_parameters(decoder.layers, decoder.prefix, config.updated_layers, config.parameters)
        trained = {one.name: one.parameter for one in self._picked}
        self._weights = TrainedWeights(trained, source, config.save_dtype)
        self._device, self._dtype = self._weights.device, self._weights.dtype
        self._largest_weight = 0.0
        self._saved_step = 0
        request.note("training:")
        for one in self._picked:
            request.note(f"  {one}")
        _warn_of_dropout(decoder.model)
        self._total = self._count_steps()
        self._longest = self._longest_document()
        self._evaluations = EvaluationLoop(request, source, self._weights, clock, work, self._total)
        self._packed = False  # whether documents are run without padding
        self._branches: Branches | None = None
        self._control_vectors: list[Tensor] = []

    def result(self, *, resume: bool) -> UnlearnResult:
        """Trains, evaluates, writes, and puts the model's flags back."""
        model = self._source.whole or self._source.decoder.model
        with only_user(model), fresh_rotary(model), as_found(model, self._weights.parameters):
            branches = Branches(self._source.decoder, self._config.layer_id, self._weights.parameters, self._cache)
            branches.originals = self._weights.originals  # one copy is enough
            self._branches = branches
            self._packed = self._can_pack(branches)
            try:
                result = self._trained_result(branches, resume=resume)
            except BaseException:
                self._weights.put_back()
                raise
        if self._cache is not None:
            self._request.note(self._cache.summary())
        return result

    def _trained_result(self, branches: Branches, *, resume: bool) -> UnlearnResult:
        config, clock = self._config, self._clock
        optimizer = AdamW(self._weights.parameters, config.learning_rate, master_weights=config.master_weights)
        identity = self._identity()
        state = load_state(self._work, identity) if resume and self._work is not None else None
        begun = time.perf_counter()
        before = 0.0
        if state is None:
            coefficients, controls = self._controls(branches)
            divergence.check_base(self._source.name, coefficients, self._dtype)
        else:
            coefficients = state.steering_coeffs
            controls = [state.tensors[f"control.{topic}"].to(self._device) for topic in range(len(self._topics))]
            self._restore(state, optimizer)
            before = state.seconds
            self._request.note(f"resuming after step {state.step}")
        self.steering_coeffs, self._control_vectors = coefficients, controls
        self._request.note("steering coefficients: " + ", ".join(f"{value:.4g}" for value in coefficients))

        trackers = reporting.open_trackers(
            self._request.report_to, self._target.name if self._target else "unlearn", config.to_json()
        )
        metrics = Metrics(self._work, optimizer.steps, trackers)
        step = Step(branches, self._weights.parameters, masked=config.mode == "masked")

        def save() -> None:
            if self._work is not None:
                spent = before + time.perf_counter() - begun
                with clock("save state"):
                    self._save(optimizer, controls, coefficients, identity, spent)

        try:
            if self._evaluations.is_due(0) and not self._evaluations.evaluations:
                self._evaluations.evaluate(0, metrics)
            with self._bar(optimizer.steps) as bar:
                while optimizer.steps < self._total and self._evaluations.stopped is None:
                    with clock("steps"):
                        row = self._step(step, optimizer, controls)
                    metrics.add(row)
                    self._check(row["step"])
                    bar.set_postfix(
                        forget=f"{row['forget_loss']:.4g}", retain=f"{row['retain_loss']:.4g}", refresh=False
                    )
                    bar.update()
                    self._after_step(optimizer.steps)
                    if self._evaluations.is_due(optimizer.steps):
                        self._evaluations.evaluate(optimizer.steps, metrics)
                    if config.save_every and optimizer.steps % config.save_every == 0:
                        save()
            if config.save_every and optimizer.steps % config.save_every:
                save()
        finally:
            metrics.close()
        best_step = self._evaluations.take_best(optimizer.steps)
        saving = self._weights.round()
        effects = self.effects(best_step)
        with clock("write"):
            result = UnlearnResult(
                config=config,
                steps=optimizer.steps,
                best_step=best_step,
                stopped=self._evaluations.stopped,
                picked=tuple(map(str, self._picked)),
                steering_coeffs=tuple(coefficients),
                effects=effects,
                saving=saving,
                control_vectors=tuple(vector.cpu() for vector in controls),
                tensors=self._weights.changed(saving),
                metrics=metrics.rows,
                evaluations=self._evaluations.evaluations,
                seconds=clock.seconds,
                model=self._source.whole,
                output=self._target,
            )
            if self._target is not None:
                self._write(self._target, result)
        return result

    def _write(self, target: Path, result: UnlearnResult) -> None:
        record = output.run_record(
            result, self._request, self._source, self._corpora, self._weights, self._cache, packed=self._packed
        )
        output.write(target, result, record, self._source, self._weights, self._work)

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

    def _longest_document(self) -> int:
        """Most tokens of a document.

        Raises:
            ModelError: Rotary angles of documents would depend on which others are in their batch, or came before.
        """
        config, model = self._config, self._source.decoder.model
        corpora = [
            *(
                (corpus, topic.max_length, "max_length")
                for corpus, topic in zip(self._corpora.forget, self._topics, strict=True)
            ),
            *((corpus, config.retain_max_length, "retain_max_length") for corpus in self._corpora.retain),
        ]
        longest = 0
        for corpus, max_length, option in corpora:
            batches = [
                one for one in lengths_by_batch(corpus, batch_size=config.batch_size, max_length=max_length) if one
            ]
            longest = max(longest, *map(max, batches))
            for rule in length_rules(model, longest):
                beyond = [lengths for lengths in batches if max(lengths) > rule.trained]
                advice = f"lower {option} to {rule.trained}"
                if beyond and rule.kind == "dynamic":
                    raise ModelError(
                        f"{corpus.name}: rotary angles ({rule.kind}) of documents of more than {rule.trained} tokens"
                        f" depend on those of earlier batches; {advice}"
                    )
                if config.mode == "masked" and any(min(lengths) <= rule.trained for lengths in beyond):
                    raise ModelError(
                        f"{corpus.name}: one document of more than {rule.trained} tokens changes the rotary angles"
                        f" ({rule.kind}) of all in its batch; {advice}, or take mode reference, which does so as the"
                        " original RMU does"
                    )
        return longest

    def _controls(self, branches: Branches) -> tuple[list[float], list[Tensor]]:
        """Steering coefficients, and control vectors times these."""
        units = control_vectors(
            len(self._topics),
            self._source.decoder.hidden_size,
            dtype=self._dtype,
            seed=self._config.seed,
        )
        coefficients = []
        for index, topic in enumerate(self._topics):
            if topic.steering_coeff is not None:
                coefficients.append(float(topic.steering_coeff))
                continue
            batch = self._batch(self._corpora.forget[index], 0, topic.max_length)
            with computing():
                activations = branches.frozen(branches.trunk(batch))
            coefficients.append(topic.auto_factor * mean_norm(activations, batch.attention_mask))
        return coefficients, [
            (unit * coefficient).to(self._device) for unit, coefficient in zip(units, coefficients, strict=True)
        ]

    def _step(self, step: Step, optimizer: AdamW, controls: Sequence[Tensor]) -> dict[str, Any]:
        """One optimizer step and the numbers to watch."""
        config, done = self._config, optimizer.steps
        begun = time.perf_counter()
        topic, turn = done % len(self._topics), done // len(self._topics)
        pairs = []
        for part in range(config.grad_accum):
            index = turn * config.grad_accum + part
            forget, retain = self._corpora.forget[topic], self._corpora.retain[topic]
            pairs.append(
                (
                    self._batch(forget, index, self._topics[topic].max_length),
                    self._batch(retain, index, config.retain_max_length),
                )
            )
        with computing():
            gradients, measured = step.losses_and_gradients(
                pairs, controls[topic], self._topics[topic].alpha, noise=self._noise(pairs, done)
            )
        norm = gradient_norm(gradients)
        if config.grad_clip is not None:
            clip_gradients(gradients, norm, config.grad_clip)
        optimizer.step(gradients)
        largest = divergence.largest_weight(self._weights.parameters.values())
        # One copy from the device.
        *values, self._largest_weight = torch.cat([measured, norm.reshape(1), largest.reshape(1)]).tolist()
        self.last_measures = dict(zip((*MEASURES, "grad_norm"), values, strict=True))
        seconds = time.perf_counter() - begun
        tokens = sum(forget.num_tokens + retain.num_tokens for forget, retain in pairs)
        return {
            "step": optimizer.steps,
            "topic": topic,
            **self.last_measures,
            "seconds": round(seconds, 6),
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "peak_memory_mb": round(reporting.peak_memory(self._device), 1),
        }

    def _check(self, step: int) -> None:
        """Raises if the last step has no numbers any more, and says what is kept of the steps before."""
        try:
            divergence.check_step(
                self._source.name, step, self.last_measures, self._largest_weight, self._config, self._dtype
            )
        except DivergedError as error:
            if self._saved_step and self._work is not None:
                error.add_note(
                    f"the state after step {self._saved_step} is kept in {self._work}; the same settings would diverge"
                    f" again from there. max_steps {self._saved_step} gives the checkpoint of that step; remove the"
                    " folder to begin anew with other settings"
                )
            raise

    def _noise(self, pairs: Sequence[tuple[Batch, Batch]], step: int) -> list[Tensor] | None:
        if self._config.retain_noise == 0.0:
            return None
        width = self._source.decoder.hidden_size
        return [
            self._config.retain_noise
            * retain_noise(torch.Size((*retain.shape, width)), seed=self._config.seed, step=step, part=part)
            for part, (_, retain) in enumerate(pairs)
        ]

    def _batch(self, corpus: CorpusTokens, index: int, max_length: int, *, packed: bool | None = None) -> Batch:
        size, packed = self._config.batch_size, self._packed if packed is None else packed
        index %= num_batches(corpus, size)
        if packed:
            return packed_documents(corpus, index, batch_size=size, max_length=max_length, device=self._device)
        pad_id = self._source.pad_id
        return padded_documents(
            corpus, index, batch_size=size, max_length=max_length, pad_id=pad_id, device=self._device
        )

    def _can_pack(self, branches: Branches) -> bool:
        """Whether documents are run without padding; if they are not, although the loss leaves it out, says why."""
        if self._config.mode == "reference":
            return False
        reason = self._why_padded(branches)
        if reason is not None:
            self._request.note(f"documents are padded: {reason}")
        return reason is None

    def _why_padded(self, branches: Branches) -> str | None:
        if reason := why_not(self._source.decoder.model, self._longest, arguments=("position_ids",)):
            return reason
        corpus, length = self._corpora.forget[0], self._topics[0].max_length
        padded, packed = (self._batch(corpus, 0, length, packed=packed) for packed in (False, True))
        with computing():
            return branches.why_not_packed(padded, packed)

    def _bar(self, done: int) -> Bar:
        return progress_bar(what="unlearning", unit="step", total=self._total, done=done, shown=self._request.progress)

    def _identity(self) -> dict[str, Any]:
        """What two runs must agree in for one to go on where the other stopped."""
        settings = self._config.to_json()
        settings.pop("save_every")
        return {
            "settings": settings,
            "weights": tensor_file.digest(
                {name: tensor_file.as_bytes(tensor) for name, tensor in self._weights.originals.items()}
            ),
            "forget corpora": [corpus.content_hash for corpus in self._corpora.forget],
            "retain corpora": [corpus.content_hash for corpus in self._corpora.retain],
            "number of steps": self._total,
            "evaluations": [self._request.eval_tasks, self._request.eval_every],
            # A state of a run without texts does not name them.
            **({"texts": texts} if (texts := [text.content_hash for text in self._request.eval_text]) else {}),
        }

    def _save(
        self,
        optimizer: AdamW,
        controls: Sequence[Tensor],
        coefficients: Sequence[float],
        identity: dict[str, Any],
        seconds: float,
    ) -> None:
        tensors: dict[str, Tensor] = {
            f"weights.{name}": parameter for name, parameter in self._weights.parameters.items()
        }
        tensors |= optimizer.state
        tensors |= {f"control.{index}": vector for index, vector in enumerate(controls)}
        best_step = None
        if self._evaluations.best is not None:
            best_step, weights = self._evaluations.best
            tensors |= {f"best.{name}": tensor for name, tensor in weights.items()}
        state = State(optimizer.steps, tensors, list(coefficients), self._evaluations.evaluations, best_step, seconds)
        if self._work is not None:
            save_state(self._work, state, identity)
            self._saved_step = state.step

    def _restore(self, state: State, optimizer: AdamW) -> None:
        optimizer.steps = self._saved_step = state.step
        self._weights.put({name: state.tensors[f"weights.{name}"] for name in self._weights.parameters})
        for name, tensor in optimizer.state.items():
            tensor.copy_(state.tensors[name])
        self._evaluations.restore(state)

    def effects(self, steps: int) -> tuple[Effect, ...]:
        """How activations of each topic differ from those of the model before, with the weights as they are.

        Args:
            steps: How many have been done: documents beyond theirs are taken, if there are any.

        Raises:
            DivergedError: They are infinite or NaN.
        """
        if self._branches is None:
            raise RuntimeError("the run has not begun")
        found = []
        for topic, (forget, retain) in enumerate(zip(self._corpora.forget, self._corpora.retain, strict=True)):
            turns = -(-(steps - topic) // len(self._topics)) if steps > topic else 0
            following = turns * self._config.grad_accum
            unseen = following < num_batches(forget, self._config.batch_size)
            index = following if unseen else following - 1
            batches = [
                self._batch(forget, index, self._topics[topic].max_length, packed=False),
                self._batch(retain, index, self._config.retain_max_length, packed=False),
            ]
            pairs = [self._branches.now_and_before(batch) for batch in batches]
            masks = [batch.attention_mask for batch in batches]
            control = self._control_vectors[topic]
            found.append(effect_of(topic, control, pairs[0], masks[0], pairs[1], masks[1], unseen=unseen))
        divergence.check_effects(self._source.name, steps, found, self._config, self._dtype)
        return tuple(found)

    def as_saved(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that would be saved now: what is measured is what others will load."""
        return self._weights.as_saved()


def _warn_of_dropout(model: nn.Module) -> None:
    """The branches share what dropout would make different, so it stays off, unlike in the original."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        warnings.warn(
            "the model has dropout, which the original RMU would leave on; here it is off",
            WmdpFastWarning,
            stacklevel=2,
        )
