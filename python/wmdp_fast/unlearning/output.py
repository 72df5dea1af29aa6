"""What a run writes: the checkpoint, the delta, and the papers that belong to them."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints import checkpoint, tensor_file
from wmdp_fast.exceptions import ModelError
from wmdp_fast.runtime import environment, strict_json
from wmdp_fast.runtime.own_code import own_code
from wmdp_fast.unlearning import reporting
from wmdp_fast.unlearning.card import model_card
from wmdp_fast.unlearning.source import base_id

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.checkpoints.shard_copies import ShardCopies
    from wmdp_fast.unlearning.activation_cache import TrunkCache
    from wmdp_fast.unlearning.method import CardText, Method
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.result import UnlearnResult
    from wmdp_fast.unlearning.source import Corpora, Source
    from wmdp_fast.unlearning.trained_weights import TrainedWeights


def run_record(
    result: UnlearnResult,
    method: Method,
    request: Request,
    source: Source,
    corpora: Corpora,
    weights: TrainedWeights,
    cache: TrunkCache | None,
    *,
    packed: bool,
) -> dict[str, Any]:
    """The content of unlearn.json.

    Args:
        result: The finished run.
        method: What was run.
        request: What the user asked for.
        source: The model.
        corpora: The tokens.
        weights: What was trained.
        cache: Where activations were kept.
        packed: Whether documents were run without padding.
    """
    return {
        "name": result.output.name if result.output else source.name,
        "method": result.config.method_name,
        "code": own_code(result.config, method),
        "base": {"name": source.name, "id": base_id(source), "commit": source.commit},
        "settings": result.config.to_json(),
        "steps": result.steps,
        "best_step": result.best_step,
        "stopped": result.stopped,
        "packed": packed,
        "metrics": list(method.metrics),
        "trained": list(result.picked),
        "changed": sorted(result.tensors),
        **result.findings.record,
        "verdict": result.findings.verdict,
        "warnings": list(source.notes),
        "saved": result.saving.to_json(),
        "corpora": {
            kind: [
                {"name": one.name, "kind": one.kind, "documents": len(one), "content_hash": one.content_hash}
                for one in getattr(corpora, kind)
            ]
            for kind in ("forget", "retain")
        },
        "evaluations": result.evaluations,
        "texts": [
            {"name": one.name, "files": list(one.files), "content_hash": one.content_hash} for one in request.eval_text
        ],
        "budget": result.budget,
        "not_held_out": list(corpora.not_held_out),
        "doubts": [*corpora.doubts, *corpora.cut],
        "seconds": {phase: round(seconds, 3) for phase, seconds in result.seconds.items()},
        "trunk_cache": None if cache is None else asdict(cache.use),
        "streamed": None if source.streamed is None else source.streamed.cost.record(),
        **({} if source.shared is None else {"parallel": {"kind": "fsdp", "processes": source.shared.size}}),
        "peak_memory_mb": round(reporting.peak_memory(weights.device), 1),
        "versions": environment.versions(),
        "hardware": environment.hardware(),
    }


def write(
    target: Path,
    result: UnlearnResult,
    record: dict[str, Any],
    source: Source,
    weights: TrainedWeights,
    card: CardText,
    work: Path | None,
    copies: ShardCopies | None = None,
) -> None:
    """Writes the checkpoint, the delta, and the papers that belong to them.

    Args:
        target: The new folder.
        result: The finished run.
        record: The content of unlearn.json; of a model without files it gets the names that these now have.
        source: The model.
        weights: What was trained.
        card: What the model card says of the method.
        work: The run's working folder, which has the results of its evaluations.
        copies: Copies of shards that the run has changed.
    """
    with checkpoint.new_folder(target) as folder:
        if result.config.save_adapter:
            weights.write_adapter(folder, base_id(source) or source.name)
        else:
            _write_checkpoint(folder, result, record, source, weights, copies)
        (folder / checkpoint.RECORD).write_text(strict_json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (folder / checkpoint.CARD).write_text(model_card(record, card), encoding="utf-8")
        for one in result.evaluations:
            if work is not None and "results" in one:
                shutil.copytree(work / one["results"], folder / one["results"])
        with (folder / checkpoint.METRICS).open("w", encoding="utf-8") as file:
            file.writelines(strict_json.dumps(row) + "\n" for row in result.metrics)


def _write_checkpoint(
    folder: Path,
    result: UnlearnResult,
    record: dict[str, Any],
    source: Source,
    weights: TrainedWeights,
    copies: ShardCopies | None,
) -> None:
    """The whole checkpoint, and the delta from its base."""
    changed = result.tensors
    if source.base is not None:
        checkpoint.write_checkpoint(source.base, changed, folder, copies)
        before = source.base.digest(changed)
    else:
        before, changed = weights.saved_from_memory(_save_from_memory(source, folder))
        record["changed"] = sorted(changed)
    repeated = ("method", "base", "settings", *result.findings.settings, "best_step")
    tensor_file.write_tensors(
        folder / checkpoint.DELTA,
        changed,
        {
            "format": "pt",
            "method": record["method"],
            "base_tensors_sha256": before,
            **result.findings.delta,
            "wmdp_fast": strict_json.dumps({name: record[name] for name in repeated}),
        },
    )


def _save_from_memory(source: Source, folder: Path) -> checkpoint.Checkpoint:
    """Lets transformers save a model that has no files."""
    if source.whole is None:
        raise ModelError("there is no whole model to save")
    source.whole.save_pretrained(folder)
    if source.tokenizer is not None:
        source.tokenizer.save_pretrained(folder)
    return checkpoint.Checkpoint.open(folder)
