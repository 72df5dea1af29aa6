"""What is passed on to evaluations is looked at before anything is read, and what belongs elsewhere is told so."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import wmdp_fast as wf
from wmdp_fast.robustness.ablated_checkpoint import save_ablated
from wmdp_fast.unlearning import eval_options
from wmdp_fast.unlearning.api import listed_names

if TYPE_CHECKING:
    from collections.abc import Callable

CORPORA = {"forget": "no-such-file.jsonl", "retain": "no-such-file.jsonl"}


def unlearn(**given: Any) -> object:
    return wf.unlearn("no-such-model", **CORPORA, **given)


def sweep(**given: Any) -> object:
    asked = {"forget_tasks": "wmdp_bio", "retain_tasks": "mmlu", "over": {"alpha": [1.0]}, "output": "no-such-folder"}
    return wf.sweep("no-such-model", **CORPORA, **asked, **given)


def attack(**given: Any) -> object:
    return wf.attack("no-such-model", tasks="wmdp_bio", **given)


def ablate(**given: Any) -> object:
    return save_ablated("no-such-model", "no-such-folder", tasks="wmdp_bio", layer=1, **given)


EVERY = (unlearn, sweep, attack, ablate)
OPTIONS = set(inspect.signature(wf.evaluate).parameters) - {"model"}


@pytest.mark.parametrize("call", EVERY)
def test_what_an_evaluation_does_not_take_is_told_where_it_belongs(call: Callable[..., object]) -> None:
    for name in ("tokenizer", "device", "output", "progress", "trust_remote_code"):
        with pytest.raises(ValueError, match=f"eval_options does not take {name}: .*beside eval_options"):
            call(eval_options={name: "any"})
    with pytest.raises(ValueError, match="does not take shards: it is for a model that evaluate loads itself"):
        call(eval_options={"limit": 8, "shards": 2})
    with pytest.raises(ValueError, match=r"'limits', which evaluate does not know; did you mean limit\?"):
        call(eval_options={"limits": 8})
    with pytest.raises(ValueError, match=r"'zebra', which evaluate does not know; it takes .*limit.*template"):
        call(eval_options={"zebra": 8})


@pytest.mark.parametrize("call", [unlearn, sweep])
def test_what_a_run_has_itself_is_passed_beside(call: Callable[..., object]) -> None:
    for name in ("memory", "stream"):
        with pytest.raises(ValueError, match=f"does not take {name}: it is for the whole run, so pass it beside"):
            call(eval_options={name: "16GB"})
    with pytest.raises(ValueError, match=r"does not take dtype: .*dtype of config"):
        call(eval_options={"dtype": "float32"})
    with pytest.raises(ValueError, match=r"does not take tasks: .*forget_tasks and retain_tasks of sweep"):
        call(eval_options={"tasks": "mmlu"})


def test_settings_that_are_none_and_paths_that_are_tasks() -> None:
    for wrong, told in (({"alpha": 1}, "not a dict"), (wf.RMUConfig, "not RMUConfig")):
        with pytest.raises(TypeError, match=f"config must be settings such as .*{told}"):
            unlearn(config=wrong)
    # Commas stand in texts; a path is one, even if it reads like a task's name.
    assert listed_names("a, b,") == ["a", "b"]
    assert listed_names(["a,b", Path("c,d.jsonl")]) == ["a", "b", "./c,d.jsonl"]
    assert listed_names(Path("mmlu")) == ["./mmlu"]
    assert listed_names(Path("x/y.jsonl")) == ["x/y.jsonl"]


def test_what_says_how_to_ask_and_score_gets_through() -> None:
    taken = eval_options.ASKING | eval_options.SCORING
    assert taken < OPTIONS
    assert OPTIONS - taken <= eval_options._EVERY
    # All of it is looked at before corpora and models.
    with pytest.raises(wf.DataUnavailableError):
        unlearn(eval_options=dict.fromkeys(taken))
