"""The same model on the same questions: this package's numbers are lm-eval's, live.

They come from the engine that a user gets without asking, the token trie; padded rows are compared where it says so.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'wmdp-fast[lm-eval]'")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import wmdp_fast as wf
from tests.support import tokenizers_zoo
from tests.support.expected_warnings import CUT_PROMPTS, ENDED_PROMPTS, ONE_LETTER, REPEATED_EXAMPLES
from tests.support.lm_eval_runs import LmEvalRun, run_lm_eval
from tests.support.thorough import cases, every_other

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.scoring.trie import Engine

# The bound the project promises for a choice's log-likelihood in float32, in nats.
TOLERANCE = 1e-4

pytestmark = pytest.mark.timeout(900)


def check_same(ours: wf.EvalResult, theirs: LmEvalRun, tolerance: float = TOLERANCE, *, engine: str = "trie") -> None:
    assert ours.details["engine"] == engine, ours.details["why_not_trie"]
    assert set(ours.tasks) == set(theirs.loglikelihood)
    for name, result in ours.tasks.items():
        expected = np.array([value for question in theirs.loglikelihood[name] for value in question])
        np.testing.assert_allclose(result.outcome.loglikelihood, expected, rtol=0, atol=tolerance)
        greedy = [value for question in theirs.is_greedy[name] for value in question]
        assert result.outcome.is_greedy.tolist() == greedy
        assert [result.prompts.context(i) for i in range(len(result.prompts))] == theirs.contexts[name]
        for metric in result.task.metrics:
            assert result[metric] == pytest.approx(theirs.results[name][f"{metric},none"], abs=1e-12)
            assert result[f"{metric}_stderr"] == pytest.approx(theirs.results[name][f"{metric}_stderr,none"], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "shots", "limit", "engines", "layers"),
    [
        ("mmlu_world_religions,mmlu_virology", 0, cases(4, 24), ("auto", "padded"), 30),
        ("mmlu_world_religions,mmlu_virology", 5, cases(2, 6), ("auto",), cases(4, 30)),
        ("mmlu_world_religions_continuation", 0, cases(4, 12), ("auto", "padded"), cases(4, 30)),
        ("mmlu_world_religions_continuation", 5, cases(2, 4), ("auto",), cases(4, 30)),
    ],
)
def test_smollm2_on_mmlu_in_float32(
    smollm2_dir: Path,
    lower_layers_dir: Path,
    mmlu_dir: Path,
    tasks: str,
    shots: int,
    limit: int,
    engines: tuple[Engine, ...],
    layers: int,
) -> None:
    folder = smollm2_dir if layers == 30 else lower_layers_dir
    theirs = run_lm_eval(
        str(folder),
        tasks,
        data=mmlu_dir,
        num_fewshot=shots,
        limit=limit,
        model_args={"dtype": "float32", "batch_size": 4},
    )
    for engine in engines:
        ours = wf.evaluate(
            folder,
            tasks=tasks,
            data=mmlu_dir,
            num_fewshot=shots,
            limit=limit,
            dtype="float32",
            device="cpu",
            engine=engine,
            progress=False,
        )
        check_same(ours, theirs, engine="trie" if engine == "auto" else engine)


@ONE_LETTER
@pytest.mark.slow
def test_bfloat16_is_as_near_to_float32_as_lm_eval(smollm2_dir: Path, lower_layers_dir: Path, mmlu_dir: Path) -> None:
    """In bfloat16 no two orders of sums agree, lm-eval's own batch sizes among them, so the measure is float32.

    Padded rows run the products that lm-eval runs and lie within its own spread. A trie packs its rows otherwise; what
    it may not do is to stray further from the same weights' float32 numbers than lm-eval does.
    """
    folder, limit, batch_sizes = smollm2_dir, 24, (8, 24)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # This CPU emulates bfloat16, at some ten tokens a second: fewer questions, for the model's lower layers.
        folder, limit, batch_sizes = lower_layers_dir, 12, (3, 12)

    def theirs(batch_size: int, dtype: str = "bfloat16") -> np.ndarray[Any, np.dtype[np.float64]]:
        run = run_lm_eval(
            str(folder),
            "mmlu_world_religions",
            data=mmlu_dir,
            limit=limit,
            model_args={"dtype": dtype, "batch_size": batch_size},
        )
        return np.array(run.loglikelihood["mmlu_world_religions"])

    def ours(engine: Engine) -> np.ndarray[Any, np.dtype[np.float64]]:
        result = wf.evaluate(
            folder,
            tasks="mmlu_world_religions",
            data=mmlu_dir,
            limit=limit,
            dtype="bfloat16",
            device="cpu",
            engine=engine,
            score_mode="model",
            progress=False,
        )
        assert result.details["engine"] == engine
        return result.tasks["mmlu_world_religions"].outcome.loglikelihood.reshape(reference.shape)

    reference, exact = theirs(1), theirs(1, "float32")
    runs = [reference, *(theirs(size) for size in batch_sizes)]
    trie, padded = ours("trie"), ours("padded")
    assert np.abs(padded - reference).max() <= max(np.abs(run - reference).max() for run in runs)
    # A root mean square of 48 errors or more has itself a standard error of some 10 %.
    rms = [np.sqrt(np.square(run - exact).mean()) for run in (trie, *runs)]
    assert rms[0] <= 1.1 * max(rms[1:]), rms
    assert np.abs(trie - exact).max() <= 1.1 * max(np.abs(run - exact).max() for run in runs)
    flips = [int((run.argmax(1) != exact.argmax(1)).sum()) for run in (trie, *runs)]
    assert flips[0] <= max(flips[1:]), flips


CHATML = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)

ROWS = [
    {"question": "\n  Which bird is blue? ", "choices": ["the wren", "the jay", "a blue tit\n", "an owl"], "answer": 1},
    {"question": "How many eggs?", "choices": ["7", "42", "12345", "none of them"], "answer": 3},
    {"question": "Étude — “naïve”…", "choices": ["日本", "é", " tabs\tand spaces", "B"], "answer": 0},
    {"question": "long " * 40 + "?", "choices": ["the", "jay jay jay jay", "x", "Don't"], "answer": 2},
]


def tiny_model(kind: str, max_positions: int) -> tuple[LlamaForCausalLM, Any]:
    tokenizer = tokenizers_zoo.tokenizer(kind)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture(scope="module")
def bird_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("birds")
    (folder / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (folder / "birds_dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]), encoding="utf-8")
    return folder / "birds.jsonl"


TEMPLATES = ("mmlu", "mmlu_continuation")


@CUT_PROMPTS
@ENDED_PROMPTS
@REPEATED_EXAMPLES
@pytest.mark.parametrize(
    ("kind", "template", "shots", "max_positions"),
    every_other(("gpt2", "llama2", "llama3", "bos_and_eos"), TEMPLATES, (0, 2), (2048, 48)),
)
def test_tokenizers_and_limits(bird_questions: Path, kind: str, template: str, shots: int, max_positions: int) -> None:
    model, tokenizer = tiny_model(kind, max_positions)
    theirs = run_lm_eval(
        model,
        bird_questions,
        template=template,
        num_fewshot=shots,
        model_args={"tokenizer": tokenizer, "batch_size": 3},
    )
    for engine in ("auto", "padded"):
        ours = wf.evaluate(
            model,
            tokenizer=tokenizer,
            tasks=bird_questions,
            template=template,
            num_fewshot=shots,
            engine=engine,
            progress=False,
        )
        check_same(ours, theirs, engine="trie" if engine == "auto" else engine)


@REPEATED_EXAMPLES
@pytest.mark.parametrize(
    ("kind", "template", "examples", "system"),
    every_other(("gpt2", "llama3"), TEMPLATES, ((0, True), (2, True), (2, False)), (None, "You know birds.")),
)
def test_chat_templates(
    bird_questions: Path, kind: str, template: str, examples: tuple[int, bool], system: str | None
) -> None:
    shots, multiturn = examples
    model, tokenizer = tiny_model(kind, 2048)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHATML
    theirs = run_lm_eval(
        model,
        bird_questions,
        template=template,
        num_fewshot=shots,
        model_args={"tokenizer": tokenizer, "batch_size": 3},
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction=system,
    )
    ours = wf.evaluate(
        model,
        tokenizer=tokenizer,
        tasks=bird_questions,
        template=template,
        num_fewshot=shots,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction=system,
        progress=False,
    )
    check_same(ours, theirs)
