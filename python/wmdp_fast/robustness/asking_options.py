"""Which options of `evaluate` say how an attack asks, and where the others belong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.unlearning.eval_options import ASKING, check_eval_options

if TYPE_CHECKING:
    from collections.abc import Mapping

_OF_THE_ATTACK = (
    "tasks", "tokenizer", "revision", "dtype", "device", "peft", "trust_remote_code", "engine", "output", "progress",
)  # fmt: skip

_ELSEWHERE = {
    **dict.fromkeys(_OF_THE_ATTACK, "it is for all that is asked, so pass it beside eval_options"),
    "text": "texts are utility_text and general_text",
    "text_field": "documents are under text",
}


def check_asking(options: Mapping[str, object] | None) -> None:
    """Raises ValueError for what an attack does not take in `eval_options`; says where it belongs."""
    check_eval_options(options or {}, ASKING, _ELSEWHERE)
