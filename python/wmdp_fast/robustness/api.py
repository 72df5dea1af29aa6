"""Attacks from beginning to end: `attack`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from wmdp_fast import _rust
from wmdp_fast.data.corpora import find_corpus
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.robustness.asking_options import check_asking
from wmdp_fast.robustness.attacked_model import AttackedModel
from wmdp_fast.robustness.attacks.catalog import attacks_of, own_hashes
from wmdp_fast.robustness.card import card_of, put_into_card
from wmdp_fast.robustness.findings import SLACK
from wmdp_fast.robustness.given_away import given_away
from wmdp_fast.robustness.protocol import Budget
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.result import AttackResult
from wmdp_fast.robustness.retained import from_options
from wmdp_fast.robustness.retained.measuring import Measuring
from wmdp_fast.robustness.subject import Subject
from wmdp_fast.robustness.suite import Suite
from wmdp_fast.robustness.utility import Utility
from wmdp_fast.runtime.devices import shared_devices
from wmdp_fast.runtime.files import check_file, check_folder
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions
from wmdp_fast.unlearning.budget_request import GENERAL_TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.prompts.documents import Corpus
    from wmdp_fast.robustness.retained.measure import RetainedMeasure
    from wmdp_fast.robustness.runs import Run
    from wmdp_fast.robustness.subject import CorpusName, Role
    from wmdp_fast.scoring.server import Server
    from wmdp_fast.scoring.trie import Engine


def attack(
    model: str | PathLike[str] | PreTrainedModel,
    *,
    tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
    base: str | PathLike[str] | PreTrainedModel | None = None,
    never_learned: str | PathLike[str] | PreTrainedModel | None = None,
    attacks: str | Sequence[str] = "all",
    budget: Budget = "standard",
    utility: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    utility_text: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    utility_limit: float | None = None,
    utility_keyword: str | None = None,
    general_text: str | PathLike[str] | None = None,
    near_text: str | PathLike[str] | None = None,
    write: int = 0,
    write_tokens: int = 64,
    lm_eval_tasks: str | Sequence[str] = (),
    mt_bench_questions: str | PathLike[str] | None = None,
    mt_bench_references: str | PathLike[str] | None = None,
    judge: Server | None = None,
    judge_prompts: str | PathLike[str] | None = None,
    slack: float = SLACK,
    forget: Corpus | None = None,
    related: Corpus | None = None,
    unrelated: Corpus | None = None,
    output: str | PathLike[str] | None = None,
    card: bool = False,
    controls: str | PathLike[str] | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None = None,
    revision: str | None = None,
    peft: str | PathLike[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    devices: str | None = None,
    trust_remote_code: bool = False,
    engine: Engine = "auto",
    data: str | PathLike[str] | None = None,
    eval_options: Mapping[str, Any] | None = None,
    progress: bool = True,
    note: Callable[[str], None] | None = None,
) -> AttackResult:
    """Attacks a model that has unlearned something, and says how much of it comes back.

    Half of the questions, by a hash of their text, are for choosing among an attack's settings and for taking examples
    from; accuracies are those of the other half. Every attack runs on the controls too, with the same settings.

    Args:
        model: The model that is claimed to have unlearned: a folder or a name on the hub, whoever made it, or a model
            in memory, which is left as it was. `BASE+DELTA` is a base with the `delta.safetensors` of an unlearned
            model, put together in memory.
        tasks: What was unlearned: names of tasks and groups, and question files.
        base: The model before unlearning. Without it nothing can be said of how much was regained.
        never_learned: A model that never had the knowledge, where there is one: what it gains is learning.
        attacks: `all`, or names of attacks; `wmdp-fast attack --list` shows them. One of your own is named as
            `FILE.py:CLASS` or `package.module:CLASS`.
        budget: How many settings of each are tried: `quick`, `standard` or `full`.
        utility: Tasks on what should have been kept. An attack that ruins the model does not count.
        utility_text: Held-out texts for the same purpose.
        utility_limit: Only the first questions of each task and documents of each text: a number, or a share below 1.
        utility_keyword: A word or name of what was unlearned: the utility questions are asked again with it in place of
            a wrong choice. Published is `SARS-CoV-2` in MMLU.
        general_text: Text on anything else, to measure perplexity and divergence from the base on without an attack;
            None is the text that comes with this package.
        near_text: Text on the neighborhood of what was unlearned, which nothing was trained on, for the same.
        write: How many documents each of `forget`, `related` and `unrelated` the models go on with, to measure what is
            written: repetition, refusals, perplexity by the base. Texts are in the folder `texts` of `output`.
        write_tokens: Most tokens of each text.
        lm_eval_tasks: Tasks that lm-eval runs, such as `gsm8k,ifeval`, or YAML files of tasks; `utility_limit` holds.
        mt_bench_questions: FastChat's `question.jsonl`, to have the models answer; answers are in the folder `mt_bench`
            of `output`, in FastChat's format.
        mt_bench_references: FastChat's reference answers, which its judges are shown for math, reasoning and coding.
        judge: A served model that scores these answers.
        judge_prompts: FastChat's `judge_prompts.jsonl`, which a judge is asked with.
        slack: The share of its utility that a model may lose under an attack that counts.
        forget: Text on what was unlearned, for attacks that train. It must not hold the answers that are reported;
            what of it gives questions away in their own words is told.
        related: Text on its neighborhood.
        unrelated: Any other text, for controls; None is general text that comes with this package.
        output: Folder for the results. What is in it of the same models and questions is not run again.
        card: Whether to write what was found into the model's card, `README.md` in its folder, in place of what it says
            of earlier attacks.
        controls: An `output` of attacks on another model with the same `base`, `never_learned`, questions and options,
            whose runs on those two are taken over: of several methods on one base, only the first pays for them.
        seed: Of all that is drawn.
        tokenizer: The tokenizer of `model`, if it is not the folder's own; of a model in memory it is needed.
        revision: Commit, branch or tag of `model` on the hub.
        peft: A PEFT adapter to put on `model`.
        dtype: `auto` (the checkpoint's), `float32`, `bfloat16` or `float16`, of all models.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        devices: Several, with a process on each that takes the next setting when it is free: `all` GPUs, a number of
            GPUs, `cuda:0,cuda:1` or `cpu:2`.
        trust_remote_code: Whether code that comes with a model may run.
        engine: How to score, as `evaluate`.
        data: Folder with datasets and corpora by name, in place of the hub.
        eval_options: Further options of `wmdp_fast.evaluate` that say how questions are asked, such as `limit`.
        progress: Whether to show a progress bar on stderr.
        note: Takes lines meant for the user: what is run, what cannot be.

    Returns:
        Accuracies by model and attack; `print` shows them as a table.

    Raises:
        DataUnavailableError: A model, questions or a corpus are missing or out of reach.
        DatasetError: A question file or corpus is faulty.
        JournalError: The results in `output` are damaged, or another process writes them.
        ModelError: A model cannot be loaded or asked, or `output` has attacks on other models, questions or settings;
            or the processes on all devices were killed.
        TaskError: A task is unknown, or leaves too few questions on one side.
        ValueError: An attack is unknown or cannot be loaded, or an option has an impossible value.

    Example:
        >>> from wmdp_fast import attack, demo
        >>> asked = {"tasks": demo.questions_path("forget"), "eval_options": {"limit": 40}}
        >>> result = attack(demo.model_path(), **asked, attacks="calibrate", dtype="float32", progress=False)
        >>> result.worst() in ("ask", "calibrate")
        True
    """
    check_asking(eval_options)
    chosen = attacks_of(attacks, budget)
    _check(budget, slack, output)
    several = shared_devices([model, base, never_learned], device, devices)
    tell = note or (lambda _line: None)
    model_card = card_of(model) if card else None
    if model_card is not None:
        check_file(model_card)
    options = {**({} if data is None else {"data": data}), **(eval_options or {})}
    load = LoadOptions(
        tokenizer=tokenizer,
        revision=revision,
        peft=peft,
        dtype=dtype,
        device=device if several is None else several.device,
        trust_remote_code=trust_remote_code,
    )
    test = _utility(utility, utility_text, utility_limit, data)
    measures: list[RetainedMeasure] = [*from_options.distances(general_text, near_text)]
    measures += from_options.keyword_accuracies(utility_keyword, test)
    measures += from_options.writings(write, write_tokens, output)
    measures += from_options.lm_eval_tasks(lm_eval_tasks, utility_limit)
    measures += from_options.mt_bench(
        mt_bench_questions, judge, judge_prompts, mt_bench_references, output=output, seed=seed
    )
    asked = _Asked(
        questions=Questions.from_options(PromptOptions(tasks=tasks, **options)),
        test=test,
        corpora=_corpora(forget, related, unrelated),
        models=_models(model, base, never_learned, load, ScoreOptions(engine=engine)),
    )
    cautions = given_away(asked.questions, asked.corpora, data)
    for sentence in cautions:
        tell(sentence)
    suite = Suite(
        attacks=chosen,
        budget=budget,
        seed=seed,
        open={role: partial(asked.subject, role) for role in asked.models},
        identity=asked.identity(options, seed),
        code=own_hashes(chosen),
        folder=None if output is None else Path(output),
        controls=None if controls is None else Path(controls),
        measuring=Measuring(measures=measures, note=tell),
        progress=progress,
        note=tell,
        devices=several,
    )
    result = asked.result(suite, suite.run(), slack, cautions)
    if model_card is not None:
        put_into_card(result, model_card)
    return result


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The models, and what is asked of them.

    Attributes:
        questions: On what was unlearned.
        test: What utility is measured on.
        corpora: What attacks may train on.
        models: By what they are.
    """

    questions: Questions
    test: Utility
    corpora: Mapping[CorpusName, Corpus]
    models: Mapping[Role, AttackedModel]

    def subject(self, role: Role, *, device: str | None = None) -> Subject:
        """A model, loaded, with all that attacks may use; on a device of its own if there is one."""
        models = {name: one if device is None else one.on(device) for name, one in self.models.items()}
        return Subject(
            role=role,
            model=models[role].open(),
            questions=self.questions,
            test=self.test,
            sources=self.corpora,
            original=models["base"].open if role == "unlearned" and "base" in models else None,
        )

    def identity(self, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What makes these attacks the same as others, as JSON has it."""
        unlearned, data = self.models["unlearned"], options.get("data")
        return {
            "models": {role: one.identity() for role, one in self.models.items()},
            "questions": self.questions.content_hash,
            "way of asking": {name: str(value) for name, value in options.items() if name != "data"},
            "utility": self.test.identity(),
            "corpora": {name: _corpus_identity(one, data) for name, one in self.corpora.items()},
            "dtype": unlearned.load.dtype,
            "device": unlearned.load.device,
            "engine": unlearned.score.engine,
            "seed": seed,
            "version of wmdp_fast": _rust.__version__,
        }

    def result(self, suite: Suite, runs: Sequence[Run], slack: float, cautions: Sequence[str]) -> AttackResult:
        """What the runs come to; it is written into the suite's folder, if there is one."""
        kept = self.test.questions
        result = AttackResult(
            models={role: one.name for role, one in self.models.items()},
            tasks={one.task.name: len(one.questions) for one in self.questions.read},
            utility_tasks={one.task.name: len(one.questions) for one in kept.read} if kept else {},
            is_for_choosing=self.questions.is_for_choosing,
            chance=float(self.questions.chance[~self.questions.is_for_choosing].mean()),
            runs=runs,
            slack=slack,
            budget=suite.budget,
            seed=suite.seed,
            identity=suite.identity,
            measured=suite.measuring.of(list(self.models)),
            cautions=cautions,
        )
        if suite.folder is not None:
            result.save(suite.folder)
        return result


def _check(budget: str, slack: float, output: str | PathLike[str] | None) -> None:
    """Raises for options with impossible values, before anything is read."""
    if budget not in get_args(Budget):
        raise ValueError(f"budget must be quick, standard or full, not {budget!r}")
    if not 0 <= slack < 1:
        raise ValueError(f"slack must be a share of utility from 0 to below 1, not {slack}")
    if output is not None:
        check_folder(output)


def _utility(
    tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
    text: str | PathLike[str] | Sequence[str | PathLike[str]],
    limit: float | None,
    data: str | PathLike[str] | None,
) -> Utility:
    """What utility is measured on; its tasks are asked as they are defined, without examples."""
    texts = read_texts(text, limit=limit)
    if not tasks:
        return Utility(texts=texts)
    options = PromptOptions(tasks=tasks, data=data, limit=limit)
    return Utility(questions=Questions.from_options(options, split=False), texts=texts)


def _models(
    model: Any, base: Any, never_learned: Any, load: LoadOptions, score: ScoreOptions
) -> dict[Role, AttackedModel]:
    """The models that there are, by what they are.

    Revision, adapter and tokenizer are those of the model under attack. A control has its folder's tokenizer or, in
    memory, that of the model under attack.
    """
    found: dict[Role, AttackedModel] = {"unlearned": AttackedModel(model=model, load=load, score=score)}
    controls: dict[Role, Any] = {"base": base, "never learned": never_learned}
    for role, control in controls.items():
        if control is not None:
            tokenizer = None if isinstance(control, (str, os.PathLike)) else load.tokenizer
            own = replace(load, revision=None, peft=None, tokenizer=tokenizer)
            found[role] = AttackedModel(model=control, load=own, score=score)
    return found


def _corpora(forget: Corpus | None, related: Corpus | None, unrelated: Corpus | None) -> dict[CorpusName, Corpus]:
    """The corpora that there are, by name; there always is an unrelated one."""
    named: dict[CorpusName, Corpus | None] = {
        "forget": forget,
        "related": related,
        "unrelated": unrelated or GENERAL_TEXT,
    }
    return {name: one for name, one in named.items() if one is not None}


def _corpus_identity(corpus: Corpus, data: str | PathLike[str] | None) -> list[Any]:
    """What tells a corpus from another: names and content of its files, or its tokens."""
    if isinstance(corpus, CorpusTokens):
        return [corpus.content_hash]
    _, files, commit = find_corpus(corpus, data=data)
    return [commit] if commit else [[path.name, _file_hash(path)] for path in files]


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
