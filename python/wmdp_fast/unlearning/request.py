"""What the user of `unlearn` asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wmdp_fast.prompts.documents import Corpus, CorpusTokens
from wmdp_fast.unlearning.eval_options import ASKING, SCORING, check_eval_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.unlearning.budget_request import BudgetRequest
    from wmdp_fast.unlearning.stopping import Condition
    from wmdp_fast.unlearning.training_config import Topic, TrainingConfig


_OF_THE_RUN = (
    "revision", "device", "trust_remote_code", "tokenizer", "memory", "stream", "parallel", "output", "log_samples",
    "resume", "progress",
)  # fmt: skip

# What else `evaluate` has and a run decides, by name.
_ELSEWHERE = {
    **dict.fromkeys(_OF_THE_RUN, "it is for the whole run, so pass it beside eval_options"),
    "dtype": "evaluations are in the type that is trained in, which is dtype of config",
    "tasks": "what is asked is eval_tasks of unlearn, and forget_tasks and retain_tasks of sweep",
    "text": "texts are eval_text",
    "text_field": "documents of eval_text are under text",
}


def _ignore(_line: str) -> None:
    """For lines that nobody wants."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for, besides model and output."""

    config: TrainingConfig
    forget: list[Corpus]
    retain: list[Corpus]
    eval_tasks: list[str] = field(default_factory=list)
    eval_text: list[Text]
    eval_every: int | None = None
    eval_options: dict[str, Any]
    log_samples: bool
    stop_when: tuple[Condition, ...] = ()
    keep_while: tuple[Condition, ...] = ()
    report_to: list[str] = field(default_factory=list)
    data: PathLike[str] | str | None
    progress: bool
    note: Callable[[str], None] = _ignore
    budget: BudgetRequest | None = None

    @property
    def topics(self) -> Sequence[Topic]:
        """The settings of each topic."""
        return self.config.topics(len(self.forget))

    @property
    def evaluates(self) -> bool:
        """Whether the model is measured before, on the way and after."""
        return bool(self.eval_tasks or self.eval_text)

    @property
    def needs_whole_model(self) -> bool:
        """Whether something is asked of the model that its first layers cannot say."""
        return self.evaluates or self.budget is not None

    @property
    def documents_read(self) -> int:
        """Most documents of a corpus that the run gets to."""
        return self.config.documents_read(len(self.topics))

    @property
    def files_read(self) -> list[tuple[str, int, bool]]:
        """Corpora that are given by path or name, each with the maximum length and `raw_lines` that it is read with."""
        config, topics = self.config, self.topics
        forget = [(one, topic.max_length, topic.raw_lines) for one, topic in zip(self.forget, topics, strict=True)]
        every = [*forget, *((one, config.retain_max_length, False) for one in self.retain)]
        named = ((one, length, raw) for one, length, raw in every if not isinstance(one, CorpusTokens))
        return list(dict.fromkeys((os.fspath(one), length, raw) for one, length, raw in named))

    def check(self) -> None:
        """Raises ValueError for settings that contradict each other, before anything is loaded."""
        check_eval_options(self.eval_options, ASKING | SCORING, _ELSEWHERE)
        if not self.forget or not self.retain:
            raise ValueError("unlearning needs at least one forget corpus and one retain corpus")
        if len(self.retain) not in (1, len(self.forget)):
            raise ValueError(
                f"there are {len(self.retain)} retain corpora for {len(self.forget)} forget corpora; give one for all,"
                " or one for each"
            )
        _ = self.topics
        if not self.evaluates and (self.eval_every is not None or self.stop_when or self.keep_while):
            raise ValueError(
                "eval_every, stop_when and keep_while need eval_tasks or eval_text: what should be evaluated?"
            )
        if self.eval_every is not None and self.eval_every < 1:
            raise ValueError(f"eval_every must be at least 1, not {self.eval_every}")
        if (self.stop_when or self.keep_while) and self.eval_every is None:
            raise ValueError("stop_when and keep_while need eval_every: how often should they be looked at?")
