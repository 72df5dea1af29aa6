"""What a run was made of: for its results file, and to know the same run again."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast._rust import __version__
from wmdp_fast.results.lm_eval_files import config_section
from wmdp_fast.tasks.task import DOC_TO_TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.tokenizer_only import TokenizerOnly
    from wmdp_fast.scoring.scores import PartialScores, ScoreMode, Scores
    from wmdp_fast.scoring.served import ServedModel
    from wmdp_fast.tasks.resolve import Selection


def run_identity(
    loaded: LoadedModel | ServedModel, requests: Requests | None, prompts: Sequence[Prompts], score_mode: ScoreMode
) -> dict[str, Any] | None:
    """Two runs that agree in this have the same scores, whatever engine makes them and in whatever batches.

    None for a model in memory, which no later run can recognize. A served model is trusted to be the same as before
    under the same name at the same address.
    """
    from wmdp_fast.models.load import files_identity
    from wmdp_fast.scoring.served import ServedModel

    asked = _content_hash(prompts) if requests is None else requests.content_hash
    if isinstance(loaded, ServedModel):
        server = loaded.server
        return {
            "base url": server.base_url,
            "served model": server.model,
            "engine": server.protocol,
            "missing letters": server.about_missing,
            "questions and their text" if requests is None else "questions and their tokens": asked,
            "wmdp_fast": __version__,
        }
    if loaded.path is None:
        return None
    return {
        "model files": files_identity(loaded),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "score mode": score_mode,
        "questions and their tokens": asked,
        "wmdp_fast": __version__,
    }


def run_config(
    loaded: LoadedModel | ServedModel,
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None,
    dtype: str,
    revision: str | None,
    peft: str | PathLike[str] | None,
    token_budget: int | Literal["auto"],
    limit: float | None,
) -> dict[str, Any]:
    """`model_source` and `config` of the result: for a served model those of lm-eval's `local-completions`."""
    from wmdp_fast.scoring.served import ServedModel

    if isinstance(loaded, ServedModel):
        server = loaded.server
        arguments: dict[str, Any] = {"model": server.model, "base_url": server.base_url}
        if loaded.tokenizer is not None:
            arguments["tokenizer"] = loaded.tokenizer.name_or_path
        source = "local-completions"
        return {"model_source": source, "config": config_section(source, arguments, limit=limit)}
    return {
        "model_source": "hf",
        "config": config_section(
            "hf",
            _model_args(loaded, tokenizer, dtype, revision, peft),
            model_info=_model_info(loaded),
            batch_size=token_budget,
            device=str(loaded.device),
            limit=limit,
        ),
    }


def run_details(
    selection: Selection,
    loaded: LoadedModel | ServedModel,
    prompts: Sequence[Prompts],
    requests: Requests | None,
    scores: Scores,
    partial: PartialScores,
) -> dict[str, Any]:
    """What lm-eval does not record, for the results file's key `wmdp_fast`."""
    from wmdp_fast.scoring.served import ServedModel, ServedScores

    details: dict[str, Any] = {
        "lm_eval_compat": selection.compat.name,
        "warnings": [*selection.warnings, *getattr(loaded, "warnings", ())],
        "template_renderer": _template_renderers(selection, prompts),
        "tokenizer_engine": None if requests is None else requests.engine,
        "why_not_fastokens": None if requests is None else requests.why_not_fast,
        "why_no_shared_prefixes": None if requests is None else requests.why_no_cuts,
        "engine": scores.engine,
        "why_not_trie": scores.why_not_trie,
        "attention": _attention(loaded),
        "token_budget": scores.token_budget,
        "batches": scores.batches,
        "tokens_run": scores.tokens_run,
        "tokens_useful": scores.tokens_useful,
        "seconds_waiting": scores.seconds_waiting,
        "choices_resumed": 0 if partial.journal is None else len(partial.journal.choices),
    }
    if isinstance(loaded, ServedModel) and isinstance(scores, ServedScores):
        server = loaded.server
        # Where a server was asked there were no batches of tokens.
        del details["token_budget"], details["batches"], details["seconds_waiting"]
        details["server"] = {
            "base_url": server.base_url,
            "model": server.model,
            "sent": "text" if requests is None else "tokens",
            "top_logprobs": server.top_logprobs,
            "missing_letters": server.about_missing,
            "choices_bounded": scores.bounded,
            "concurrency": server.concurrency,
            "requests": scores.requests,
            "requests_repeated": scores.repeated,
        }
    return details


def _attention(loaded: LoadedModel | ServedModel) -> str | None:
    """The attention implementation of transformers that the model is set to, which padded rows run with."""
    config = getattr(getattr(loaded, "model", None), "config", None)
    return getattr(config, "_attn_implementation", None)


def _template_renderers(selection: Selection, prompts: Sequence[Prompts]) -> dict[str, str]:
    """For each task with a Jinja template of the user's, what rendered it."""
    names = {"rust": "rust", "jinja2": f"jinja2 {version('jinja2')}"}
    return {
        task.name: names.get(own.renderer, own.renderer)
        for task, own in zip(selection.tasks, prompts, strict=False)
        if task.doc_to_text not in DOC_TO_TEXT
    }


def model_type(loaded: LoadedModel | ServedModel | TokenizerOnly) -> str:
    """Transformers' name for the architecture, or nothing for a model that has none or is served."""
    if found := getattr(loaded, "model_type", None):
        return str(found)
    return str(getattr(getattr(getattr(loaded, "model", None), "config", None), "model_type", ""))


def _model_info(loaded: LoadedModel) -> dict[str, Any]:
    """What lm-eval's `get_model_info` records."""
    return {
        "model_num_parameters": loaded.num_parameters,
        "model_dtype": str(loaded.dtype),
        "model_revision": loaded.revision or "main",
        "model_sha": loaded.sha or "",
    }


def _model_args(
    loaded: LoadedModel,
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None,
    dtype: str,
    revision: str | None,
    peft: str | PathLike[str] | None,
) -> dict[str, Any]:
    """lm-eval's `model_args`: what the model was loaded with."""
    arguments: dict[str, Any] = {"pretrained": loaded.name, "dtype": dtype}
    if isinstance(tokenizer, (str, os.PathLike)):
        arguments["tokenizer"] = os.fspath(tokenizer)
    if revision is not None:
        arguments["revision"] = revision
    if peft is not None:
        arguments["peft"] = os.fspath(peft)
    return arguments


def _content_hash(prompts: Sequence[Prompts]) -> str:
    """SHA-256 of what is asked, as text."""
    content = hashlib.sha256()
    for own in prompts:
        for index in range(len(own)):
            texts = [own.continuation(index, choice) for choice in range(len(own.choices(index)))]
            content.update(json.dumps([own.context(index), texts]).encode())
    return content.hexdigest()
