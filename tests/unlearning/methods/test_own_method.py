"""A method in a file of one's own: everything that the built-in ones have, from the command line too."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys

import pytest

from tests.conftest import CHECKOUT
from wmdp_fast import cli, demo
from wmdp_fast.checkpoints.checkpoint import apply_delta
from wmdp_fast.runtime.own_code import own_code
from wmdp_fast.unlearning.methods.catalog import config_class, name_of
from wmdp_fast.unlearning.methods.own_file import load_own_method

EXAMPLE = CHECKOUT / "examples" / "own_method.py"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The example, copied to the working directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    return file


def command(*more: str, name: str = "unlearn", output: str = "out") -> list[str]:
    corpora = [word for kind in ("forget", "retain") for word in (f"--{kind}", str(demo.corpus_path(kind)))]
    return [
        *(name, str(demo.model_path()), *corpora, "--method", "./mine.py:CeilingConfig", "--quiet"),
        *("--learning-rate", "1e-3", "--max-length", "24", "--retain-max-length", "24", "--dtype", "float32"),
        *("--batch-size", "2", "--output", output, *more),
    ]


def test_it_is_run_recorded_and_undone_by_its_delta(mine, capsys):
    path, modules = list(sys.path), set(sys.modules)
    assert cli.main(command("--max-steps", "2", "--set", "ceiling=8")) == 0
    assert "2 steps in" in capsys.readouterr().out
    assert sys.path == path
    assert not {name for name in set(sys.modules) - modules if "mine" in name}
    assert [file.name for file in mine.parent.iterdir() if file.name != "out"] == ["mine.py"]
    record = json.loads((mine.parent / "out" / "unlearn.json").read_text())
    assert (record["method"], record["settings"]["ceiling"]) == ("ceiling", 8.0)
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert record["code"] == [{"path": "mine.py", "sha256": digest}]
    assert record["metrics"] == ["forget_loss", "retain_loss"]
    card = (mine.parent / "out" / "README.md").read_text()
    assert "after 2 steps of gradient ascent up to a ceiling" in card
    assert f"| code of the method | mine.py, SHA-256 `{digest[:16]}` |" in card
    apply_delta(demo.model_path(), mine.parent / "out", mine.parent / "again")
    again, out = (mine.parent / name / "model.safetensors" for name in ("again", "out"))
    assert again.read_bytes() == out.read_bytes()


def test_a_run_goes_on_only_with_the_same_file(mine, capsys):
    content = mine.read_text()
    failing = content.replace("        losses = torch", "        assert given.index != 2\n        losses = torch")
    more = ("--max-steps", "3", "--save-every", "1")
    mine.write_text(failing)
    assert cli.main(command(*more)) == 1
    assert (mine.parent / "out.unlearning" / "state.safetensors").is_file()
    mine.write_text(content)
    capsys.readouterr()
    assert cli.main(command(*more, "--resume")) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "out.unlearning/state.safetensors belongs to a run with other code of the method; resume with" in line


def test_its_settings_are_swept_and_a_command_makes_a_run_again(mine, capsys):
    tasks = [word for kind in ("forget", "retain") for word in (f"--{kind}-tasks", str(demo.questions_path(kind)))]
    swept = [*tasks, "--template", "mmlu", "--limit", "8", "--max-steps", "1", "--set", "ceiling=2,8", "--json"]
    assert cli.main(command(*swept, name="sweep", output="sweep")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["settings"]["ceiling"] for run in found["runs"]] == [2.0, 8.0]
    words = shlex.split(found["runs"][1]["command"])
    assert words[words.index("--method") + 1] == "mine.py:CeilingConfig"
    assert "ceiling=8" in words
    assert cli.main([*words[1:-1], "again", "--quiet"]) == 0
    rows = [json.loads(row) for row in (mine.parent / "again" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["forget_loss"] == pytest.approx(found["runs"][1]["measures"]["forget_loss"], rel=1e-6)
    mine.write_text(mine.read_text() + "\n")
    assert cli.main(command(*swept, "--resume", name="sweep", output="sweep")) == 1
    assert "a sweep with other code of the method" in capsys.readouterr().err


def test_numbers_that_are_none_end_the_run_and_the_state_before_is_kept(mine, capsys):
    # The third step's losses are NaN, as of a loss that a method of one's own has not bounded.
    bad = mine.read_text().replace("clamp_max(self.ceiling)", "mul(float('nan') if given.index == 2 else 1)")
    mine.write_text(bad.replace("losses.detach()", "losses.detach() * (float('nan') if given.index == 2 else 1)"))
    assert cli.main(command("--max-steps", "4", "--save-every", "1")) == 1
    line, note = capsys.readouterr().err.splitlines()[-2:]
    assert line.startswith("error: unlearning diverged at step 3: forget_loss nan, retain_loss nan and 1 more")
    assert "lower the learning rate (now 0.001)" in line
    assert "the state after step 2 is kept" in note
    assert not (mine.parent / "out").exists()
    assert (mine.parent / "out.unlearning" / "state.safetensors").is_file()


@pytest.mark.parametrize(
    ("spec", "content", "message"),
    [
        ("./none.py:Mine", "", "there is no file ./none.py"),
        ("./mine.py", "", "which class of ./mine.py is the method's configuration? name it as FILE.py:CLASS"),
        ("./mine.py:", "", "which class of ./mine.py:"),
        ("./mine.py:Mine", "x = 1", "./mine.py has no class Mine, nor any other configuration of a method"),
        ("./mine.py:Mine", "import wmdp_fast\nclass A(wmdp_fast.TrainingConfig): ...", "has no class Mine; it has A"),
        ("./mine.py:Mine", "class Mine: ...", "Mine of ./mine.py is no subclass of wmdp_fast.TrainingConfig"),
        ("./mine.py:Mine", "x = 1\nclass Mine(:\n", "./mine.py, line 2: invalid syntax"),
        ("./mine.py:Mine", "x = 1\n\nMine = y\n", "./mine.py, line 3: NameError: name 'y' is not defined"),
        ("./mine.py:Mine", "import sys\nsys.exit(3)", "./mine.py, line 2: SystemExit: 3"),
        ("./mine.py:Mine", "import nowhere.to.be.found", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        (
            "./mine.py:Mine",
            "import wmdp_fast\nclass Mine(wmdp_fast.TrainingConfig): ...",
            "Mine of ./mine.py lacks method and trained_layers",
        ),
        ("no.such.module:Mine", "", "there is no module no.such.module here; a file is named by its path"),
        ("json:Mine", "", "json has no class Mine"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(spec, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is looked at below)
        load_own_method(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [name for name in sys.modules if name.startswith("wmdp-fast own") and "mine" in name]


def test_settings_that_are_no_fields_are_noticed(mine):
    lost = "@dataclass(frozen=True, kw_only=True)\nclass"
    mine.write_text(mine.read_text().replace(lost, "class"))
    with pytest.raises(ValueError, match=r"has settings that are no fields \(ceiling\): decorate it with @dataclass"):
        load_own_method("./mine.py:CeilingConfig")
    mine.write_text(EXAMPLE.read_text().replace('    method_name: ClassVar[str] = "ceiling"\n', ""))
    with pytest.raises(ValueError, match="lacks method_name"):
        load_own_method("./mine.py:CeilingConfig")


def test_a_file_is_run_once_and_again_when_it_has_changed(mine):
    config = config_class("./mine.py:CeilingConfig")
    assert config_class(str(mine) + ":CeilingConfig") is config
    assert name_of(config) == "mine.py:CeilingConfig"
    before = own_code(config())
    mine.write_text(mine.read_text().replace("ceiling: float = 6.0", "ceiling: float = 7.0"))
    changed = config_class("./mine.py:CeilingConfig")
    assert (config().ceiling, changed().ceiling) == (6.0, 7.0)
    # What a run records is the file that it was made from, whatever has become of it since.
    assert own_code(config()) == before != own_code(changed())
    assert own_code(config_class("rmu")()) == []
