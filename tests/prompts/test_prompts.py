"""Rendering in Rust equals jinja2 with lm-eval's settings."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import prompts as reference
from wmdp_fast import Prompts, PromptTemplate, QuestionSet
from wmdp_fast.exceptions import TemplateError

TEXT = st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t\x1c\xa0'\"{}%A.")), max_size=40)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, object]:
    choices = draw(st.lists(TEXT, min_size=2, max_size=6))
    return {"question": draw(TEXT), "choices": choices, "answer": draw(st.integers(0, len(choices) - 1))}


SOURCES = [
    "mmlu",
    "question",
    "{{question}}",
    "Q: {{ question.strip() }} ({{ choices | length }} choices, {{answer}})\n",
    "{% for choice in choices %}{{ loop.index }}) {{ choice.rstrip() }}\n{% endfor %}{{ question.upper() }}",
    "{% for one in choices %}{{loop.index0}}{{one | trim}}{{one|length}}|{% endfor %}{{choices[-2]}}{{question|count}}",
    "{{ question.lstrip() }}{% if answer == 0 %}!{% endif %} {{ choices[0] | trim }} {{ choices[-1] }}",
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("choices", ["letters", "texts"])
@given(docs=st.lists(documents(), min_size=1, max_size=3), shots=st.lists(documents(), max_size=3))
@settings(max_examples=50, deadline=None)
def test_contexts_and_continuations_equal_jinja2(
    source: str, choices: str, docs: list[dict[str, object]], shots: list[dict[str, object]]
) -> None:
    template = PromptTemplate(source, choices=choices, description="About birds.\n\n")
    fewshot = QuestionSet.from_rows(shots) if shots else None
    if source == "{{question}}" and any(str(doc["question"]).isdigit() for doc in docs + shots):
        with pytest.raises(TemplateError, match="which lm-eval takes for that of a choice"):
            template.render(QuestionSet.from_rows(docs), fewshot, len(shots))
        return
    prompts = template.render(QuestionSet.from_rows(docs), fewshot, len(shots))
    assert len(prompts) == len(docs)
    for i, doc in enumerate(docs):
        expected = reference.context(doc, source=source, choices=choices, description="About birds.\n\n", fewshot=shots)
        assert prompts.context(i) == expected
        assert prompts.choices(i) == reference.doc_to_choice(doc, choices)
        assert prompts.continuation(i, 1) == " " + reference.doc_to_choice(doc, choices)[1]


def test_extra_columns_can_be_used_and_print_as_python_prints_them() -> None:
    row = {
        "question": "q",
        "choices": ["a", "b"],
        "answer": 1,
        "level": 3,
        "checked": True,
        "weight": 0.5,
        "tags": ["x", "it's", None, False],
        "nested": {"a": [1, 2.0], "b": "c"},
    }
    source = "{{level}} {{checked}} {{weight}} {{tags}} {{nested}} {{nested.a[1]}}"
    prompts = PromptTemplate(source).render(QuestionSet.from_rows([row]))
    assert prompts.context(0) == reference.doc_to_text(row, source)


@pytest.mark.parametrize(
    ("source", "told"),
    [("mmul", "neither a built-in form"), ("{{ question", "{{ question"), ("{% if %}", "{% if %}")],
)
def test_what_is_no_template_is_refused(source: str, told: str) -> None:
    with pytest.raises(TemplateError) as caught:
        PromptTemplate(source)
    assert told in str(caught.value)


def test_an_unknown_column_is_named_beside_those_there_are() -> None:
    questions = QuestionSet.from_rows([{"question": "q", "choices": ["a", "b"], "answer": 0, "level": 1}], file="b.csv")
    told = r"'hint' is undefined; a question's fields are level, question, choices, answer; at b\.csv, row 1"
    for source in ("{{ hint }}", "{{ hint | upper }}"):
        with pytest.raises(TemplateError, match=told):
            PromptTemplate(source).render(questions)


def test_a_failing_template_names_file_and_row() -> None:
    rows = [
        {"question": "q", "choices": ["a", "b"], "answer": 0, "hint": "h"},
        {"question": "q", "choices": ["a", "b"], "answer": 0, "hint": None},
    ]
    template = PromptTemplate("{{ hint.strip() }}")
    with pytest.raises(TemplateError, match=r"birds\.jsonl, row 2"):
        template.render(QuestionSet.from_rows(rows, file="birds.jsonl"))


def test_too_few_examples_are_refused() -> None:
    questions = QuestionSet.from_rows([{"question": "q", "choices": ["a", "b"], "answer": 0}], file="dev.jsonl")
    with pytest.raises(ValueError, match=r"dev\.jsonl holds only 1"):
        PromptTemplate().render(questions, questions, 2)
    with pytest.raises(ValueError, match="no file to take them from"):
        PromptTemplate().render(questions, None, 2)


def test_contexts_made_elsewhere_share_their_beginning() -> None:
    prompts = Prompts.from_contexts(["chat: é?", "chat: è?"], [["A", "B"]] * 2, [0, 1])
    assert prompts.prefix == "chat: "
    assert [prompts.context(i) for i in range(2)] == ["chat: é?", "chat: è?"]
    assert prompts.answers == [0, 1]
    with pytest.raises(ValueError, match="<memory>, row 2: answer 2"):
        Prompts.from_contexts(["a", "b"], [["A", "B"]] * 2, [0, 2])
    with pytest.raises(ValueError, match="as many of each"):
        Prompts.from_contexts(["a", "b"], [["A", "B"]], [0])


def test_indices_out_of_range_are_refused() -> None:
    prompts = Prompts.from_contexts(["a"], [["A", "B"]], [0])
    for call in (lambda: prompts.context(1), lambda: prompts.choices(1), lambda: prompts.continuation(0, 2)):
        with pytest.raises(IndexError):
            call()


def test_a_template_survives_pickling() -> None:
    template = PromptTemplate("{{question}}\n", choices="texts", description="d", fewshot_delimiter="\n")
    copy = pickle.loads(pickle.dumps(template))
    questions = QuestionSet.from_rows([{"question": "q", "choices": ["a", "b"], "answer": 0}])
    assert copy.render(questions).context(0) == template.render(questions).context(0) == "dq\n"
