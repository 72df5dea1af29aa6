"""What was to be kept, beside the attacks: numbers against plain twins, what is missing, what is not done twice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import wmdp_fast as wf
from tests.reference import distance as slow
from tests.support import robustness as support
from wmdp_fast.checkpoints.checkpoint import ATTACKS_BEGIN, ATTACKS_END
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.results.by_document import ratio
from wmdp_fast.robustness.card import put_into_card
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.retained.distance import Distance
from wmdp_fast.robustness.retained.keyword import with_keyword

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.robustness.result import AttackResult
    from wmdp_fast.robustness.retained.measure import Figure

TEXTS = {
    "general text": ["The owl sat on a branch of the old tree. " * 12, "Rain.", "A jay and a wren flew over the hill."],
    "near text": ["A crane is a bird with long legs.", "Storks build nests on roofs."],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a model that differs from it a little, questions and texts."""
    made: Path = tmp_path_factory.mktemp("kept")
    support.save_model(made / "base")
    model = AutoModelForCausalLM.from_pretrained(made / "base")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(made / "model")
    AutoTokenizer.from_pretrained(made / "base").save_pretrained(made / "model")
    support.save_questions(made / "birds.jsonl")
    support.save_questions(made / "kept.jsonl", 20)
    for name, documents in TEXTS.items():
        lines = [json.dumps({"text": document}) + "\n" for document in documents]
        (made / f"{name.split()[0]}.jsonl").write_text("".join(lines))
    return made


def attacked(folder: Path, **options: object) -> AttackResult:
    given = {"base": folder / "base", "general_text": folder / "general.jsonl", "device": "cpu"} | options
    return wf.attack(
        given.pop("model", folder / "model"),
        tasks=[folder / "birds.jsonl"],
        attacks="ask",
        eval_options={"template": "mmlu"},
        progress=False,
        **given,
    )


def by_title(result: AttackResult, role: str = "unlearned") -> dict[str, Figure]:
    return {one.title: one for one in result.kept(role)}


def test_divergence_and_perplexity_are_those_of_plain_models(folder: Path) -> None:
    subject = support.subject(folder / "model", folder / "birds.jsonl", original=support.model_in(folder / "base").open)
    [text] = read_texts({"general text": TEXTS["general text"]})
    found = Distance(text).measure(subject)
    models = [AutoModelForCausalLM.from_pretrained(folder / name) for name in ("model", "base")]
    tokens = [AutoTokenizer.from_pretrained(folder / "base")(one)["input_ids"] for one in text.documents]
    model = subject.model
    assert model.max_length < len(tokens[0])  # several windows
    expected = slow.divergences(*models, tokens, model.prefix_token_id, model.max_length)
    assert found["kl"] == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 0
    assert found["tokens"] == list(map(len, tokens))
    evaluated = wf.evaluate(str(folder / "model"), text={"general text": TEXTS["general text"]}, progress=False)
    documents = evaluated["general text"].documents
    [perplexity, kl] = attacked(folder).kept("unlearned")
    assert perplexity.value == pytest.approx(documents.value("token_perplexity"), rel=1e-6)
    assert (perplexity.low, perplexity.high) == pytest.approx(documents.interval("token_perplexity"), rel=1e-6)
    assert kl.value == pytest.approx(sum(expected) / sum(map(len, tokens)), rel=1e-4)
    assert (kl.n, kl.unit) == (3, "nats")


def test_intervals_of_ratios_hold_what_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(150):
        sizes = rng.integers(20, 200, 40)
        value, low, high = ratio(rng.gamma(2.0, 0.5 * sizes), sizes)
        assert low is not None
        assert high is not None
        assert low < value < high
        held += low <= 1.0 <= high
    assert 0.9 <= held / 150 <= 0.99
    assert ratio([3.0], [2]) == (1.5, None, None)


def test_a_keyword_takes_the_place_of_a_wrong_choice_and_nothing_else_changes(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "kept.jsonl").read_text().splitlines()]
    asked = Questions.from_options(PromptOptions(tasks=[str(folder / "kept.jsonl")]), split=False)
    changed = []
    for row, question in zip(rows, asked.read[0].questions, strict=True):
        made = with_keyword(question, "Wobblewine")
        assert made["question"] == row["question"]
        differing = [place for place in range(4) if made["choices"][place] != row["choices"][place]]
        assert len(differing) == 1
        assert differing != [row["answer"]] == [made["answer"]]
        assert made["choices"][differing[0]] == "Wobblewine"
        changed.append({**row, "choices": made["choices"]})
    assert len({row["choices"].index("Wobblewine") for row in changed}) > 1
    (tmp_path / "changed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))

    # The same questions in a file of their own, asked as any others.
    result = attacked(folder, utility=[folder / "kept.jsonl"], utility_keyword="Wobblewine")
    [plain, keyword, change] = result.kept("unlearned")[2:]
    for figure, file in ((plain, folder / "kept.jsonl"), (keyword, tmp_path / "changed.jsonl")):
        evaluated = wf.evaluate(str(folder / "model"), tasks=[str(file)], progress=False, device="cpu")
        [outcome] = [one.outcome for one in evaluated.tasks.values()]
        assert figure.correct is not None
        assert figure.correct.tolist() == outcome.correct.tolist()
    lost, won = int((plain.correct & ~keyword.correct).sum()), int((~plain.correct & keyword.correct).sum())
    assert change.value == (won - lost) / 20
    assert (change.low, change.high) == wf._rust.paired_interval(lost, won, 20)
    title = "utility questions with “Wobblewine”"
    assert [one.tested for one in wf.table(result).measures if one.title == title] == [True]
    with pytest.raises(ValueError, match="needs tasks too"):
        attacked(folder, utility_keyword="Wobblewine")


def test_what_was_measured_is_not_measured_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = attacked(folder, output=tmp_path / "out")
    assert [one.name for one in first.measured] == ["general text", "general text"]
    measured: list[tuple[str, str]] = []
    measure = Distance.measure
    monkeypatch.setattr(
        Distance, "measure", lambda self, subject: measured.append((subject.role, self.name)) or measure(self, subject)
    )
    again = attacked(folder, output=tmp_path / "out", near_text=folder / "near.jsonl")
    assert measured == [("unlearned", "near text"), ("base", "near text")]
    assert again.to_json()["measured"][0] == first.to_json()["measured"][0]
    assert list(by_title(again)) == [f"{what}, {text}" for text in TEXTS for what in ("perplexity", "KL from the base")]
    # The model under attack is the base itself here, so that it is no distance away.
    taken = attacked(folder, model=folder / "base", controls=tmp_path / "out", near_text=folder / "near.jsonl")
    assert measured[2:] == [("unlearned", "general text"), ("unlearned", "near text")]
    assert by_title(taken)["KL from the base, near text"].value == 0
    assert wf.table(tmp_path / "out").rows[0].name == "base"


def test_what_cannot_be_measured_is_missing_and_said(folder: Path, tmp_path: Path) -> None:
    alone = attacked(folder, base=None)
    assert by_title(alone)["KL from the base, general text"].why == "there is no base: pass --base"
    support.save_model(tmp_path / "other", "gemma3_text")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    other.resize_token_embeddings(config["vocab_size"] + 8)
    other.save_pretrained(tmp_path / "other")
    result = attacked(folder, base=tmp_path / "other")
    perplexity, kl = result.kept("unlearned")
    assert (kl.value, kl.why) == (None, "the base has another vocabulary")
    assert perplexity.value == by_title(alone)["perplexity, general text"].value
    assert result.not_asked[1] == "distance on neighboring text (--near-text)"
    shown = str(result)
    assert "not run on unlearned: KL from the base, general text: the base has another vocabulary" in shown
    assert "not run: utility, which bounds attacks (--utility), distance on neighboring text (--near-text), " in shown
    found = wf.table(result)
    assert "KL from the base, general text not run: the base has another vocabulary" in " ".join(found.notes)
    assert any("not run: utility" in note for note in found.notes)


def test_the_models_card_takes_it_in_and_says_what_was_not_run(folder: Path, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    result = attacked(folder)
    put_into_card(result, card)
    assert card.read_text().startswith(ATTACKS_BEGIN)
    # The card of an unlearned model has a place for it, and the rest of it stays.
    card.write_text(f"# mine\n\n{ATTACKS_BEGIN}\nNot run.\n{ATTACKS_END}\n\n## Settings\n")
    for _ in range(2):
        put_into_card(result, card)
        text = card.read_text()
        assert text.startswith("# mine\n\n<!--")
        assert text.endswith(f"{ATTACKS_END}\n\n## Settings\n")
        assert text.count("## Attacks") == 1
    assert "Not run.\n" not in text
    assert "| ask (no attack) |" in text
    kl = result.kept("unlearned")[1]
    assert f"| KL from the base, general text | {kl} | n/a |" in text
    assert "- Attackers who have the weights: not tried, so nothing may be claimed." in text
    assert "- Not run: utility, which bounds attacks (--utility), distance on neighboring text (--near-text)," in text
    assert str(folder) not in text
    with pytest.raises(ValueError, match="card is for a model in a folder of its own"):
        attacked(folder, model="lab/model", card=True)
