"""Made-up token tries and their batches."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.reference import trie as reference
from wmdp_fast import Requests
from wmdp_fast.models.attention.layout import Layout

VOCABULARY = 64


def layout_of(batch: reference.Batch) -> Layout:
    return Layout(
        positions=np.array(batch.position_ids),
        num_carried=batch.num_carried,
        segments=np.array(batch.segments).reshape(-1, 4),
        keep=np.array(batch.keep, dtype=np.int64).reshape(-1, 2),
    )


@st.composite
def tries(draw: st.DrawFn, longest: int = 12) -> list[reference.Row]:
    """Rows that share beginnings: each continues a random part of one drawn before."""
    rows: list[tuple[int, ...]] = [()]
    for _ in range(draw(st.integers(1, 7))):
        parent = draw(st.sampled_from(rows))
        kept = parent[: draw(st.integers(0, len(parent)))]
        rows.append(kept + tuple(draw(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=longest))))
    return [reference.Row(row, ((len(row) - 1, 0, i),)) for i, row in enumerate(rows[1:])]


STEM = list(range(1, 20))


TOKENS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@st.composite
def requests(draw: st.DrawFn) -> Requests:
    """Questions of which some begin alike."""
    stems = st.sampled_from([[], STEM[:4], STEM, [5, 5, 5, 5]])
    contexts = [draw(stems) + draw(TOKENS) for _ in range(draw(st.integers(1, 6)))]
    choices = [draw(st.lists(TOKENS, min_size=1, max_size=4)) for _ in contexts]
    return Requests.from_tokens(contexts, choices, max_length=24)


def some_requests() -> Requests:
    contexts = [[*STEM, n, 3] for n in range(20, 28)]
    return Requests.from_tokens(contexts, [[[1], [2, 3], [2, 4, 5]]] * 8, max_length=128)
