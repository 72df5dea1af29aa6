"""Measures what a language model knows on WMDP and MMLU, as fast as the hardware allows and with lm-eval's numbers.

Importing this package loads numpy and the Rust extension only; torch and transformers come with the first call that
needs a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from wmdp_fast._rust import (
    PaddedBatch,
    Prompts,
    PromptTemplate,
    Question,
    QuestionSet,
    Requests,
    Tokenizer,
    __version__,
)
from wmdp_fast._rust import read_questions as load_questions
from wmdp_fast.exceptions import (
    DatasetError,
    DataUnavailableError,
    InternalError,
    JournalError,
    ModelError,
    TaskError,
    TemplateError,
    TokenizerError,
    WmdpFastError,
    WmdpFastWarning,
)

if TYPE_CHECKING:
    from wmdp_fast.evaluation import evaluate
    from wmdp_fast.prepare import load_tokenizer, plan
    from wmdp_fast.results import EvalResult, GroupResult, TaskResult

# Public names whose modules are imported when they are first asked for, so that `import wmdp_fast` stays quick.
_LAZY = {
    "EvalResult": "wmdp_fast.results",
    "GroupResult": "wmdp_fast.results",
    "TaskResult": "wmdp_fast.results",
    "evaluate": "wmdp_fast.evaluation",
    "load_tokenizer": "wmdp_fast.prepare",
    "plan": "wmdp_fast.prepare",
}

__all__ = [
    "DataUnavailableError",
    "DatasetError",
    "EvalResult",
    "GroupResult",
    "InternalError",
    "JournalError",
    "ModelError",
    "PaddedBatch",
    "PromptTemplate",
    "Prompts",
    "Question",
    "QuestionSet",
    "Requests",
    "TaskError",
    "TaskResult",
    "TemplateError",
    "Tokenizer",
    "TokenizerError",
    "WmdpFastError",
    "WmdpFastWarning",
    "__version__",
    "evaluate",
    "load_questions",
    "load_tokenizer",
    "plan",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
