"""The table of methods under attack: models and attacks that are done are not done again."""

from __future__ import annotations

import json

import pytest

from tests.support.expected_warnings import ONE_LETTER, VERDICTS, WIDER_TYPE
from wmdp_fast.demo import robustness_table


@ONE_LETTER
@VERDICTS
@WIDER_TYPE
@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_the_page_gets_the_table(tmp_path, monkeypatch):
    page, settings = tmp_path / "page.md", tmp_path / "methods.json"
    page.write_text(f"above\n{robustness_table.BEGIN}\nbefore\n{robustness_table.END}\nbelow\n", encoding="utf-8")
    few = {"batch_size": 2, "max_steps": 2, "save_every": 0}
    settings.write_text(json.dumps({"methods": {"finetune": {"runs": [{"settings": few}]}, "npo": {"runs": []}}}))
    where = ["--work", str(tmp_path / "work"), "--settings", str(settings), "--json", str(tmp_path / "all.json")]
    arguments = [*where, "--page", str(page), "--methods", "finetune", "npo", "--seeds", "1", "2", "--attacks", "ask"]
    robustness_table.main([*arguments, "--limit", "48"])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "\nbefore\n" not in text
    assert "finetune" in text
    # The second seed takes over the controls, whose readings are the same, to the bit and the second.
    runs = [
        list(map(json.loads, (tmp_path / f"work/finetune-seed{seed}/attacked/runs.jsonl").read_text().splitlines()))
        for seed in (1, 2)
    ]
    assert [run["role"] for run in runs[0]] == ["unlearned", "base", "never learned"]
    assert [run["role"] for run in runs[1]] == ["unlearned"]
    monkeypatch.setattr("wmdp_fast.unlearning.api.unlearn", None)
    robustness_table.main([*arguments, "--limit", "48"])
    assert page.read_text(encoding="utf-8") == text
