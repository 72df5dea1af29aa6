"""Texts that are put into prompts: how they are typed, read from files and compared with what lm-eval makes of them."""

import argparse
import json
import os
import re
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import tiny_models
from tests.support.expected_warnings import printed
from wmdp_fast import PromptTemplate, QuestionSet, TaskError, WmdpFastWarning, cli, evaluate
from wmdp_fast.cli.text_or_file import LARGEST, text_or_file
from wmdp_fast.tasks.resolve import resolve
from wmdp_fast.tasks.typed_text import typed_line_breaks

ROW = {"question": "Is a wren a bird?", "choices": ["yes", "no"], "answer": 0, "topic": "birds"}


@pytest.fixture
def quiz(tmp_path):
    file = tmp_path / "quiz.jsonl"
    file.write_text("".join(json.dumps(ROW | {"question": f"Is {i} a bird?"}) + "\n" for i in range(4)))
    return str(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_models.build("llama").save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return str(folder)


# Texts in files.


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"About birds.", "About birds."),
        (b"About birds.\n", "About birds."),
        (b"About birds.\r\n", "About birds."),
        (b"About birds.\r", "About birds."),
        (b"About birds.\n\n\n", "About birds.\n\n"),
        (b"\xef\xbb\xbfAbout birds.", "About birds."),
        (b"a\r\n\r\nb \t\n", "a\r\n\r\nb \t"),
        ("Über Vögel 鳥\u2028\n".encode(), "Über Vögel 鳥\u2028"),
        (b"\\n", "\\n"),
        (b"\n\n", "\n"),
        (b"@here", "@here"),
        (b"x" * LARGEST, "x" * LARGEST),
    ],
)
def test_a_file_is_taken_to_the_byte_but_for_one_line_end(tmp_path, content, text):
    (tmp_path / "text").write_bytes(content)
    assert text_or_file(f"@{tmp_path / 'text'}") == text


@given(text=st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_comes_back_from_a_file_that_an_editor_has_ended(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(text.encode() + b"\n")
    # A byte order mark is no text, and of a line end of two characters the file's own end is one.
    if not text.startswith("\ufeff") and not text.endswith("\r"):
        assert text_or_file(f"@{file}") == text


@pytest.mark.parametrize("text", ["", "About birds.", "a@b", " @b", r"a\nb", "a\nb"])
def test_a_typed_text_is_taken_as_it_is(text):
    assert text_or_file(text) == text


def test_two_of_them_stand_for_a_first_at():
    assert text_or_file("@@home") == "@home"
    assert text_or_file("@@") == "@"


def test_a_pipe_is_read_too():
    reading, writing = os.pipe()
    os.write(writing, b"About birds.\n")
    os.close(writing)
    try:
        assert text_or_file(f"@/dev/fd/{reading}") == "About birds."
    finally:
        os.close(reading)


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text").write_text("About birds.")
    assert text_or_file("@~/text") == "About birds."


def hostile(folder: Path) -> dict[str, tuple[str, str]]:
    """What is given, and what is said of it."""
    (folder / "empty").write_bytes(b"")
    (folder / "newline").write_bytes(b"\n")
    (folder / "mark").write_bytes(b"\xef\xbb\xbf")
    (folder / "latin").write_bytes("Vögel".encode("latin-1"))
    (folder / "utf16").write_bytes("Birds".encode("utf-16"))
    (folder / "half").write_bytes("鳥".encode()[:2])
    (folder / "large").write_bytes(b"x" * (LARGEST + 1))
    return {
        "": ("@", "no file name after @"),
        "missing": (f"@{folder / 'missing'}", "missing cannot be read: No such file or directory; write @@"),
        "folder": (f"@{folder}", "cannot be read: Is a directory"),
        "empty": (f"@{folder / 'empty'}", "empty holds no text; give '' for none"),
        "newline": (f"@{folder / 'newline'}", "newline holds no text"),
        "mark": (f"@{folder / 'mark'}", "mark holds no text"),
        "latin": (f"@{folder / 'latin'}", "latin is not UTF-8 (byte 2 is 0xf6)"),
        "utf16": (f"@{folder / 'utf16'}", "utf16 is not UTF-8 (byte 1 is 0xff)"),
        "half": (f"@{folder / 'half'}", "half is not UTF-8 (byte 1 is 0xe9)"),
        "large": (f"@{folder / 'large'}", f"large has more than {LARGEST} bytes"),
        "endless": ("@/dev/zero", f"/dev/zero has more than {LARGEST} bytes"),
        "long": ("@" + "x" * 5000, "cannot be read: File name too long"),
        "user": ("@~nobody-of-that-name/x", "cannot be read"),
        "nul": ("@a\0b", r"a\x00b cannot be read"),
        "lines": ("@a\nb", r"a\nb cannot be read"),
        "surrogate": ("@\udcff", "cannot be read"),
    }


def test_a_hostile_file_is_named_in_one_line(tmp_path):
    for given_, said in hostile(tmp_path).values():
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            text_or_file(given_)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


COMMANDS = {
    "eval": ["eval", "M", "--tasks", "x.jsonl"],
    "unlearn": ["unlearn", "M", "--forget", "f", "--retain", "r", "--output", "o"],
    "sweep": ["sweep", "M", "--forget", "f", "--retain", "r", "--output", "o", "--forget-tasks", "x.jsonl",
              "--retain-tasks", "y.jsonl"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--template", "--description", "--system-instruction"])
def test_every_command_reads_them_from_files(command, option, tmp_path, capsys):
    (tmp_path / "text").write_bytes("{{question}} 鳥\n\n".encode())
    parser = cli._parser([command])
    arguments = parser.parse_args([*COMMANDS[command], option, f"@{tmp_path / 'text'}"])
    assert vars(arguments)[option[2:].replace("-", "_")] == "{{question}} 鳥\n"
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([*COMMANDS[command], option, f"@{tmp_path / 'none'}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"wmdp-fast {command}: error: argument {option}: {tmp_path / 'none'} cannot be read")


def test_an_unknown_template_from_a_file_is_quoted_in_part(quiz, tmp_path, capsys):
    (tmp_path / "text").write_text("no braces here\n" * 1000)
    assert cli.main(["eval", "M", "--tasks", quiz, "--template", f"@{tmp_path / 'text'}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: unknown template 'no braces here\\nno")
    assert len(error) < 300


# A backslash and an n.


@pytest.mark.parametrize(
    ("name", "text", "warned"),
    [
        ("template", r"{{question}}\nAnswer:", True),
        ("template", "{{question}}\nAnswer:", False),
        ("template", r"{{ choices | join('\n') }}", False),
        ("template", r"{% for c in choices %}{{ c }}\n{% endfor %}", True),
        ("template", r"{% set x = '\n' %}{# a\nb #}{{ x }}", False),
        ("template", r"\n{{question}}", True),
        ("template", r"{{question}} {{ a\n", False),
        ("template", "mmlu", False),
        ("description", r"About birds.\n\n", True),
        ("description", "About birds.\n\n", False),
        ("description", r"About birds.\t", False),
        ("system_instruction", r"Be brief.\n", True),
        ("system_instruction", None, False),
        ("system_instruction", "", False),
    ],
)
def test_a_typed_backslash_n_is_told(name, text, warned):
    found = typed_line_breaks({name: text})
    assert len(found) == warned
    for sentence in found:
        option = f"--{name.replace('_', '-')}"
        assert sentence.startswith(f"{name} has a backslash and an n (\\n) in it")
        assert f"type {option} $'...\\n...' in bash" in sentence
        assert f"give {option} @FILE" in sentence


def test_many_openings_without_an_end_take_no_time():
    assert typed_line_breaks({"template": "{{" * 500_000}) == []


@printed("(template|description|system_instruction) has a backslash")
def test_an_evaluation_warns_once_of_each_and_keeps_it(quiz, model, capsys):
    argv = ["--template", r"{{question}}\n{{choices[0]}}", "--description", r"D\n", "--system-instruction", r"S\n"]
    assert cli.main(["eval", model, "--tasks", quiz, "--json", *argv]) == 0
    found = capsys.readouterr()
    warned = re.findall(r"^warning: (\w+) has a backslash", found.err, re.MULTILINE)
    assert sorted(warned) == ["description", "system_instruction", "template"]
    kept = [line for line in json.loads(found.out)["wmdp_fast"]["warnings"] if "backslash" in line]
    assert len(kept) == 3


# Descriptions and line ends, against lm-eval.


def description_here(quiz: str, text: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WmdpFastWarning)
        return resolve(quiz, description=text).tasks[0].description


@given(
    text=st.lists(
        st.sampled_from(["a", " ", "\r", "\n", "\r\n", "{", "}", "%", "#", "\\", "\t", "\x0b", "é", "\u2028"])
    ).map("".join)
)
@example(text="About birds.\r\n\r\n")
@example(text="About {{topic}}.\n")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_description_is_lm_evals_or_refused(quiz, text):
    api = pytest.importorskip("lm_eval.api.task")
    if re.search(r"\{[{%#]", text):
        with pytest.raises(TaskError, match=r"the description has .* which is Jinja to lm-eval"):
            description_here(quiz, text)
        return
    assert description_here(quiz, text) == (api.Task.resolve_field(ROW, text) or "")


@pytest.mark.parametrize("name", list(ROW))
def test_a_description_that_is_a_columns_name_is_refused_where_lm_eval_takes_the_column(quiz, name, capsys):
    api = pytest.importorskip("lm_eval.api.task")
    assert api.Task.resolve_field(ROW, name) == ROW[name]
    assert cli.main(["eval", "M", "--tasks", quiz, "--description", name]) == 1
    assert capsys.readouterr().err.startswith(f"error: quiz: the description is '{name}', and so is a column of {quiz}")


@pytest.mark.parametrize(
    "source", ["{{question}}\r\nA:", "{{question}}\rA:\r\n", "a\r\n{% if 1 %}\r\nb{% endif %}\n\n"]
)
def test_line_ends_of_templates_are_lm_evals(source):
    utils = pytest.importorskip("lm_eval.utils")
    found = PromptTemplate(source, choices="texts").question_texts(QuestionSet.from_rows([ROW]))
    assert found == [utils.apply_template(source, ROW)]


def test_a_system_instruction_is_no_template_for_either(quiz, model, tmp_path):
    """lm-eval puts it before the rendered description as it is."""
    utils = pytest.importorskip("lm_eval.api.utils")
    text = "Be {{brief}}.\r\n"
    result = evaluate(model, tasks=quiz, system_instruction=text, output=tmp_path, log_samples=True, progress=False)
    assert result.saved_to is not None
    [samples] = Path(result.saved_to).parent.glob("samples_*.jsonl")
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["arguments"]["gen_args_0"]["arg_0"].startswith(utils.maybe_delimit(text, "", "\n\n") + "Is 0 a bird?")
