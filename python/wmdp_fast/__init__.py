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
    aggregate,
)
from wmdp_fast._rust import read_questions as load_questions
from wmdp_fast.exceptions import (
    DatasetError,
    DataUnavailableError,
    DivergedError,
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
    from wmdp_fast.analysis.comparison import Comparison, compare
    from wmdp_fast.analysis.rescoring import rescore
    from wmdp_fast.evaluation import evaluate, rendered_prompts
    from wmdp_fast.integrations.training import EvalCallback
    from wmdp_fast.prompts.prepare import plan
    from wmdp_fast.prompts.rendered import RenderedContinuation, RenderedPrompt
    from wmdp_fast.prompts.tokenizer import load_tokenizer
    from wmdp_fast.report import report_html
    from wmdp_fast.results.result import EvalResult, GroupResult, TaskResult
    from wmdp_fast.results.saved import SavedResults, read_results
    from wmdp_fast.robustness.api import attack
    from wmdp_fast.robustness.result import AttackResult
    from wmdp_fast.robustness.table.table import Table, table
    from wmdp_fast.scoring.server import Server
    from wmdp_fast.several_models import ModelSpec, ScoredModel, evaluate_many
    from wmdp_fast.unlearning.adapter_config import AdapterConfig
    from wmdp_fast.unlearning.api import unlearn
    from wmdp_fast.unlearning.language_model import LanguageModel
    from wmdp_fast.unlearning.lora import LoRA
    from wmdp_fast.unlearning.method import (
        CardText,
        Findings,
        Method,
        MethodState,
        Setup,
        StepInput,
        StepOutput,
    )
    from wmdp_fast.unlearning.methods.elm import ELMConfig
    from wmdp_fast.unlearning.methods.finetune import FinetuneConfig
    from wmdp_fast.unlearning.methods.graddiff import GradDiffConfig
    from wmdp_fast.unlearning.methods.llmu import LLMUConfig
    from wmdp_fast.unlearning.methods.npo import NPOConfig
    from wmdp_fast.unlearning.methods.npo_sam import NPOSAMConfig
    from wmdp_fast.unlearning.methods.rr import RRConfig
    from wmdp_fast.unlearning.methods.scrub import SCRUBConfig
    from wmdp_fast.unlearning.methods.simnpo import SimNPOConfig
    from wmdp_fast.unlearning.methods.ssd import SSDConfig
    from wmdp_fast.unlearning.result import UnlearnResult
    from wmdp_fast.unlearning.rmu.config import RMUConfig
    from wmdp_fast.unlearning.rmu.presets import PRESETS as presets  # noqa: N811 (the public name)
    from wmdp_fast.unlearning.rmu.profile import profile_layers as layers
    from wmdp_fast.unlearning.sweep.result import SweepResult
    from wmdp_fast.unlearning.sweep.search_space import Range
    from wmdp_fast.unlearning.sweep.sweep import sweep
    from wmdp_fast.unlearning.training_config import SearchAxis, TrainingConfig

# Public names whose modules are imported when they are first asked for, so that `import wmdp_fast` stays quick.
_LAZY = {
    "AttackResult": "wmdp_fast.robustness.result",
    "AdapterConfig": "wmdp_fast.unlearning.adapter_config",
    "CardText": "wmdp_fast.unlearning.method",
    "Comparison": "wmdp_fast.analysis.comparison",
    "ELMConfig": "wmdp_fast.unlearning.methods.elm",
    "EvalCallback": "wmdp_fast.integrations.training",
    "EvalResult": "wmdp_fast.results.result",
    "Findings": "wmdp_fast.unlearning.method",
    "FinetuneConfig": "wmdp_fast.unlearning.methods.finetune",
    "GradDiffConfig": "wmdp_fast.unlearning.methods.graddiff",
    "GroupResult": "wmdp_fast.results.result",
    "LLMUConfig": "wmdp_fast.unlearning.methods.llmu",
    "LanguageModel": "wmdp_fast.unlearning.language_model",
    "LoRA": "wmdp_fast.unlearning.lora",
    "Method": "wmdp_fast.unlearning.method",
    "MethodState": "wmdp_fast.unlearning.method",
    "ModelSpec": "wmdp_fast.several_models",
    "NPOConfig": "wmdp_fast.unlearning.methods.npo",
    "NPOSAMConfig": "wmdp_fast.unlearning.methods.npo_sam",
    "RMUConfig": "wmdp_fast.unlearning.rmu.config",
    "RRConfig": "wmdp_fast.unlearning.methods.rr",
    "Range": "wmdp_fast.unlearning.sweep.search_space",
    "RenderedContinuation": "wmdp_fast.prompts.rendered",
    "RenderedPrompt": "wmdp_fast.prompts.rendered",
    "SCRUBConfig": "wmdp_fast.unlearning.methods.scrub",
    "SSDConfig": "wmdp_fast.unlearning.methods.ssd",
    "SavedResults": "wmdp_fast.results.saved",
    "ScoredModel": "wmdp_fast.several_models",
    "SearchAxis": "wmdp_fast.unlearning.training_config",
    "Server": "wmdp_fast.scoring.server",
    "Setup": "wmdp_fast.unlearning.method",
    "SimNPOConfig": "wmdp_fast.unlearning.methods.simnpo",
    "StepInput": "wmdp_fast.unlearning.method",
    "StepOutput": "wmdp_fast.unlearning.method",
    "SweepResult": "wmdp_fast.unlearning.sweep.result",
    "Table": "wmdp_fast.robustness.table.table",
    "TaskResult": "wmdp_fast.results.result",
    "TrainingConfig": "wmdp_fast.unlearning.training_config",
    "UnlearnResult": "wmdp_fast.unlearning.result",
    "attack": "wmdp_fast.robustness.api",
    "compare": "wmdp_fast.analysis.comparison",
    "evaluate": "wmdp_fast.evaluation",
    "evaluate_many": "wmdp_fast.several_models",
    "layers": "wmdp_fast.unlearning.rmu.profile",
    "load_tokenizer": "wmdp_fast.prompts.tokenizer",
    "plan": "wmdp_fast.prompts.prepare",
    "presets": "wmdp_fast.unlearning.rmu.presets",
    "read_results": "wmdp_fast.results.saved",
    "rendered_prompts": "wmdp_fast.evaluation",
    "report_html": "wmdp_fast.report",
    "rescore": "wmdp_fast.analysis.rescoring",
    "sweep": "wmdp_fast.unlearning.sweep.sweep",
    "table": "wmdp_fast.robustness.table.table",
    "unlearn": "wmdp_fast.unlearning.api",
}

# Public names that are called otherwise where they are.
_THERE = {"layers": "profile_layers", "presets": "PRESETS"}

__all__ = [
    "AdapterConfig",
    "AttackResult",
    "CardText",
    "Comparison",
    "DataUnavailableError",
    "DatasetError",
    "DivergedError",
    "ELMConfig",
    "EvalCallback",
    "EvalResult",
    "Findings",
    "FinetuneConfig",
    "GradDiffConfig",
    "GroupResult",
    "InternalError",
    "JournalError",
    "LLMUConfig",
    "LanguageModel",
    "LoRA",
    "Method",
    "MethodState",
    "ModelError",
    "ModelSpec",
    "NPOConfig",
    "NPOSAMConfig",
    "PaddedBatch",
    "PromptTemplate",
    "Prompts",
    "Question",
    "QuestionSet",
    "RMUConfig",
    "RRConfig",
    "Range",
    "RenderedContinuation",
    "RenderedPrompt",
    "Requests",
    "SCRUBConfig",
    "SSDConfig",
    "SavedResults",
    "ScoredModel",
    "SearchAxis",
    "Server",
    "Setup",
    "SimNPOConfig",
    "StepInput",
    "StepOutput",
    "SweepResult",
    "Table",
    "TaskError",
    "TaskResult",
    "TemplateError",
    "Tokenizer",
    "TokenizerError",
    "TrainingConfig",
    "UnlearnResult",
    "WmdpFastError",
    "WmdpFastWarning",
    "__version__",
    "aggregate",
    "attack",
    "compare",
    "evaluate",
    "evaluate_many",
    "layers",
    "load_questions",
    "load_tokenizer",
    "plan",
    "presets",
    "read_results",
    "rendered_prompts",
    "report_html",
    "rescore",
    "sweep",
    "table",
    "unlearn",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), _THERE.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
