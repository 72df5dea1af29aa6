"""Templates over everything Jinja has equal jinja2's with lm-eval's settings, and hostile ones are refused in one line.

`WMDP_FAST_TEMPLATE_CASES=10000` tries so many expressions.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS

from tests.reference import prompts as reference
from wmdp_fast import PromptTemplate, QuestionSet
from wmdp_fast.exceptions import TemplateError
from wmdp_fast.prompts import jinja, jinja_process

CASES = int(os.environ.get("WMDP_FAST_TEMPLATE_CASES", "400"))

TEXT = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t\x1c\x85\xa0\u200b\u2028\u3000'\"{}%A.<&İßǆ")),
    max_size=12,
)
NUMBERS = st.one_of(
    st.integers(-3, 30),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1e20, 1e-7, 1e16, 2.5, 0.1, -0.0]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
# What else a filter may be given: no number so large that jinja2 without bounds, which is asked too, could not do it.
SMALL = st.one_of(st.integers(-3, 30), TEXT, st.none(), st.booleans(), st.sampled_from([0.5, 2.0]))
# Kinds of values that no column has, written in the template.
LITERALS = [
    "(1, 'b')",
    "()",
    "x.items()",
    "range(4)",
    "hint",
    "[x, (x,)]",
    "10 ** 30",
    "-x",
    "x ~ y",
    "x + y",
    "x * 3",
    "x[0]",
]
ARGUMENTS = [
    "",
    "()",
    "(y)",
    "('a')",
    "(2)",
    "(y, 2)",
    "(1, 'floor')",
    "(default='z')",
    "(attribute=0)",
    "('a', 'b')",
    "('upper')",
]
METHODS = [
    "strip()",
    "lstrip('a')",
    "upper()",
    "title()",
    "swapcase()",
    "casefold()",
    "zfill(9)",
    "center(9)",
    "ljust(9, '.')",
    "index('a')",
    "removeprefix('A')",
    "partition('a')",
    "split()",
    "splitlines()",
    "encode()",
    "count('')",
    "items()",
    "replace('', '-')",
    "format(y)",
    "expandtabs(2)",
    "isdigit()",
    "get('a')",
    "capitalize()",
    "strip",
    "__class__",
]
FILTERS = [*sorted(DEFAULT_FILTERS), "regex_replace('[a-z]', '<\\\\g<0>>')", "truncate(5)", "wordwrap(4)", "tojson(2)"]

EXPRESSIONS = st.one_of(
    st.builds("x|{}{}".format, st.sampled_from(FILTERS), st.sampled_from(ARGUMENTS)),
    st.builds("{}|{}".format, st.sampled_from(LITERALS), st.sampled_from(FILTERS)),
    st.builds(
        "x|{}|{}".format, st.sampled_from(FILTERS), st.sampled_from(["string", "list", "tojson", "join(',')", "pprint"])
    ),
    st.builds("x is {}{}".format, st.sampled_from(sorted(DEFAULT_TESTS)), st.sampled_from(ARGUMENTS)),
    st.builds("x.{}".format, st.sampled_from(METHODS)),
    st.builds("'{}' % x".format, st.sampled_from(["%s", "%5.2f", "%d", "%r", "%(a)s"])),
    st.sampled_from(LITERALS),
)


def document(x: object, y: object) -> dict[str, Any]:
    return {"x": x, "y": y, "question": "Which?", "choices": ["a", "b"], "answer": 1}


def outcome(render: Any) -> str | Exception:
    try:
        return str(render())
    except Exception as error:
        return error


def in_this_process(source: str, doc: dict[str, Any]) -> str:
    template = jinja_process.environment().from_string(source)
    return jinja_process.render(template, doc, source, jinja.LONGEST)


def compare(ours: str | Exception, expected: str | Exception, source: str) -> None:
    """The same text, or an error; ours alone may refuse what is no prompt, and says so."""
    if isinstance(ours, str):
        assert ours == expected, source
        return
    told = str(ours)
    if isinstance(expected, str):
        named = (
            "not for templates",
            "other texts each time",
            "Python object",
            "lone surrogate",
            "too big",
            "not safely",
        )
        assert any(name in told for name in named), (source, expected, ours)


@given(EXPRESSIONS, VALUES, SMALL)
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
def test_filters_tests_and_methods_equal_jinja2s(expression: str, x: object, y: object) -> None:
    source = "[{{ " + expression + " }}]"
    doc = document(x, y)
    expected = outcome(lambda: reference.doc_to_text(doc, source))
    compare(outcome(lambda: in_this_process(source, doc)), expected, source)


PIECES = [
    "{{ x }}",
    "{{x.strip()}}",
    "{{ x|trim }}",
    "{{ x|length }}",
    "{{ choices[0] }}",
    "{{ x[-1] }}",
    "{{ x[0].lstrip() }}",
    "{% for one in x %}",
    "{% for one in choices %}",
    "{{ one }}",
    "{{ loop.index }}",
    "{% endfor %}",
    "{{ y }}",
    "{{ range }}",
]


@given(st.lists(st.one_of(TEXT, st.sampled_from(PIECES)), max_size=6).map("".join), VALUES, VALUES)
@example("{{ x }}\r\n", "a", "b")
@example("{{ x }}", "5\u00b2", "b")
@settings(max_examples=max(60, CASES // 10), deadline=None, suppress_health_check=list(HealthCheck))
def test_plain_templates_equal_jinja2s(source: str, x: object, y: object) -> None:
    """What Rust renders itself, and what it hands on; from the template to the prompt."""
    doc = document(x, y)
    if not any(begin in source for begin in ("{{", "{%", "{#")):
        source += "{{ question }}"
    ours = outcome(lambda: PromptTemplate(source).render(QuestionSet.from_rows([doc])).context(0))
    expected = outcome(lambda: reference.doc_to_text(doc, source))
    compare(ours, expected, source)
    assert isinstance(ours, (str, TemplateError))


@pytest.mark.parametrize(
    ("source", "renderer"),
    [
        ("{{ question.strip() }}{% for one in choices %}\n{{ loop.index }}. {{ one }}{% endfor %}\nAnswer:", "rust"),
        ("{{ x|string }} {{ x|tojson }} {{ x|map('e')|list }}", "jinja2"),
        ("{{ [1e20, 1e-7, 1e16] }} {{ (1, 2) }} {{ {'a': 1}.items() }} {{ {'b': 1, 'a': 2}|dictsort }}", "jinja2"),
        (
            "{{ y|title }} {{ y|truncate(3) }} {{ y|wordcount }} {{ y|center(20) }} {{ '%5.1f' % 2 }} {{ 'abc'|int }}",
            "jinja2",
        ),
        (
            "{{ y|regex_replace('[aeiou]', '_') }} {{ y.zfill(12) }} {{ y.partition(' ') }} {{ 4.5|round(0,'floor') }}",
            "jinja2",
        ),
        ("{# only a comment #}", "jinja2"),
        ("{%- if answer == 1 -%} yes {%- endif -%}", "jinja2"),
    ],
)
def test_examples_equal_jinja2s(source: str, renderer: str) -> None:
    doc = document(["it's", "\u200b\u2028<", {"b": 1, "a": [True, None]}], "a long's day")
    prompts = PromptTemplate(source).render(QuestionSet.from_rows([doc, doc]))
    assert prompts.renderer == renderer
    assert prompts.context(1) == reference.doc_to_text(doc, source)


def test_the_environment_is_lm_evals() -> None:
    utils = pytest.importorskip("lm_eval.utils")
    ours = jinja_process.environment()
    assert set(ours.filters) == set(utils.env.filters)
    assert set(ours.tests) == set(utils.env.tests)
    assert set(ours.globals) == set(utils.env.globals)
    for setting in (
        "autoescape",
        "block_end_string",
        "block_start_string",
        "comment_end_string",
        "comment_start_string",
        "keep_trailing_newline",
        "line_comment_prefix",
        "line_statement_prefix",
        "lstrip_blocks",
        "newline_sequence",
        "optimized",
        "trim_blocks",
        "undefined",
        "variable_end_string",
        "variable_start_string",
    ):
        assert getattr(ours, setting) == getattr(utils.env, setting), setting
    doc = document("a1b2", "z")
    source = "{{ x|regex_replace('([0-9])', '<\\\\1>', 1) }}\n"
    assert in_this_process(source, doc) == utils.apply_template(source, doc)


def _hostile() -> list[str]:
    loop = "{% for i in range(99999) %}"
    deep = 100_000
    endless = [
        "{{x}}" * 20_000,
        "{" * 1_000_000 + "{{ x }}",
        loop * 2 + "{% endfor %}" * 2,
        loop * 3 + "{{ i }}" + "{% endfor %}" * 3,
        "{{ (2 ** 99999 ** 9)|string|length }}",
        "{{ x|regex_replace('(a*)*b', '') }}",
    ]
    memory = [
        "{{ 'x' * 10 ** 12 }}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ 'x'.center(10 ** 10) }}",
        "{{ 'x'|center(10 ** 12) }}",
        "{{ 'x'.zfill(10 ** 12) }}",
        "{{ x|indent(10 ** 12) }}",
        "{{ '%1000000000000d' % 1 }}",
        "{{ '{:>1000000000000}'.format(1) }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ [1]|batch(10 ** 9, 'x')|list }}",
        "{{ [1]|slice(10 ** 9)|list }}",
        "{{ range(10 ** 9) }}",
        "{{ range(99999)|list * 99999 }}",
        "{{ lipsum(10 ** 9) }}",
        "{{ 'a\tb'.expandtabs(10 ** 12) }}",
        "{{ {'a': 1}|tojson(10 ** 12) }}",
        "{{ (1).to_bytes(10 ** 12, 'big') }}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s|replace('x', n.s) %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=[1]) %}{% for i in range(99999) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{{ ('x' * 10 ** 6).replace('', 'y' * 10 ** 6) }}",
        "{{ ('y' * 10 ** 6).join('x' * 10 ** 6) }}",
    ]
    depth = [
        "{{ " + "not " * deep + "1 }}",
        "{{ " + "-" * deep + "1 }}",
        "{{ 1" + "+1" * deep + " }}",
        "{{ question" + ".x" * deep + " }}",
        "{{ question" + "|upper" * deep + " }}",
        "{{ " + "1 if 1 else " * deep + "1 }}",
        "{{ " + "(" * deep + "1" + ")" * deep + " }}",
        "{{ " + "[" * deep + "]" * deep + " }}",
        "{{ " + "{1:" * deep + "1" + "}" * deep + " }}",
        "{{ x" + "[0]" * deep + " }}",
        "{{ x" + "(" * deep + ")" * deep + " }}",
        "{{ " + "'a'~" * deep + "'a' }}",
        "{{ 1" + "==1" * deep + " }}",
        "{{ 1" + "**1" * deep + " }}",
        "{{ 1" + " and 1" * deep + " }}",
        "{{ x" + " is defined" * deep + " }}",
        "{% if x %}" * (deep // 10) + "{% endif %}" * (deep // 10),
        "{% if 0 %}" + "{% elif 0 %}" * (deep // 10) + "{% endif %}",
        "{% for i in x %}" * 5000 + "{% endfor %}" * 5000,
        "{% macro m() %}" * 5000 + "{% endmacro %}" * 5000,
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% filter upper %}" * 5000 + "{% endfilter %}" * 5000,
        "{% with %}" * 5000 + "{% endwith %}" * 5000,
    ]
    snooping = [
        "{{ question.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{{ question|attr('__class__') }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ self._TemplateReference__context }}",
        "{{ lipsum.__globals__ }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ [x]|map(attribute='__class__')|list }}",
        "{{ choices.append('c') }}",
        "{{ choices.clear() }}",
        "{{ x.update({}) }}",
        "{{ joiner.__class__ }}",
        "{{ (1).real.__class__ }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as p %}",
        "{% extends '/etc/passwd' %}",
        "{{ namespace.__init__ }}",
    ]
    broken = [
        "{{",
        "{%",
        "{#",
        "{{ }}",
        "{% if %}",
        "{% for %}",
        "{{ x|nofilter }}",
        "{{ x is notest }}",
        "{% endfor %}",
        "{{ x[ }}",
        "{{ x }",
        "{% block a %}",
        "{% raw %}{{",
        "{{ 'a }}",
        "{{ x.strip }}",
        "{{ choices|map('upper') }}",
        "{{ range }}",
        "{{ cycler }}{{ cycler('a') }}",
        "{{ '\\ud800' }}",
        "{{ '\\ud83d\\ude00' }}",
        "{{ 1 / 0 }}",
        "{{ 7 }}",
        "{{ x|random }}",
        "{{ hint }}",
        "{{ nothing.at.all }}",
        "{{ x.y.z }}",
        "{% do x %}",
        "{% break %}",
        "{{ 'x'|int(base=99) }}",
        "{{ '\x1b[31m'.nothing }}",
        "{{ x" + "y" * 2_000_000 + " }}",
    ]
    return [*endless, *memory, *depth, *snooping, *broken]


HOSTILE = _hostile()


@pytest.mark.parametrize("source", HOSTILE, ids=[source[:24].encode("unicode_escape").decode() for source in HOSTILE])
def test_hostile_templates_are_refused_in_one_line(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "SECONDS", 0.5)
    questions = QuestionSet.from_rows([document("a" * 40 + "!", "y")], file="birds.jsonl")
    try:
        prompts = PromptTemplate(source).render(questions)
    except TemplateError as error:
        told = str(error)
        assert len(told) < 1000
        assert told.isprintable()
        return
    # Harmless after all: then jinja2 itself says the same.
    assert prompts.context(0) == reference.doc_to_text(document("a" * 40 + "!", "y"), source)


def test_there_are_a_hundred_of_them() -> None:
    assert len(HOSTILE) >= 100


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_endless_template_can_be_stopped(number: signal.Signals) -> None:
    """From the command line's point of view: the signal's handler runs at once, and no process is left behind."""
    script = """if True:
        import signal, sys
        from wmdp_fast import PromptTemplate, QuestionSet
        from wmdp_fast.prompts import jinja
        def stop(number, frame):
            raise KeyboardInterrupt
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        jinja.SECONDS = 300.0
        loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
        template = PromptTemplate(loop)
        questions = QuestionSet.from_rows([{"question": "q", "choices": ["a", "b"], "answer": 0}])
        print(jinja._process.pid, flush=True)
        try:
            template.render(questions)
        except KeyboardInterrupt:
            print("stopped", jinja._process, flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        time.sleep(1)
        process.send_signal(number)
        assert process.stdout.read() == "stopped None\n"
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_threads_and_forked_children_render_too() -> None:
    template = PromptTemplate("{{ question|upper }}{{ x }}")
    texts: dict[int, list[str]] = {}

    def work(number: int) -> None:
        sets = QuestionSet.from_rows([document(number, None)] * 2500)
        texts[number] = template.question_texts(sets)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: [f"WHICH?{number}"] * 2500 for number in range(4)}
    script = (
        "import os; from wmdp_fast import PromptTemplate, QuestionSet\n"
        "t = PromptTemplate('{{ question|upper }}')\n"
        "q = QuestionSet.from_rows([{'question': 'q', 'choices': ['a', 'b'], 'answer': 0}])\n"
        "pid = os.fork()\n"
        "print(t.question_texts(q), flush=True)\n"
        "if pid: os.waitpid(pid, 0)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("['Q']\n" * 2, "")


def test_the_process_sees_no_environment_and_no_files_beside_the_script(tmp_path: Any) -> None:
    """Keys are not for a stranger's template, and a file `jinja2.py` of the user's is not jinja2."""
    (tmp_path / "jinja2.py").write_text("raise SystemExit('the wrong module')\n")
    (tmp_path / "run.py").write_text(
        "import os; from wmdp_fast import PromptTemplate; from wmdp_fast.prompts import jinja\n"
        "os.environ['API_KEY'] = 'secret'\n"
        "PromptTemplate('{{ question|upper }}')\n"
        "print(open(f'/proc/{jinja._process.pid}/environ').read().count('secret'))\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_too_long_texts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = QuestionSet.from_rows([document("x", "y")] * 3, file="birds.jsonl")
    monkeypatch.setattr(jinja, "LONGEST_TOGETHER", 20_000)
    template = PromptTemplate("{{ 'x' * 9999 }}")
    assert len(template.question_texts(questions.head(2))) == 2
    with pytest.raises(TemplateError, match="longer than 20000 characters together"):
        template.question_texts(questions)
    with pytest.raises(TemplateError, match=re.escape("longer than 16777216 characters; at birds.jsonl, row 1")):
        PromptTemplate("{{ 'x' * 2 ** 24 }}x").question_texts(questions)


def test_the_columns_that_a_template_names_are_found() -> None:
    source = (
        "{% for x in choices %}{{ x }}{{ loop.index }}{% endfor %}{% set y = 1 %}{{ y }}{{ when|upper if question }}"
    )
    assert jinja.names(source) >= {"choices", "when", "question"}
    assert not jinja.names(source) & {"x", "y", "loop"}
