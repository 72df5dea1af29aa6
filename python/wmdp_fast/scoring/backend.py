"""What scores a model's choices: one that is loaded here or one that is served, behind one protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from wmdp_fast.prompts.options import check_counts
from wmdp_fast.prompts.tokenizer import ReadsTokens
from wmdp_fast.runtime.memory import amount_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.scoring.ranks import Parallel, Ranks
    from wmdp_fast.scoring.scores import PartialScores, ScoreMode, Scores
    from wmdp_fast.scoring.trie import Engine


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The parameters of `evaluate` that say how a model is loaded, described there.

    With None for `memory` and without `stream`, a model is loaded as a whole, whether it fits or not. `sharers` are the
    processes that share this machine's memory.

    Raises:
        ValueError: `memory` is no amount of memory.
    """

    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    peft: str | PathLike[str] | None = None
    trust_remote_code: bool = False
    allow_missing: bool = False
    memory: str | int | None = None
    stream: bool = False
    sharers: int = 1
    parallel: Parallel | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory != "auto":
            amount_of_memory(self.memory)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The parameters of `evaluate` that say how a loaded model is scored, described there.

    Raises:
        ValueError: One of them has an impossible value.
    """

    score_mode: ScoreMode = "float32"
    engine: Engine = "auto"
    token_budget: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        # A misspelt one would be taken for the other: numbers that are not those that were asked for.
        for name, kinds in (("score_mode", ("float32", "model")), ("engine", ("auto", "trie", "padded"))):
            if (given := getattr(self, name)) not in kinds:
                raise ValueError(f"{name} must be {', '.join(kinds[:-1])} or {kinds[-1]}, not {given!r}")
        check_counts(token_budget=None if self.token_budget == "auto" else self.token_budget)


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What lm-eval's `config` section says of a model.

    Attributes:
        model: lm-eval's name for the kind of model: `hf`, `local-completions`.
        model_args: What it was loaded or asked with.
        model_info: Number of parameters, dtype, revision, commit.
        batch_size: The token budget that was asked for.
        device: Where it ran.
    """

    model: str
    model_args: Mapping[str, Any]
    model_info: Mapping[str, Any] = field(default_factory=dict)
    batch_size: str | int | None = None
    device: str | None = None


class Backend(ReadsTokens, Protocol):
    """A model that can be scored; `LocalModel` and `ServedModel` are such."""

    @property
    def name(self) -> str:
        """What results call it."""

    @property
    def dtype(self) -> str | None:
        """Type of its weights as torch writes it, without `torch.`; None if nobody said."""

    @property
    def attention(self) -> str | None:
        """The attention implementation of transformers that padded rows run with, if it is known."""

    @property
    def warnings(self) -> Sequence[str]:
        """What results should say of how it was loaded."""

    @property
    def progress(self) -> tuple[str, str]:
        """What a progress bar counts, and what it calls the work on it."""

    def identity(self, requests: Requests | None, prompts: Sequence[Prompts]) -> dict[str, Any] | None:
        """Two runs that agree in this have the same scores, whatever engine makes them and in whatever batches.

        Args:
            requests: What is asked as tokens; None to send text.
            prompts: The same as text.

        Returns:
            What decides the scores, by the names that messages give it; None if no later run can recognize the model.
        """

    def record(self) -> ModelRecord:
        """How the model was loaded and asked, in lm-eval's words."""

    def check_tokens(self, requests: Requests, name_of: Callable[[int], str]) -> None:
        """Checks that the model knows all tokens, if that can be known here.

        Args:
            requests: What is to be asked.
            name_of: What to call a question in a message, by its number from 0.

        Raises:
            ModelError: A token has no embedding; names the question. Or inputs are longer than its table of positions.
        """

    def sharing_with(self, ranks: Ranks) -> Backend:
        """The same as one of several processes that share a run, which read together what each of them streams.

        Raises:
            ModelError: Another rank has ended, or streams another checkpoint.
        """

    def read_along(self, meanwhile: Callable[[], object]) -> Mapping[str, Any] | None:
        """Takes part in reading what the others still stream when this process has scored all that is its own.

        Args:
            meanwhile: Called now and then.

        Returns:
            What streaming has cost this process; None if it does not stream.

        Raises:
            ModelError: Another rank has ended.
        """

    def estimate(self, requests: Requests | None, shards: int) -> str | None:
        """What a run that is going to take long, in so many shards, says of itself beforehand, or None."""

    def score(
        self,
        prompts: Sequence[Prompts],
        requests: Requests | None,
        *,
        progress: Callable[[int, int], None],
        partial: PartialScores,
    ) -> Scores:
        """Scores all choices of a run.

        Args:
            prompts: The prompts of each task.
            requests: The same as tokens; None to send text.
            progress: Called with the number of inputs done and of all.
            partial: Where scores are entered as they are finished.

        Raises:
            ModelError: The model cannot be scored, or its server fails.
            ValueError: It reads tokens, and there are none.
        """

    def score_windows(
        self, requests: Requests, *, progress: Callable[[int, int], None], partial: PartialScores
    ) -> Scores:
        """Scores windows of texts, each a question with one choice; arguments as of `score`.

        Raises:
            ModelError: As `score`.
            TypeError: The model is served.
        """
