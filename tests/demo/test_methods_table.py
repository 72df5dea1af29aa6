"""The table of all methods: a run that is done is not done again, and a failed one is no number."""

from __future__ import annotations

import json
import os
from functools import partial

import pytest

from tests.support.expected_warnings import ONE_LETTER, VERDICTS, WIDER_TYPE
from wmdp_fast.demo import methods_table
from wmdp_fast.unlearning.methods.catalog import METHODS, config_class

FEW_STEPS = {"batch_size": 2, "max_steps": 2, "save_every": 0}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """One setting of one method, one seed, four questions of each domain; a page with marks."""
    monkeypatch.setattr(methods_table, "GRIDS", {"finetune": [FEW_STEPS]})
    monkeypatch.setattr(methods_table, "SEEDS", (1,))
    page = tmp_path / "page.md"
    page.write_text(f"above\n{methods_table.BEGIN}\nold\n{methods_table.END}\nbelow\n", encoding="utf-8")
    files = ["--work", str(tmp_path / "work"), "--page", str(page), "--json", str(tmp_path / "all.json")]
    return [*files, "--methods", "finetune", "--limit", "4"]


def fail(_run):
    raise ValueError("no | such\nluck")


@ONE_LETTER
@VERDICTS
@WIDER_TYPE
@pytest.mark.slow
def test_runs_are_kept_and_the_page_gets_the_table(arguments, tmp_path, monkeypatch):
    # Here, where torch is imported already; the next test is of processes.
    monkeypatch.setattr(methods_table, "_in_a_fresh_process", lambda run: run())
    methods_table.main(arguments)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith("above\n")
    assert page.endswith("below\n")
    assert "old" not in page
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")][1:] == [
        "| ---",
        "| before",
        "| never learned",
        "| `finetune`",
    ]
    written = (tmp_path / "all.json").read_text(encoding="utf-8")
    [run] = json.loads(written)["methods"]["finetune"]["runs"]
    assert (run["seed"], run["steps"], run["questions"]) == (1, 2, "test")
    assert 0 < run["kl"] < methods_table.MAX_KL
    monkeypatch.setattr(methods_table, "_in_a_fresh_process", fail)
    methods_table.main(arguments)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page
    assert (tmp_path / "all.json").read_text(encoding="utf-8") == written


def test_a_run_is_in_a_process_of_its_own_whose_failure_is_that_of_the_run():
    assert methods_table._in_a_fresh_process(os.getpid) not in (os.getpid(), os.getppid())
    with pytest.raises(ValueError, match="invalid literal"):
        methods_table._in_a_fresh_process(partial(int, "none"))


def test_a_method_that_fails_has_no_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(methods_table, "_in_a_fresh_process", fail)
    found = methods_table.rows_of(methods_table.Work(tmp_path), "npo", {})
    assert found["runs"] == []
    row = methods_table.table({}, {"npo": found}).splitlines()[-1]
    assert row == "| `npo` | no numbers: ValueError: no / such luck |  |  |  |  |  |  |  |"
    assert not list(tmp_path.iterdir())


def test_each_method_gets_as_many_trials_and_its_settings_are_accepted():
    assert set(methods_table.GRIDS) == set(METHODS)
    for method, grid in methods_table.GRIDS.items():
        assert len(grid) == methods_table.TRIALS
        for settings in grid:
            assert config_class(method)(**settings).seed == 42
