"""An attack in a file of one's own: run beside the others, told from a changed file, and refused in one line."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

import wmdp_fast as wf
from tests.conftest import CHECKOUT
from tests.support import robustness as support
from wmdp_fast import cli
from wmdp_fast.robustness.attacks.catalog import attacks_of
from wmdp_fast.robustness.attacks.own_file import load_own_attack

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "from wmdp_fast.robustness.protocol import Attack\n"
WHOLE = """class Mine(Attack):
    name, summary, access = "mine", "nothing", "prompts"
    def settings(self, budget, seed): return []
    def run(self, subject, setting): return iter(())
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, copied to the working directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text((CHECKOUT / "examples" / "own_attack.py").read_text(encoding="utf-8"), encoding="utf-8")
    return file


def test_it_runs_beside_the_others_and_again_when_it_has_changed(mine: Path) -> None:
    folder = support.save_model(mine.parent / "model")
    questions = support.save_questions(mine.parent / "birds.jsonl")

    def attacked() -> wf.AttackResult:
        return wf.attack(
            folder, tasks=questions, attacks="./mine.py:Whisper,calibrate", output="out", device="cpu", progress=False
        )

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in (mine.parent / "out" / "runs.jsonl").read_text().splitlines()]

    result = attacked()
    assert set(result.findings["unlearned"]) == {"ask", "whisper", "calibrate"}
    assert set(result.nulls["unlearned"]) == {"whisper"}
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert [line.get("code") for line in lines()] == [None, digest, digest, digest, None]
    attacked()
    assert len(lines()) == 5
    mine.write_text(mine.read_text() + "\n")
    attacked()
    assert len(lines()) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", "./mine.py has no class Mine, nor any other attack"),
        (HEAD + "class Other(Attack): ...", "./mine.py has no class Mine; it has Other"),
        ("class Mine: ...", "is no subclass of wmdp_fast.robustness.protocol.Attack, as the attack must be"),
        (HEAD + "class Mine(Attack): ...", "Mine of ./mine.py lacks run and settings"),
        (HEAD + WHOLE.replace('"mine"', '""'), "Mine of ./mine.py lacks name: what records and tables call it"),
        (HEAD + WHOLE.replace('"prompts"', '"root"'), "lacks access: what an attacker needs, one of prompts, activa"),
        (HEAD + WHOLE + "    def __init__(self, x): ...", "must be made without arguments: "),
        (HEAD + WHOLE.replace('"mine"', '"prune"'), "./mine.py:Mine is called prune, as another attack is"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(mine: Path, content: str, message: str) -> None:
    mine.write_text(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is looked at below)
        attacks_of("./mine.py:Mine")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_one_is_loaded_and_the_list_says_how(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text(HEAD + WHOLE)
    assert load_own_attack("./mine.py:Mine").name == "mine"
    assert [one.name for one in attacks_of(["ask", "./mine.py:Mine"])] == ["ask", "mine"]
    assert cli.main(["attack", "--list"]) == 0
    assert "FILE.py:CLASS or package.module:CLASS names one of your own." in capsys.readouterr().out
