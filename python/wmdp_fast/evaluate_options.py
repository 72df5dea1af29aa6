"""The parameters of `evaluate` as a type, for its signatures by what it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.scoring.scores import ScoreMode
    from wmdp_fast.scoring.trie import Engine
    from wmdp_fast.tasks.task import Choices


class EvaluateOptions(TypedDict, total=False):
    """The keyword parameters of `evaluate` but `resume`, described there."""

    tasks: str | PathLike[str] | Sequence[str | PathLike[str]]
    text: str | PathLike[str] | Sequence[str | PathLike[str] | Text] | Mapping[str, Sequence[str]]
    text_field: str
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None
    data: str | PathLike[str] | None
    revision: str | None
    dataset_revision: str | Mapping[str, str] | None
    num_fewshot: int | None
    limit: float | None
    subjects: str | Sequence[str] | None
    template: str | None
    choices: Choices | None
    description: str | None
    fewshot_file: str | PathLike[str] | None
    permute_choices: Literal["cyclic", "all"] | None
    lm_eval_compat: str
    apply_chat_template: bool | str
    system_instruction: str | None
    fewshot_as_multiturn: bool | None
    score_mode: ScoreMode
    engine: Engine
    token_budget: int | Literal["auto"]
    dtype: str
    device: str
    peft: str | PathLike[str] | None
    trust_remote_code: bool
    allow_missing: bool
    max_length: int | None
    memory: str | int
    stream: bool
    shards: int | None
    parallel: Literal["fsdp", "tp"] | None
    output: str | PathLike[str] | None
    log_samples: bool
    progress: bool
