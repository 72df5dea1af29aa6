"""Attacks on a model and its controls: what runs, what is kept, what is chosen, and what is said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
import torch

import wmdp_fast as wf
from tests.support import attack_records
from tests.support import robustness as support
from wmdp_fast.exceptions import InternalError, JournalError, ModelError, TaskError
from wmdp_fast.robustness import api
from wmdp_fast.robustness.answers import Answers
from wmdp_fast.robustness.attacks.ask import Ask
from wmdp_fast.robustness.findings import find, recovery
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.runs import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from wmdp_fast.robustness.subject import Subject


class Noise(Attack):
    """Adds to each weight noise of a share of its matrix's root mean square; a control adds none."""

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "noise on the weights"
    access: ClassVar[Access] = "weights"
    ran: ClassVar[list[tuple[str, float]]] = []

    def settings(self, _budget: Budget, seed: int) -> Sequence[Setting]:
        return [
            Setting(values={"scale": 0.0}, null=True),
            *(Setting(values={"scale": scale, "seed": seed}) for scale in (0.1, 5.0)),
        ]

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        self.ran.append((subject.role, setting.values["scale"]))
        generator = torch.Generator().manual_seed(setting.values.get("seed", 0))
        with subject.restored() as parameters, torch.no_grad():
            for parameter in parameters.values():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(setting.values["scale"] * parameter.pow(2).mean().sqrt() * noise)
            yield Reading(answers=subject.ask(), utility=subject.utility(), step=3)


class Careless(Noise):
    """Leaves the model changed."""

    name: ClassVar[str] = "careless"

    def run(self, subject: Subject, _setting: Setting) -> Iterator[Reading]:
        with torch.no_grad():
            next(subject.network.parameters()).add_(1.0)
        yield Reading(answers=subject.ask())


class Failing(Noise):
    """Fails with its second setting, and lacks something for the others."""

    name: ClassVar[str] = "failing"

    def why_not(self, _subject: Subject, setting: Setting) -> str | None:
        return "it needs a corpus: pass --forget" if setting.values["scale"] != 0.1 else None

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        if setting.values["scale"] == 0.1:
            raise ModelError("no numbers any more")
        yield from super().run(subject, setting)


class Ruinous(Noise):
    """Leaves no numbers."""

    name: ClassVar[str] = "ruinous"

    def run(self, subject: Subject, _setting: Setting) -> Iterator[Reading]:
        with subject.restored() as parameters, torch.no_grad():
            next(iter(parameters.values())).fill_(torch.nan)
            yield Reading(answers=subject.ask())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("attacked")
    support.save_model(made / "model")
    support.save_questions(made / "birds.jsonl")
    support.save_questions(made / "kept.jsonl", 20)
    return made


@pytest.fixture
def with_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    Noise.ran.clear()
    every = {one.name: one() for one in (Ask, Noise, Careless, Failing, Ruinous)}
    monkeypatch.setattr(api, "attacks_of", lambda names, _budget: [every["ask"], *(every[name] for name in names)])


def attacked(folder: Path, *attacks: str, **options: object) -> wf.AttackResult:
    given = {"base": folder / "model", "utility": [folder / "kept.jsonl"], "device": "cpu", "progress": False} | options
    model = given.pop("model", folder / "model")
    return wf.attack(
        model, tasks=[folder / "birds.jsonl"], attacks=list(attacks), eval_options={"template": "mmlu"}, **given
    )


@pytest.mark.usefixtures("with_attacks")
def test_a_model_without_numbers_under_an_attack_is_not_blamed(folder: Path) -> None:
    result = attacked(folder, "ruinous", base=None)
    [why] = result.missing("unlearned")["ruinous"]
    assert why == "under this attack the model's output is not a number (NaN): it changes too much of it"


@pytest.mark.usefixtures("with_attacks")
def test_what_was_done_is_not_done_again(folder: Path, tmp_path: Path) -> None:
    first = attacked(folder, "noise", output=tmp_path / "out")
    assert Noise.ran == [(role, scale) for role in ("unlearned", "base") for scale in (0.0, 0.1, 5.0)]
    # As if it had been stopped within the last line.
    lines = (tmp_path / "out" / "runs.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out" / "runs.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:40])
    Noise.ran.clear()
    again = attacked(folder, "noise", output=tmp_path / "out")
    assert Noise.ran == [("base", 0.1), ("base", 5.0)]
    for one, other in zip(first.to_json()["runs"], again.to_json()["runs"], strict=True):
        assert one["readings"] == other["readings"]
    # The base is the same model here, so it answers the same.
    by_role = [[run.to_json()["readings"] for run in again.runs if run.role == role] for role in again.models]
    assert by_role[0] == by_role[1]
    assert again.findings["unlearned"]["noise"].reading.step == 3
    assert again.nulls["unlearned"]["noise"].acc == again.findings["unlearned"]["ask"].acc
    assert again.recovery("noise") is None  # there is no gap


@pytest.mark.usefixtures("with_attacks")
def test_a_folder_of_other_models_or_questions_is_refused(folder: Path, tmp_path: Path) -> None:
    attacked(folder, output=tmp_path / "out", base=None)
    with pytest.raises(ModelError, match="other models; name the same, or another --output"):
        attacked(folder, output=tmp_path / "out")
    with pytest.raises(ModelError, match="other seed"):
        attacked(folder, output=tmp_path / "out", base=None, seed=1)
    (tmp_path / "out" / "runs.jsonl").write_text("{\n")
    with pytest.raises(JournalError, match="line 1 is damaged"):
        attacked(folder, output=tmp_path / "out", base=None)


@pytest.mark.usefixtures("with_attacks")
def test_controls_of_another_model_are_taken_over(folder: Path, tmp_path: Path) -> None:
    support.save_model(tmp_path / "other", "gemma3_text")
    first = attacked(folder, "noise", output=tmp_path / "first")
    Noise.ran.clear()
    taken = attacked(folder, "noise", model=tmp_path / "other", output=tmp_path / "out", controls=tmp_path / "first")
    assert Noise.ran == [("unlearned", scale) for scale in (0.0, 0.1, 5.0)]
    assert taken.findings["base"]["noise"].to_json() == first.findings["base"]["noise"].to_json()
    asked = [result.findings["unlearned"]["ask"].reading.answers.to_json() for result in (first, taken)]
    assert asked[0] != asked[1]
    with pytest.raises(ModelError, match="has controls with other seed; leave controls out"):
        attacked(folder, "noise", seed=1, controls=tmp_path / "first")
    with pytest.raises(ModelError, match="has no attacks: controls are the --output"):
        attacked(folder, "noise", controls=tmp_path)


@pytest.mark.usefixtures("with_attacks")
def test_what_fails_is_missing_and_never_a_number(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = attacked(folder, "failing", base=None, output=tmp_path / "out", note=said.append)
    assert "failing" not in result.findings["unlearned"]
    assert result.missing("unlearned") == {"failing": ("it needs a corpus: pass --forget", "no numbers any more")}
    assert "not run on unlearned: failing: it needs a corpus: pass --forget; no numbers any more" in str(result)
    assert [line for line in said if "failing" in line] == [
        "unlearned, failing, scale=0.1 seed=0: failed: no numbers any more",
        "unlearned, failing, 2 settings: not run: it needs a corpus: pass --forget",
    ]
    # What failed is tried again, and what did not is not.
    Noise.ran.clear()
    attacked(folder, "failing", base=None, output=tmp_path / "out")
    assert Noise.ran == []


@pytest.mark.usefixtures("with_attacks")
def test_an_attack_must_leave_the_model_as_it_was(folder: Path) -> None:
    with pytest.raises(InternalError, match="careless left the model changed"):
        attacked(folder, "careless", base=None)


@pytest.mark.usefixtures("with_attacks")
def test_a_model_in_memory_is_left_as_it_was(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model").train()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = attacked(folder, "noise", model=model, tokenizer=tokenizer, base=None, device="auto")
    of_files = attacked(folder, "noise", base=None)
    assert result.findings["unlearned"]["noise"].acc == of_files.findings["unlearned"]["noise"].acc
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_too_few_questions_are_refused(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"birds: of 12 questions \d+ are left to .*, which takes at least 10"):
        wf.attack(folder / "model", tasks=[folder / "birds.jsonl"], eval_options={"limit": 12})


def test_an_unknown_attack_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown attack 'nosie'; there are ask, "):
        wf.attack(folder / "model", tasks=[folder / "birds.jsonl"], attacks="nosie")


def reading(right: str, utility: float | None = None, step: int | None = None) -> Reading:
    flags = np.array([one == "1" for one in right])
    answers = Answers(predicted=flags.astype(np.int64), correct=flags)
    return Reading(answers=answers, utility=None if utility is None else {"acc": utility}, step=step)


def run(*readings: Reading, **values: float) -> Run:
    return Run(role="unlearned", attack="x", setting=Setting(values=values), readings=readings)


def test_settings_are_chosen_on_one_half_and_reported_on_the_other_within_the_slack() -> None:
    for_choosing = np.array([True] * 4 + [False] * 4)
    runs = [
        run(reading("11000000", 0.9), lr=1.0),
        run(reading("11100001", 0.86, step=5), reading("00001111", 0.9, step=9), lr=2.0),
        run(reading("11111111", 0.5), lr=3.0),
    ]
    finding = find(runs, for_choosing, utility={"acc": 0.95})
    assert finding is not None
    assert (finding.setting.values, finding.reading.step) == ({"lr": 2.0}, 5)
    assert (finding.acc.value, finding.choosing.value) == (0.25, 0.75)
    assert (finding.tried, finding.excluded) == (3, 1)
    assert find(runs, for_choosing, utility={"acc": 0.95}, null=True) is None


def test_a_model_that_was_only_asked_has_no_worst_case() -> None:
    result = attack_records.attacked("org/rmu", 0.3, 0.7)
    assert result.worst() == "relearn"
    assert "worst case: relearn, 0.700" in str(result)
    asked = replace(result, runs=[run for run in result.runs if run.attack == "ask"])
    assert (asked.worst(), asked.to_json()["worst"]) == (None, {"unlearned": None, "base": None})
    said = str(asked)
    assert "worst" not in said
    assert said.endswith(
        "not attacked: asked as it is, 0.300 [0.241, 0.367] (not told from guessing, which gives 0.250). Nothing may be"
        " said of attacks"
    )
    assert "nothing had to be chosen on the other 200" in said


def test_attacks_that_bring_back_no_more_than_asking_are_no_worst_case_by_name() -> None:
    result = attack_records.attacked("org/rmu", 0.5, 0.4)
    assert result.worst() == "ask"
    said = str(result)
    assert "worst case: no attack, as on the questions for choosing none brought back more than asking: 0.500" in said
    # A gap to the base is there.
    assert "recovered n/a" not in said
    no_base = replace(result, models={"unlearned": "org/rmu"}, runs=[run for run in result.runs if run.role != "base"])
    assert "recovered n/a (relearn): there is no base" in str(no_base)
    small = replace(result, runs=[*no_base.runs, *(replace(run, role="base") for run in no_base.runs)])
    assert "recovered n/a (relearn): the gap to the base under the same attack is less than two standard" in str(small)
    assert "at budget standard" in result.claim()


def test_recovery_is_a_share_of_a_gap_that_is_there() -> None:
    def of(right: int, n: int = 400) -> object:
        return Answers.from_predictions([0] * right + [1] * (n - right), np.zeros(n, dtype=np.int64)).accuracy(
            np.ones(n, dtype=bool)
        )

    assert recovery(of(180), of(80), of(260), chance=0.25) == pytest.approx((0.45 - 0.25) / (0.65 - 0.25))
    assert recovery(of(300), of(100), of(260), chance=0.25) == 1.0
    assert recovery(of(80), of(100), of(260), chance=0.25) == 0.0
    assert recovery(of(120), of(100), of(110), chance=0.25) is None
