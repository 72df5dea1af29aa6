"""The model card: what was done to a model, what it showed, and why that is not deletion."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.checkpoint import ATTACKS_BEGIN, ATTACKS_END
from wmdp_fast.runtime.tables import number_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wmdp_fast.unlearning.method import CardText

_CAUTION = """\
Prompts in which a forget-domain term appears by chance may get worse answers (arXiv:2501.19202). Do not rely on this
model to withhold dangerous knowledge from someone who can change it, and measure its robustness before you rely on it
at all.
"""

_NOT_ATTACKED = (
    ATTACKS_BEGIN,
    "",
    "## Attacks",
    "",
    "Not run: no attack was tried on this model, so nothing may be claimed of what brings the knowledge back, and what"
    " was to be kept was measured only as above. `wmdp-fast attack THIS_FOLDER --base BASE --tasks NAMES --card`"
    " writes here what it finds.",
    "",
    ATTACKS_END,
)


def model_card(record: Mapping[str, Any], method: CardText) -> str:
    """The text of README.md for a finished run.

    Args:
        record: The content of `unlearn.json`.
        method: What is to be said of the method.
    """
    settings = record["settings"]
    base = record["base"]["name"]
    base_id = record["base"]["id"]
    note = "" if base_id else " It was a folder whose configuration names no model on the hub."
    lines = [
        "---",
        *([f"base_model: {base_id}"] if base_id else []),
        f"library_name: {'peft' if settings.get('save_adapter') else 'transformers'}",
        f"tags: [unlearning, {record['method']}, wmdp-fast]",
        "---",
        "",
        f"# {record['name']}",
        "",
        f"{_linked(base, base_id)} after {record['best_step']} steps of {method.method},"
        f" made with wmdp-fast {record['versions']['wmdp_fast']}. {method.summary}{note}",
        "",
        *_warnings(record),
        "## Results",
        "",
        *_results(record["evaluations"]),
        *_distance(record["budget"]),
        "",
        *_NOT_ATTACKED,
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {_value(value)} |" for name, value in settings.items()),
        *(f"| {name} | {value} |" for name, value in method.settings),
        *(f"| code of the method | {one['path']}, SHA-256 `{one['sha256'][:16]}` |" for one in record["code"]),
        "",
        "| corpus | kind | documents | SHA-256 of the texts |",
        "|---|---|---|---|",
        *(
            f"| {corpus['name']} | {kind} | {corpus['documents']} | `{corpus['content_hash'][:16]}` |"
            for kind in ("forget", "retain")
            for corpus in record["corpora"][kind]
        ),
        "",
        f"`unlearn.json` has everything about the run; {_files(settings, method)}.",
        "",
        *_not_deleted(method),
        "## Tensors of the adapter" if settings.get("save_adapter") else "## Changed tensors",
        "",
        *([] if settings.get("save_adapter") else ["All others are the base's.", ""]),
        *(f"- `{tensor}`" for tensor in record["changed"]),
        "",
    ]
    return "\n".join(lines)


def _files(settings: Mapping[str, Any], method: CardText) -> str:
    """What the weights beside the card are."""
    if settings.get("save_adapter"):
        return (
            "`adapter_model.safetensors` and `adapter_config.json` are a LoRA adapter, which PEFT puts on the base"
            " (`wmdp-fast eval BASE --peft THIS_FOLDER` measures both together)"
        )
    also = f" and {method.delta}" if method.delta else ""
    return (
        f"`delta.safetensors` has the changed tensors{also} (`wmdp-fast apply-delta BASE delta.safetensors OUT` makes"
        " this checkpoint from it)"
    )


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share of `count` independent trials."""
    z2 = 1.959964**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return middle - half, middle + half


def _results(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    if not evaluations:
        return ["Not evaluated. `wmdp-fast eval` measures what is left; pass `--eval-tasks` to have it here."]
    before, after = evaluations[0], evaluations[-1]
    lines = (
        []
        if not any("acc" in scores for scores in after["scores"].values())
        else [
            f"Accuracy before (step {before['step']}) and after (step {after['step']}), with 95 % Wilson intervals.",
            "",
            "| task | questions | guessing | before | after |",
            "|---|---|---|---|---|",
        ]
    )
    for task, scores in after["scores"].items():
        if "acc" not in scores:
            continue
        count = after["questions"][task]
        was, now = before["scores"][task]["acc"], scores["acc"]
        # Of a run that an earlier version has begun it is not known.
        chance = after.get("chance", {}).get(task)
        guessing = "" if chance is None else f"{chance:.3f}"
        lines.append(f"| {task} | {count} | {guessing} | {_share(was, count)} | {_share(now, count)} |")
    return [*lines, *_perplexities(before, after)]


def _perplexities(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What became of the perplexity of texts, if there are any."""
    texts = {name: scores for name, scores in after["scores"].items() if "word_perplexity" in scores}
    if not texts:
        return []
    return [
        "",
        f"Perplexity of texts before (step {before['step']}) and after (step {after['step']}); lower is better.",
        "",
        "| text | documents | metric | before | after |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {after['questions'][name]} | {metric.replace('_', ' ')} |"
            f" {number_text(before['scores'][name][metric])} | {number_text(value)} |"
            for name, scores in texts.items()
            for metric, value in scores.items()
        ),
    ]


def _distance(budget: Mapping[str, Any] | None) -> list[str]:
    """How far the model is from the base, if that was limited."""
    if budget is None:
        return []
    return [
        "",
        f"KL divergence from the base on general text ({budget['text']['name']}, {budget['text']['tokens']} tokens):"
        f" {budget['kl']:.4g} nats per token, of at most {budget['max_kl']:g}.",
    ]


def _share(value: float, count: int) -> str:
    low, high = wilson_interval(value, count)
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _warnings(record: Mapping[str, Any]) -> list[str]:
    """What the run says of itself that should not be overlooked."""
    saved = record["saved"]
    found = [] if record["verdict"] is None else [record["verdict"]]
    if saved["reason"] is not None:
        found.append(saved["reason"])
    found += record.get("not_held_out", ())
    found += record.get("doubts", ())
    return [f"> **{text[0].upper()}{text[1:]}.**\n" for text in found]


def _not_deleted(method: CardText) -> list[str]:
    """What the change is not, and what undoes it."""
    ways_back = ";\n- ".join(method.ways_back)
    return [
        "## What this is not",
        "",
        f"The knowledge has not been deleted. {method.change} Much of what was suppressed is known to come back:",
        "",
        f"- {ways_back}.",
        "",
        _CAUTION,
    ]


def _linked(base: str, base_id: str | None) -> str:
    """The base as a link, if it is on the hub; of a folder only its name, since its path may tell who made it."""
    if base_id is not None:
        return f"[{base_id}](https://huggingface.co/{base_id})"
    return f"`{PurePath(base).name or base}`"
