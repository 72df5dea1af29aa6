"""When two choices are too close to call."""

from __future__ import annotations

# Margin in nats up to which rounding may have decided between two choices: one step between neighboring numbers of
# that type at the size of a typical logit (16 to 32); for float32 rather the noise of summing in another order.
NEAR_TIE = {"bfloat16": 0.125, "float16": 0.015625, "float32": 1e-4}


def near_tie_of(dtype: str) -> float:
    """The margin in nats for a dtype, `bfloat16` or `torch.bfloat16`; float32's for one that is not known."""
    return NEAR_TIE.get(dtype.removeprefix("torch."), NEAR_TIE["float32"])


def near_tie_notes(near_ties: int, total: int, bound: float) -> list[str]:
    """What stands below a table of predictions some of which are near-ties; nothing if none is.

    Args:
        near_ties: How many are.
        total: Of how many.
        bound: Margin in nats up to which one is.
    """
    if not near_ties:
        return []
    return [
        f"{near_ties} of {total} predictions are near-ties: their two best choices are within {bound:g} nats, where"
        " rounding may decide."
    ]
