"""A publication's commands: our parsers take every one of them, and on the embedded world they run to the end."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from wmdp_fast import cli
from wmdp_fast.cli.reproduction import PUBLICATIONS
from wmdp_fast.data.corpora import CORPORA
from wmdp_fast.tasks.definitions import GROUPS, TASKS

if TYPE_CHECKING:
    from pathlib import Path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """The commands of a script, as words."""
    assert cli.main(["reproduce", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line) for line in lines if line.startswith("wmdp-fast ")]


@pytest.mark.parametrize("name", [*PUBLICATIONS, "demo"])
def test_our_own_parsers_take_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    short = printed(capsys, name, "--dry-run")
    full = printed(capsys, name, "--attacks", "all", "--data", "my data", "--limit", "20", "--output", "it's here")
    assert [words[1] for words in short] == ["eval", "unlearn", "eval", "compare", "table"]
    assert [words[1] for words in full if words[1] != "attack"] == [words[1] for words in short]
    parser = cli._parser()
    for words in (*short, *full):
        arguments = parser.parse_args(words[1:])
        if words[1] in ("eval", "attack") and name in PUBLICATIONS:
            assert arguments.lm_eval_compat == "0.4.2"
    tasks = {task for words in full if "--tasks" in words for task in words[words.index("--tasks") + 1].split(",")}
    corpora = {word for words in full for before, word in pairwise(words) if before == "--forget"}
    assert not any("--raw-lines" in words for words in short)  # the hub's corpus has no lines
    if name in PUBLICATIONS:
        assert tasks <= {*TASKS, *GROUPS}
        assert corpora <= CORPORA.keys()


def test_the_cyber_corpus_is_read_as_lines_where_its_file_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cyber-forget-corpus.jsonl").write_text('"text"\n')
    [unlearn] = [words for words in printed(capsys, "yi-34b", "--data", str(tmp_path)) if words[1] == "unlearn"]
    assert unlearn[unlearn.index("--raw-lines") + 1] == "no,yes"


def test_an_unknown_publication_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reproduce", "zephyr"])
    assert "zephyr-7b" in capsys.readouterr().err


def test_a_rehearsal_runs_from_the_base_to_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = ["reproduce", "demo", "--run", "--limit", "60", "--output", str(tmp_path / "out")]
    assert cli.main([*asked, "--attacks", "ask", "--budget", "quick"]) == 0
    table = capsys.readouterr().out.split("wrong, p:")[-1]
    assert "base" in table
    assert "rmu" in table
    assert "ask" in table
    assert "glimmer_brewing" in table
    # Nothing is done twice, and nothing of another reproduction is taken for it.
    assert cli.main(asked) == 0
    said = capsys.readouterr().err
    assert said.count("done before") == 3
    assert cli.main([*asked[:-3], "40", *asked[-2:]]) == 1
    assert "has what other commands made" in capsys.readouterr().err
