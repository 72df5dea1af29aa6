"""What the model card of an RMU run says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wmdp_fast.unlearning.method import CardText

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHANGE = """\
RMU changes a few matrices so that activations on forget data are steered away from
where the rest of the model expects them."""

_WAYS_BACK = (
    """\
by fine-tuning: ten unrelated examples recover most of the ability (arXiv:2409.18025), and training on a few facts
  brings back others that were not among them (arXiv:2410.08827)""",
    "by removing one direction from the activations, the one that the steering added (arXiv:2409.18025)",
    """\
by optimized prompts, several turns of conversation (arXiv:2408.15221), few-shot examples or other wordings
  (arXiv:2411.12103)""",
    "it may come back by quantizing the weights (arXiv:2410.16454)",
    "reading intermediate layers shows some of it still there",
)


def card_text(record: Mapping[str, Any]) -> CardText:
    """The card's parts for the content of an `unlearn.json`."""
    return CardText(
        method="RMU (Li et al. 2024, arXiv:2403.03218)",
        summary=(
            f"On the forget corpora, the output of layer {record['settings']['layer_id']} was steered towards a fixed"
            " random vector; on the retain corpora it was held where it was."
        ),
        change=_CHANGE,
        ways_back=_WAYS_BACK,
        settings=(("steering coefficients used", ", ".join(f"{value:.4g}" for value in record["steering_coeffs"])),),
        delta="the control vectors",
    )
