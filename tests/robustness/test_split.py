"""Which questions are for choosing: by their text alone, near-duplicates together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wmdp_fast import QuestionSet
from wmdp_fast.robustness.split import SIMILAR, for_choosing, near_duplicates, normalized

WORDS = st.sampled_from(["wren", "owl", "nest", "tree", "egg", "wing", "song", "beak"])
TEXTS = st.lists(WORDS, min_size=1, max_size=7).map(" ".join)


def questions(texts: list[str], answers: list[str]) -> list:
    pairs = zip(texts, answers, strict=True)
    rows = [{"question": text, "choices": [answer, "none"], "answer": 0} for text, answer in pairs]
    return list(QuestionSet.from_rows(rows))


@given(st.lists(st.tuples(TEXTS, st.sampled_from(["a", "b"])), min_size=1, max_size=12))
def test_groups_are_those_of_comparing_all_pairs(drawn: list[tuple[str, str]]) -> None:
    texts, answers = map(list, zip(*drawn, strict=True))
    group = list(range(len(texts)))
    for one in range(len(texts)):
        for other in range(one):
            a, b = (set(normalized(texts[place]).split()) for place in (one, other))
            if answers[one] == answers[other] and len(a & b) >= SIMILAR * len(a | b):
                old, new = max(group[one], group[other]), min(group[one], group[other])
                group = [new if name == old else name for name in group]
    assert near_duplicates(questions(texts, answers)) == group


def test_the_split_follows_a_question_wherever_it_stands() -> None:
    texts = [f"What does bird {number} eat on day {number * 3}?" for number in range(60)]
    answers = [str(number) for number in range(60)]
    split = for_choosing(questions(texts, answers))
    assert 18 <= split.sum() <= 42
    assert (for_choosing(questions(texts[::-1], answers[::-1])) == split[::-1]).all()
    assert (for_choosing(questions(texts[20:], answers[20:])) == split[20:]).all()


def test_near_duplicates_stay_together() -> None:
    texts = [f"On which of the old trees at the lake does bird {number} build its nest?" for number in range(40)]
    again = [text.upper().replace("AT THE LAKE", "at a lake") for text in texts]
    split = for_choosing(questions(texts + again, [*map(str, range(40))] * 2))
    assert (split[:40] == split[40:]).all()
