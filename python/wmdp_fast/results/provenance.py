"""What a run was made of, for its results file."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from wmdp_fast.results.lm_eval_files import config_section
from wmdp_fast.tasks.task import DOC_TO_TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.scoring.backend import Backend
    from wmdp_fast.scoring.scores import Scores
    from wmdp_fast.tasks.resolve import Selection


def run_config(backend: Backend, limit: float | None) -> dict[str, Any]:
    """`model_source` and `config` of the result."""
    record = backend.record()
    config = config_section(
        record.model,
        record.model_args,
        model_info=record.model_info,
        batch_size=record.batch_size,
        device=record.device,
        limit=limit,
    )
    return {"model_source": record.model, "config": config}


def run_details(
    selection: Selection,
    backend: Backend,
    prompts: Sequence[Prompts],
    requests: Requests | None,
    scores: Scores,
    resumed: int,
) -> dict[str, Any]:
    """What lm-eval does not record, for the results file's key `wmdp_fast`."""
    return {
        "lm_eval_compat": selection.compat.name,
        "warnings": [*selection.warnings, *backend.warnings],
        "template_renderer": _template_renderers(selection, prompts),
        "tokenizer_engine": None if requests is None else requests.engine,
        "why_not_fastokens": None if requests is None else requests.why_not_fast,
        "why_no_shared_prefixes": None if requests is None else requests.why_no_cuts,
        "engine": scores.engine,
        "why_not_trie": scores.why_not_trie,
        "attention": backend.attention,
        **scores.cost(),
        "choices_resumed": resumed,
        **scores.source(),
    }


def _template_renderers(selection: Selection, prompts: Sequence[Prompts]) -> dict[str, str]:
    """For each task with a Jinja template of the user's, what rendered it."""
    names = {"rust": "rust", "jinja2": f"jinja2 {version('jinja2')}"}
    return {
        task.name: names.get(own.renderer, own.renderer)
        for task, own in zip(selection.tasks, prompts, strict=False)
        if task.doc_to_text not in DOC_TO_TEXT
    }
