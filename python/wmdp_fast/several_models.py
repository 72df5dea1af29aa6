"""Several models in one process: `evaluate_many`, which starts, reads questions and tokenizes once for all of them."""

from __future__ import annotations

import gc
import os
import re
import traceback
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.read_ahead import read_ahead
from wmdp_fast.checkpoints.weight_files import ADAPTER_CONFIG, CONFIG
from wmdp_fast.evaluation import model_named_first
from wmdp_fast.evaluation_run import Evaluation, Keeping, has_results
from wmdp_fast.exceptions import WmdpFastError
from wmdp_fast.models.adapter_base import AdapterBase
from wmdp_fast.models.kept_tokenizer import KeptTokenizer
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.results.paths import names_a_file, output_folder, sanitize_model_name
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.runtime.files import check_folder
from wmdp_fast.runtime.ranks import place_of_process
from wmdp_fast.runtime.tables import aligned, number_text
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions
from wmdp_fast.scoring.model_source import model_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from wmdp_fast._rust import ReadAhead
    from wmdp_fast.checkpoints.lower_layers import StoredWeights
    from wmdp_fast.results.result import EvalResult
    from wmdp_fast.results.saved import SavedResults
    from wmdp_fast.scoring.backend import Backend
    from wmdp_fast.scoring.model_source import ModelSource, OnTokenizer
    from wmdp_fast.scoring.trunk import SharedTrunk

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class ModelSpec:
    """One of several models.

    Attributes:
        model: A folder or a name on the hub, or `BASE+DELTA`.
        revision: Commit, branch or tag on the hub.
        peft: A PEFT adapter to put on it.

    Example:
        >>> from wmdp_fast import ModelSpec
        >>> print(ModelSpec("owner/model", revision="step1000"))
        owner/model@step1000
    """

    model: str | PathLike[str]
    revision: str | None = None
    peft: str | PathLike[str] | None = None

    def __str__(self) -> str:
        name = os.fspath(self.model)
        name += f"@{self.revision}" if self.revision else ""
        return name + (f" + {os.fspath(self.peft)}" if self.peft else "")


@dataclass(frozen=True)
class ScoredModel:
    """What came of one of several models: a result or an error.

    Attributes:
        spec: The model.
        result: Its numbers, those of a call of `evaluate` by itself; `SavedResults`, indexed in the same way, if they
            are of an earlier run that `resume` has found finished; None if it failed.
        error: Why it failed, or None.

    Example:
        >>> from wmdp_fast import demo, evaluate_many
        >>> [scored] = evaluate_many([demo.model_path()], tasks=demo.questions_path("forget"), limit=2, progress=False)
        >>> scored.error is None
        True
    """

    spec: ModelSpec
    result: EvalResult | SavedResults | None
    error: Exception | None


def evaluate_many(
    models: Sequence[str | PathLike[str] | ModelSpec],
    *,
    revision: str | None = None,
    peft: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    **options: Any,
) -> Iterator[ScoredModel]:
    """Scores models one after the other, each with the numbers that `evaluate` gives it alone.

    Questions are read once, prompts are made and tokenized once for all models with the same tokenizer, and the next
    model's files are read into the page cache while the present one is scored. Where adapters that follow each other
    are of one model, it is loaded once, and each is put on it and taken off. One that fails does not stop the others.

    Args:
        models: Folders or names on the hub, `BASE+DELTA`s, or `ModelSpec`s.
        revision: Commit, branch or tag of models that name none.
        peft: An adapter for models that name none.
        output: Folder to save results under. Where several have the same model's name, each has a folder of its own in
            it, named after revision and adapter.
        options: Further parameters of `evaluate`. With `resume` a model that was finished is not loaded: what an
            earlier run of the same settings, questions, files and versions has saved is read back. One that was stopped
            is gone on with.

    Returns:
        An iterator; a model is loaded and scored when its turn comes.

    Warns:
        WmdpFastWarning: As `evaluate`; or a model has results, but of another run, and is scored again. It is said
            what differs.

    Raises:
        ValueError: An option has an impossible value, or `output` is the name of a file.
        TypeError: There is no parameter of that name.
        WmdpFastError: As `evaluate`, for tasks, questions and templates, before any model is looked at.

    Example:
        >>> from wmdp_fast import demo, evaluate_many
        >>> tasks = demo.questions_path("forget")
        >>> for scored in evaluate_many([demo.model_path()], tasks=tasks, limit=8, progress=False):
        ...     print(scored.spec if scored.result is None else len(scored.result.tasks))
        1
    """
    if (size := place_of_process().size) > 1:
        raise ValueError(f"several models are scored by one process, not by {size}: call evaluate for each")
    given = [one if isinstance(one, ModelSpec) else ModelSpec(one) for one in models]
    if not given:
        raise ValueError("models must name at least one model")
    specs = [replace(one, revision=one.revision or revision, peft=one.peft or peft) for one in given]
    if output is not None and len(specs) > 1 and names_a_file(output):
        raise ValueError(f"output must be a folder for several models, not the file {output}")
    # What is finished already need not be read.
    ahead = [None if options.get("resume") else _reading(specs[0])]
    prompting = PromptOptions(**{"tasks": (), **_taken(options, PromptOptions)})
    loading = LoadOptions(**{"memory": "auto", **_taken(options, LoadOptions)})
    scoring = ScoreOptions(**_taken(options, ScoreOptions))
    keeping = Keeping(
        **{"log_samples": False, "resume": False, "progress": True, **_taken(options, Keeping)}, output=output
    )
    texts = {name: options.pop(name) for name in ("text", "text_field") if name in options}
    if options:
        raise TypeError(f"evaluate_many() got an unexpected keyword argument {next(iter(options))!r}")
    keepings = [
        # Most of several had not begun; of one that has results it is said why they are not read back.
        replace(keeping, output=place, may_begin=len(specs) > 1 or has_results(place, os.fspath(spec.model)))
        for spec, place in zip(specs, _outputs(output, specs), strict=True)
    ]
    for spec, one in zip(specs, keepings, strict=True):
        if one.output is not None:
            check_folder(output_folder(one.output, os.fspath(spec.model)))
    tokenizers = KeptTokenizer()

    def source_of(spec: ModelSpec, shared: AdapterBase | None = None) -> ModelSource:
        load = replace(loading, revision=spec.revision, peft=spec.peft)
        options: dict[str, Any] = {"resume": keeping.resume, "has_text": bool(texts.get("text"))}
        return model_source(spec.model, load, scoring, **options, shared=shared, tokenizers=tokenizers)

    sources = [source_of(spec) for spec in specs]
    clock = PhaseClock()
    with model_named_first(*sources):
        evaluation = Evaluation(prompting, scoring, clock, **texts)
    found = [_finished(evaluation, *one) for one in zip(sources, keepings, strict=True)]
    left = [place for place, results in enumerate(found) if results is None]
    rest = [specs[place] for place in left]
    bases = _bases(rest)
    scored = _scored(
        evaluation,
        rest,
        [source_of(spec, base) for spec, base in zip(rest, bases, strict=True)],
        bases,
        [keepings[place] for place in left],
        clock,
        ahead if not keeping.resume else [_reading(rest[0] if rest else None)],
    )
    return _in_order(specs, found, scored)


def _finished(evaluation: Evaluation, source: ModelSource, keeping: Keeping) -> SavedResults | None:
    """The results of a model that was finished, if it is to be resumed."""
    if not keeping.resume:
        return None
    try:
        return evaluation.finished(source, keeping)
    except (WmdpFastError, OSError):
        # There is no such model: it fails by that when its turn comes.
        return None


def _in_order(
    specs: Sequence[ModelSpec], found: Sequence[SavedResults | None], scored: Iterator[ScoredModel]
) -> Iterator[ScoredModel]:
    """The models in the order that they were named in: those that were finished, and the others as they are scored."""
    for spec, results in zip(specs, found, strict=True):
        yield next(scored) if results is None else ScoredModel(spec, results, None)


def checkpoints_of(run: str | PathLike[str], base: str | PathLike[str] | None = None) -> list[ModelSpec]:
    """The checkpoints of a training run in the order of their steps: its folders `checkpoint-N`.

    Args:
        run: The run's folder.
        base: The model that its checkpoints are adapters of, if they are.

    Raises:
        ValueError: There are none, or they are adapters and `base` is missing, or no adapters and `base` is given.
    """
    folder = Path(run).expanduser()
    found = [(int(name[1]), path) for path in folder.glob("checkpoint-*") if (name := _CHECKPOINT.fullmatch(path.name))]
    if not found:
        raise ValueError(f"{folder} has no folders checkpoint-N, as a training run leaves them")
    specs = []
    for _, path in sorted(found):
        if (path / CONFIG).is_file() or not (path / ADAPTER_CONFIG).is_file():
            specs.append(ModelSpec(str(path)))
        elif base is None:
            raise ValueError(f"{path} is a PEFT adapter: name the model that it belongs to as MODEL")
        else:
            specs.append(ModelSpec(base, peft=str(path)))
    if base is not None and not any(spec.peft for spec in specs):
        raise ValueError(f"the checkpoints in {folder} are models of their own, not adapters: leave {base} out")
    return specs


def models_table(scored: Sequence[ScoredModel]) -> str:
    """A row for each model that has numbers: its accuracy by group, or task without a group, and perplexity by text."""
    results = [(one.spec, one.result) for one in scored if one.result is not None]
    if not results:
        return ""
    first = results[0][1]
    below = {child for children in first.group_subtasks.values() for child in children}
    names = [name for name in first if name not in below]
    rows = [("model", *names)]
    rows += [(str(spec), *(_cell(result, name) for name in names)) for spec, result in results]
    return "\n".join(aligned(rows, "l" + "r" * len(names)))


def _cell(result: EvalResult | SavedResults, name: str) -> str:
    metric, value = next(iter(result[name].metrics.items()), ("", None))
    error = result[name].stderr.get(metric)
    if value is None:
        return ""
    return number_text(value) + ("" if error is None else f" ± {number_text(error)}")


def _taken(options: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Takes what a class of options has fields for out of the options."""
    return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}


def _outputs(output: str | PathLike[str] | None, specs: Sequence[ModelSpec]) -> list[Path | None]:
    """Where each model's results go: below one folder, in which models of the same name have one each."""
    if output is None:
        return [None for _ in specs]
    names = [os.fspath(spec.model) for spec in specs]
    places = []
    for spec, name in zip(specs, names, strict=True):
        variant = [part for part in (spec.revision, os.fspath(spec.peft) if spec.peft else None) if part]
        own = variant and names.count(name) > 1
        places.append(Path(output) / sanitize_model_name("__".join(variant)) if own else Path(output))
    homes = list(zip(places, names, strict=True))
    if again := [name for number, (place, name) in enumerate(homes) if (place, name) in homes[:number]]:
        raise ValueError(f"{again[0]} is named twice, and its results would go to one place: name it once")
    return list(places)


def _bases(specs: Sequence[ModelSpec]) -> list[AdapterBase | None]:
    """For each model what keeps its base in memory; neighbors that differ in their adapters alone have the same."""
    every: list[AdapterBase | None] = []
    for spec, last in zip(specs, [None, *specs], strict=False):
        if spec.peft is None:
            every.append(None)
        elif last is None or last.peft is None or _base_of(last) != _base_of(spec):
            every.append(AdapterBase())
        else:
            every.append(every[-1])
    return every


def _base_of(spec: ModelSpec) -> tuple[str, str | None]:
    return os.fspath(spec.model), spec.revision


def _reading(spec: ModelSpec | None, *, base_is_there: bool = False) -> ReadAhead | None:
    if spec is None:
        return None
    if base_is_there and spec.peft is not None:
        return read_ahead(spec.peft)
    return read_ahead(spec.model, revision=spec.revision, peft=spec.peft)


def _scored(
    evaluation: Evaluation,
    specs: Sequence[ModelSpec],
    sources: Sequence[ModelSource],
    bases: Sequence[AdapterBase | None],
    keepings: Sequence[Keeping],
    clock: PhaseClock,
    ahead: list[ReadAhead | None],
) -> Iterator[ScoredModel]:
    """Scores models in their turn; `ahead` is what reads the files of the one whose turn is next."""
    trunks = _Trunks(specs)
    for place, (spec, source, keeping) in enumerate(zip(specs, sources, keepings, strict=True)):
        following, base = (specs[place + 1], bases[place + 1]) if place + 1 < len(specs) else (None, None)
        keeps_base = base is not None and base is bases[place]
        try:
            reading = _then_reading(source, following, keeps_base, ahead)
            result = evaluation.of(trunks.shared_by(reading, place), keeping, clock)
            scored = ScoredModel(spec, result, None)
        except Exception as error:
            # The variables in its traceback would hold the model.
            traceback.clear_frames(error.__traceback__)
            scored = ScoredModel(spec, None, error)
        if not keeps_base and (last := bases[place]) is not None:
            last.forget()
        yield scored
        clock = PhaseClock()
        # Two models in memory may be one too many, and what holds the last one may be a circle.
        gc.collect()


def _then_reading(
    source: ModelSource, following: ModelSpec | None, keeps_base: bool, ahead: list[ReadAhead | None]
) -> ModelSource:
    """A source after whose loading the files of the next model are read, or of its adapter alone if its base stays."""

    def opened(on_tokenizer: OnTokenizer, clock: PhaseClock) -> Backend:
        backend = source.open(on_tokenizer, clock)
        ahead[0] = _reading(following, base_is_there=keeps_base)
        return backend

    return replace(source, open=opened)


class _Trunks:
    """What models that follow each other and have their lowest layers in common pass on, see `scoring.trunk`.

    Args:
        specs: The models.
    """

    def __init__(self, specs: Sequence[ModelSpec]) -> None:
        self._specs = specs
        self._stored: dict[int, StoredWeights | None] = {}
        self._trunk: SharedTrunk | None = None
        self._models = range(0)

    def shared_by(self, source: ModelSource, place: int) -> ModelSource:
        """A model's source that has its part in what is shared."""

        def opened(on_tokenizer: OnTokenizer, clock: PhaseClock) -> Backend:
            backend = source.open(on_tokenizer, clock)
            # Importing this imports torch, which is loaded by now.
            from wmdp_fast.scoring.local import LocalModel

            return replace(backend, trunk=self._of(place)) if isinstance(backend, LocalModel) else backend

        return replace(source, open=opened)

    def _of(self, place: int) -> SharedTrunk | None:
        """That of a model and of its neighbors; None if they have too little in common."""
        if place not in self._models:
            from wmdp_fast.scoring.trunk import SharedTrunk

            self._models, below = self._group(place)
            self._trunk = SharedTrunk(below) if len(self._models) > 1 else None
            for done in [one for one in self._stored if one < self._models.stop - 1]:
                del self._stored[done]
        return self._trunk

    def _group(self, first: int) -> tuple[range, int]:
        """The models from one on that have enough of their lowest layers in common, and how many layers these are."""
        from wmdp_fast.checkpoints.lower_layers import layers_in_common
        from wmdp_fast.scoring.trunk import least_layers

        below, stop = 0, first + 1
        while stop < len(self._specs):
            one, other = self._weights(stop - 1), self._weights(stop)
            if one is None or other is None:
                break
            common = layers_in_common(one, other)
            common = common if stop == first + 1 else min(below, common)
            if common < least_layers(one.num_layers):
                break
            below, stop = common, stop + 1
        return range(first, stop), below

    def _weights(self, place: int) -> StoredWeights | None:
        if place not in self._stored:
            from wmdp_fast.checkpoints.lower_layers import stored_weights

            spec = self._specs[place]
            self._stored[place] = stored_weights(spec.model, revision=spec.revision, peft=spec.peft)
        return self._stored[place]
