"""Attacks from beginning to end: `attack`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast import _rust
from wmdp_fast.data.corpora import find_corpus
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.robustness.attacked_model import AttackedModel
from wmdp_fast.robustness.attacks.catalog import attacks_of, own_hashes
from wmdp_fast.robustness.findings import SLACK
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.result import AttackResult
from wmdp_fast.robustness.subject import Subject
from wmdp_fast.robustness.suite import Suite
from wmdp_fast.robustness.utility import Utility
from wmdp_fast.runtime.files import check_folder
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.prompts.documents import Corpus
    from wmdp_fast.robustness.protocol import Budget
    from wmdp_fast.robustness.subject import CorpusName, Role
    from wmdp_fast.scoring.trie import Engine

# Any text that has nothing to do with what was unlearned, unless the user has one.
_GENERAL = Path(__file__).parents[1] / "unlearning" / "general_text.jsonl"


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
    slack: float = SLACK,
    forget: Corpus | None = None,
    related: Corpus | None = None,
    unrelated: Corpus | None = None,
    output: str | PathLike[str] | None = None,
    controls: str | PathLike[str] | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None = None,
    revision: str | None = None,
    peft: str | PathLike[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
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
        slack: The share of its utility that a model may lose under an attack that counts.
        forget: Text on what was unlearned, for attacks that train. It must not hold the answers that are reported.
        related: Text on its neighborhood.
        unrelated: Any other text, for controls; None is general text that comes with this package.
        output: Folder for the results. What is in it of the same models and questions is not run again.
        controls: An `output` of attacks on another model with the same `base`, `never_learned`, questions and options,
            whose runs on those two are taken over: of several methods on one base, only the first pays for them.
        seed: Of all that is drawn.
        tokenizer: The tokenizer of `model`, if it is not the folder's own; of a model in memory it is needed.
        revision: Commit, branch or tag of `model` on the hub.
        peft: A PEFT adapter to put on `model`.
        dtype: `auto` (the checkpoint's), `float32`, `bfloat16` or `float16`, of all models.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
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
        ModelError: A model cannot be loaded or asked, or `output` has attacks on other models, questions or settings.
        TaskError: A task is unknown, or leaves too few questions on one side.
        ValueError: An attack is unknown or cannot be loaded, or an option has an impossible value.

    Example:
        >>> from wmdp_fast import attack, demo
        >>> asked = {"tasks": demo.questions_path("forget"), "eval_options": {"limit": 40}}
        >>> result = attack(demo.model_path(), **asked, attacks="ask", dtype="float32", progress=False)
        >>> result.worst()
        'ask'
    """
    chosen = attacks_of(attacks)
    if budget not in ("quick", "standard", "full"):
        raise ValueError(f"budget must be quick, standard or full, not {budget!r}")
    if not 0 <= slack < 1:
        raise ValueError(f"slack must be a share of utility from 0 to below 1, not {slack}")
    if output is not None:
        check_folder(output)
    options = {**({} if data is None else {"data": data}), **(eval_options or {})}
    questions = Questions.from_options(PromptOptions(tasks=tasks, **options))
    test = _utility(utility, utility_text, utility_limit, data)
    named: dict[CorpusName, Corpus | None] = {"forget": forget, "related": related, "unrelated": unrelated or _GENERAL}
    corpora = {name: one for name, one in named.items() if one is not None}
    loading = LoadOptions(dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    own = replace(loading, tokenizer=tokenizer, revision=revision, peft=peft)
    given: dict[Role, Any] = {"unlearned": model, "base": base, "never learned": never_learned}
    models = {
        role: AttackedModel(
            model=one,
            load=own if role == "unlearned" else replace(loading, tokenizer=_tokenizer_of(one, tokenizer)),
            score=ScoreOptions(engine=engine),
        )
        for role, one in given.items()
        if one is not None
    }

    def subject(role: Role) -> Subject:
        return Subject(
            role=role,
            model=models[role].open(),
            questions=questions,
            test=test,
            sources=corpora,
            original=models["base"].open if role == "unlearned" and "base" in models else None,
        )

    identity = {
        "models": {role: one.identity() for role, one in models.items()},
        "questions": questions.content_hash,
        "way of asking": {name: str(value) for name, value in options.items() if name != "data"},
        "utility": test.identity(),
        "corpora": {name: _corpus_identity(one, data) for name, one in corpora.items()},
        "dtype": dtype,
        "device": device,
        "engine": engine,
        "seed": seed,
        "version of wmdp_fast": _rust.__version__,
    }
    suite = Suite(
        attacks=chosen,
        budget=budget,
        seed=seed,
        open={role: partial(subject, role) for role in models},
        identity=identity,
        code=own_hashes(chosen),
        folder=None if output is None else Path(output),
        controls=None if controls is None else Path(controls),
        progress=progress,
        note=note or (lambda _line: None),
    )
    runs = suite.run()
    reported = ~questions.is_for_choosing
    result = AttackResult(
        models={role: one.name for role, one in models.items()},
        tasks={one.task.name: len(one.questions) for one in questions.read},
        utility_tasks={one.task.name: len(one.questions) for one in test.questions.read} if test.questions else {},
        is_for_choosing=questions.is_for_choosing,
        chance=float(questions.chance[reported].mean()),
        runs=runs,
        slack=slack,
        budget=budget,
        seed=seed,
        identity=identity,
    )
    if output is not None:
        result.save(Path(output))
    return result


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


def _tokenizer_of(
    model: Any, tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None
) -> PreTrainedTokenizerBase | str | PathLike[str] | None:
    """The tokenizer of a control: its folder's, or, of a model in memory, that of the model under attack."""
    return None if isinstance(model, (str, os.PathLike)) else tokenizer


def _corpus_identity(corpus: Corpus, data: str | PathLike[str] | None) -> list[Any]:
    """What tells a corpus from another: names and content of its files, or its tokens."""
    if isinstance(corpus, CorpusTokens):
        return [corpus.content_hash]
    _, files, commit = find_corpus(corpus, data=data)
    return [commit] if commit else [[path.name, _file_hash(path)] for path in files]


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
