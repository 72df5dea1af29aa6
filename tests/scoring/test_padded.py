"""Padded scoring: equal to one sequence at a time, to lm-eval bit for bit, and through running out of memory."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import XLMConfig, XLMWithLMHeadModel

from tests.reference import scoring
from tests.reference.batching import Question, Requests
from tests.support import tiny_models, tokenizers_zoo
from wmdp_fast import Prompts, Tokenizer
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.load import LoadedModel, load_model, wrap_model
from wmdp_fast.models.logits import all_logits
from wmdp_fast.scoring import padded
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.scores import PartialScores, Scores

MAX_LENGTH = 24

TOKENS = st.integers(1, 40)
CONTINUATIONS = st.lists(st.lists(TOKENS, min_size=1, max_size=4), min_size=1, max_size=4)
LETTERS = st.lists(TOKENS.map(lambda token: [token]), min_size=2, max_size=4)
QUESTIONS = st.lists(
    st.tuples(st.lists(TOKENS, min_size=1, max_size=MAX_LENGTH + 4), CONTINUATIONS | LETTERS), min_size=1, max_size=6
)

# Rows of 3 to 12 tokens, some with several readouts: 12 rows, 2 of them shared by choices.
MIXED: list[Question] = [
    ([*range(1, 2 + n), 5], [[7], [8], [9], [10]] if n % 2 else [[7, 8], [9, 10], [7, 11, 12]]) for n in range(1, 7)
]


def check_equals_reference(scores: Scores, loaded: LoadedModel, questions: list[Question]) -> None:
    expected = scoring.score(loaded.model, questions, MAX_LENGTH)
    np.testing.assert_allclose(scores.loglikelihood, [total for total, _ in expected], rtol=0, atol=1e-5)
    assert scores.is_greedy.tolist() == [greedy for _, greedy in expected]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
@given(questions=QUESTIONS, token_budget=st.sampled_from([1, 16, 64, 10_000]))
@settings(max_examples=25, deadline=None)
def test_scores_equal_those_of_one_sequence_at_a_time(
    family: str, questions: list[Question], token_budget: int
) -> None:
    loaded = tiny_models.loaded(family)
    scores = score_padded(loaded, Requests(questions, MAX_LENGTH), token_budget=token_budget)
    check_equals_reference(scores, loaded, questions)


@given(questions=QUESTIONS, token_budget=st.sampled_from([1, 16, 10_000]))
@settings(max_examples=50, deadline=None)
def test_logits_are_the_same_selected_or_not(questions: list[Question], token_budget: int) -> None:
    batch = Requests(questions, MAX_LENGTH).padded_batch(0, token_budget)
    assert batch is not None
    for family in tiny_models.FAMILIES:
        model = tiny_models.loaded(family).model
        input_ids = torch.from_numpy(batch.input_ids)
        with torch.no_grad():
            selecting, every_logit = padded.logits_reader(model, input_ids.device)
            selected, picked = (logits(model, input_ids, batch.readouts) for logits in (selecting, all_logits))
        assert not every_logit
        assert selected.shape == picked.shape == (len(batch.readouts), tiny_models.VOCABULARY)
        torch.testing.assert_close(selected, picked, rtol=0, atol=1e-5)


@given(
    tasks=st.lists(
        st.lists(
            st.tuples(
                st.text("ab AB.\n", min_size=1, max_size=30).filter(str.strip),
                st.lists(st.text("ABab ", min_size=1, max_size=6).filter(str.strip), min_size=2, max_size=4),
            ),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=3,
    ),
    max_length=st.sampled_from([8, 20, 100]),
    token_budget=st.sampled_from([1, 40, 10_000]),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
@example(tasks=[[("A", ["A", "A"]), ("A   ", ["A", "AAAAAA"])]], max_length=8, token_budget=1, cuts=[])
@settings(max_examples=50, deadline=None)
def test_rust_cuts_the_batches_that_python_cuts(
    tasks: list[list[tuple[str, list[str]]]], max_length: int, token_budget: int, cuts: list[int]
) -> None:
    slow = tokenizers_zoo.tokenizer("llama3")
    tokenizer = Tokenizer(
        slow.backend_tokenizer.to_str(), add_special_tokens=True, prefix_token_id=1, prefix_text=slow.decode(1)
    )
    prompts = [
        Prompts.from_contexts(
            [context for context, _ in task], [choices for _, choices in task], [0] * len(task), delimiter=" "
        )
        for task in tasks
    ]
    # A continuation longer than the model's limit is an error, not a batch.
    longest = int(np.diff(tokenizer.encode_requests(prompts, max_length=1000).continuation_offsets).max())
    max_length = max(max_length, longest)
    fast = tokenizer.encode_requests(prompts, max_length=max_length)
    offsets = fast.choice_offsets.tolist()
    twin = Requests(
        [
            (fast.context(q).tolist(), [fast.continuation(c).tolist() for c in range(offsets[q], offsets[q + 1])])
            for q in range(fast.num_questions)
        ],
        max_length,
    )
    assert twin.choice_offsets.tolist() == offsets
    for name in ("num_questions", "num_choices", "num_rows", "num_tokens"):
        assert getattr(fast, name) == getattr(twin, name)
    start = 0
    while (batch := fast.padded_batch(start, token_budget, cuts)) is not None:
        expected = twin.padded_batch(start, token_budget, cuts)
        assert expected is not None
        for name in ("input_ids", "lengths", "readouts", "target_readouts", "target_tokens", "target_choices"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), err_msg=name)
        start = batch.stop
        assert start == expected.stop
    assert start == twin.num_rows


def test_a_continuation_is_greedy_only_if_every_token_is() -> None:
    loaded = tiny_models.loaded("llama")
    context, greedy = [3, 1, 4, 1, 5], []
    with torch.no_grad():
        for _ in range(3):
            greedy.append(int(loaded.model(torch.tensor([context + greedy])).logits[0, -1].argmax()))
    first, second, third = greedy
    wrong = [[first, second, third + 1], [first, second + 1, third], [first + 1, second, third]]
    scores = score_padded(loaded, Requests([(context, [greedy, *wrong])], MAX_LENGTH))
    assert scores.is_greedy.tolist() == [True, False, False, False]


# lm-eval


def lm_eval_scores(loaded: LoadedModel, questions: list[Question], batch_size: int) -> list[tuple[float, bool]]:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'wmdp-fast[lm-eval]'")
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size, max_length=MAX_LENGTH)
    requests = [
        ((f"question {q}", str(c)), context, continuation)
        for q, (context, continuations) in enumerate(questions)
        for c, continuation in enumerate(continuations)
    ]
    answers: list[tuple[float, bool]] = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return answers


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_mode_model_gives_lm_evals_numbers_to_the_last_bit(family: str, dtype: torch.dtype) -> None:
    loaded = tiny_models.loaded(family, dtype)
    # Contexts of different lengths (so that both sort the batch alike), one of them truncated.
    rng = np.random.default_rng(0)
    questions: list[Question] = [
        (
            rng.integers(1, 40, size=5 * n).tolist(),
            [rng.integers(1, 40, size=length).tolist() for length in lengths],
        )
        for n, lengths in enumerate([(1, 1, 1, 1), (4, 1), (3, 2, 4), (1, 2), (1, 1)], start=1)
    ]
    expected = lm_eval_scores(loaded, questions, batch_size=1000)
    scores = score_padded(loaded, Requests(questions, MAX_LENGTH), token_budget=100_000, score_mode="model")
    assert scores.batches == 1
    if dtype == torch.float32 or family == "mamba":
        # lm-eval adds up in float32, in an order of torch's choosing. (Mamba's logits are always float32.)
        np.testing.assert_allclose(scores.loglikelihood, [total for total, _ in expected], rtol=1e-6)
    else:
        assert scores.loglikelihood.tolist() == [total for total, _ in expected]
    assert scores.is_greedy.tolist() == [greedy for _, greedy in expected]


def test_mode_float32_keeps_apart_what_16_bits_make_equal() -> None:
    loaded = tiny_models.loaded("llama", torch.bfloat16)
    requests = Requests([([1, 2, 3], [[token] for token in range(1, 600)])], MAX_LENGTH)
    scores = {mode: score_padded(loaded, requests, score_mode=mode) for mode in ("model", "float32")}
    distinct = {mode: len(np.unique(scores[mode].loglikelihood)) for mode in scores}
    assert distinct["model"] < distinct["float32"]
    np.testing.assert_allclose(scores["model"].loglikelihood, scores["float32"].loglikelihood, rtol=2**-7)


# Models that are not as expected


class Wrapped(torch.nn.Module):
    """Some other model around a tiny one that takes a mask of positions; `passes` has the rows of each forward pass."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config
        self.passes: list[list[tuple[int, ...]]] = []

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        self.passes.append([tuple(row) for row in input_ids.tolist()])
        mask = arguments.pop("logits_to_keep", None)
        output = self.inner(input_ids, **arguments)
        if mask is not None:
            output.logits = output.logits[mask]
        return output


def wrapped(model: torch.nn.Module) -> LoadedModel:
    return wrap_model(model, tiny_models.tokenizer())


class OldStyle(Wrapped):
    """Returns all logits, whatever it is asked for, as custom code may."""

    def forward(self, input_ids: torch.Tensor) -> Any:  # type: ignore[override]
        return SimpleNamespace(logits=self.inner(input_ids).logits)


class WrongPlaces(Wrapped):
    """Takes positions for each row, but no mask."""

    def forward(self, input_ids: torch.Tensor, *, logits_to_keep: Any = 0, **arguments: Any) -> Any:
        keep = logits_to_keep if isinstance(logits_to_keep, int) else torch.arange(logits_to_keep.sum())[None] % 2
        return self.inner(input_ids, logits_to_keep=keep, **arguments)


class Prompted(Wrapped):
    """Puts two learned tokens before the input, as prompt tuning does."""

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        learned = torch.tensor([[11, 12]]).expand(len(input_ids), -1)
        return self.inner(torch.cat([learned, input_ids], dim=1), **arguments)


class LooksAhead(Wrapped):
    """Every token sees the last one of its row."""

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        answer = self.inner(input_ids, **arguments)
        answer.logits = answer.logits + self.inner(input_ids.flip(1)).logits.mean(dim=1, keepdim=True)
        return answer


@pytest.mark.parametrize("kind", [OldStyle, WrongPlaces, Prompted])
def test_models_without_logits_to_keep_are_scored_with_a_warning(kind: type[Wrapped]) -> None:
    loaded = wrapped(kind(tiny_models.loaded("llama").model))
    with pytest.warns(UserWarning, match=f"{kind.__name__} does not take a mask as logits_to_keep"):
        scores = score_padded(loaded, Requests(MIXED, MAX_LENGTH))
    if kind is Prompted:
        questions = [([11, 12, *context], continuations) for context, continuations in MIXED]
        check_equals_reference(scores, tiny_models.loaded("llama"), questions)
    else:
        check_equals_reference(scores, tiny_models.loaded("llama"), MIXED)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_without_a_mask_hidden_states_are_selected(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers before 5.21: it takes positions that are the same for all rows, and no mask."""
    loaded, requests, rows = wrapped(tiny_models.build(family)), Requests(MIXED, MAX_LENGTH), []
    batch = requests.padded_batch(0, 1024)
    assert batch is not None
    forward, head = loaded.model.forward, loaded.model.get_output_embeddings()

    @functools.wraps(forward)
    def refusing(*inputs: Any, logits_to_keep: Any = 0, **options: Any) -> Any:
        if isinstance(logits_to_keep, torch.Tensor):
            raise IndexError("too many indices for tensor of dimension 3")
        return forward(*inputs, logits_to_keep=logits_to_keep, **options)

    monkeypatch.setattr(loaded.model, "forward", refusing)
    head.register_forward_hook(lambda _module, _inputs, logits: rows.append(logits[..., 0].numel()))
    scores = score_padded(loaded, requests, token_budget=1024)
    assert rows[-1] == len(batch.readouts)
    check_equals_reference(scores, loaded, MIXED)


def test_models_in_which_padding_matters_are_refused() -> None:
    with pytest.raises(ModelError, match="must be causal"):
        score_padded(wrapped(LooksAhead(tiny_models.loaded("llama").model)), Requests(MIXED, MAX_LENGTH))


@pytest.mark.parametrize("causal", [True, False])
def test_models_that_see_what_follows_but_hide_padding_are_refused(causal: bool) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": tiny_models.VOCABULARY, "emb_dim": 32, "n_layers": 2, "n_heads": 4}
    model = XLMWithLMHeadModel(XLMConfig(**sizes, causal=causal, pad_index=0, pad_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.3)
    loaded, requests = wrapped(model), Requests(MIXED, MAX_LENGTH)
    if causal:
        check_equals_reference(score_padded(loaded, requests), loaded, MIXED)
    else:
        with pytest.raises(ModelError, match="must be causal"):
            score_padded(loaded, requests)


def test_not_a_number_is_refused() -> None:
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(ModelError, match=r"NaN.*float16"):
        score_padded(wrapped(model), Requests(MIXED, MAX_LENGTH))


def test_not_a_number_in_some_rows_only_is_refused() -> None:
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        score_padded(wrapped(model), Requests([([3, 4], [[5], [6]]), ([3, 9], [[5], [6]])], MAX_LENGTH))


# Memory


class Small(Wrapped):
    """Runs out of memory in batches of more than `limit` tokens; else it notes the rows it has seen."""

    limit = 40
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        if input_ids.numel() > self.limit:
            raise self.error
        return super().forward(input_ids, **arguments)


# Passes at the beginning that try the model out.
TRIED = 5

CPU_OUT_OF_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [Small.error, CPU_OUT_OF_MEMORY], ids=["cuda", "cpu"])
def test_out_of_memory_halves_the_budget_and_scores_each_row_once(
    error: Exception, recwarn: pytest.WarningsRecorder
) -> None:
    model = Small(tiny_models.loaded("llama").model)
    model.error = error
    requests = Requests(MIXED, MAX_LENGTH)
    scores = score_padded(wrapped(model), requests)
    check_equals_reference(scores, tiny_models.loaded("llama"), MIXED)
    assert 1 <= scores.token_budget <= Small.limit
    rows = [row for batch in model.passes[TRIED:] for row in batch]
    assert [len(batch) for batch in model.passes[TRIED:]] != [1] * len(requests.rows)
    assert len(rows) == requests.num_rows
    assert len(model.passes) - TRIED == scores.batches
    assert sum(len(row) for row in rows) == scores.tokens_run
    assert not [warning for warning in recwarn if "memory" in str(warning.message)]


def test_out_of_memory_in_a_later_batch_keeps_the_finished_rows() -> None:
    model = Small(tiny_models.loaded("llama").model)
    requests = Requests(MIXED, MAX_LENGTH)
    finished = []

    def progress(done: int, total: int) -> None:
        finished.append((done, total))
        model.limit = 8 if done > 3 else 40

    with pytest.warns(UserWarning, match=r"out of memory on cpu with \d+ rows of \d+ tokens: token_budget is now \d+"):
        scores = score_padded(wrapped(model), requests, token_budget=40, progress=progress)
    check_equals_reference(scores, tiny_models.loaded("llama"), MIXED)
    assert sum(len(batch) for batch in model.passes[TRIED:]) == requests.num_rows
    assert finished[-1] == (requests.num_rows, requests.num_rows)
    assert [done for done, _ in finished] == sorted({done for done, _ in finished})


def test_a_row_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    model = Small(tiny_models.loaded("llama").model)
    model.limit = 6
    with pytest.raises(ModelError, match=r"single row of 10 tokens.*dtype bfloat16.*num_fewshot"):
        score_padded(wrapped(model), Requests(MIXED, MAX_LENGTH))


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model = Small(tiny_models.loaded("llama").model)
    model.error = RuntimeError("expected scalar type Half but found Float")
    with pytest.raises(RuntimeError, match="expected scalar type"):
        score_padded(wrapped(model), Requests(MIXED, MAX_LENGTH))


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on_from_there() -> None:
    model = Wrapped(tiny_models.loaded("llama").model)
    requests = Requests(MIXED, MAX_LENGTH)
    partial = PartialScores.empty(requests.num_choices)

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_padded(wrapped(model), requests, token_budget=20, partial=partial, progress=interrupt)
    done = partial.finished
    assert 0 < done.sum() < requests.num_choices
    expected = np.array([total for total, _ in scoring.score(model.inner, MIXED, MAX_LENGTH)])
    np.testing.assert_allclose(partial.loglikelihood[done], expected[done], atol=1e-5)

    before = len(model.passes)
    scores = score_padded(wrapped(model), requests, token_budget=20, partial=partial)
    check_equals_reference(scores, tiny_models.loaded("llama"), MIXED)
    assert (
        sum(len(batch) for batch in [*model.passes[TRIED:before], *model.passes[before + TRIED :]]) == requests.num_rows
    )
    assert scores.batches == len(model.passes) - 2 * TRIED


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="token_budget must be at least 1, not 0"):
        score_padded(tiny_models.loaded("llama"), Requests(MIXED, MAX_LENGTH), token_budget=0)


def test_the_automatic_budget_on_a_gpu_goes_by_free_memory_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10**9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))  # noqa: ARG005
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)  # noqa: ARG005
    requests: Any = Requests([(list(range(1, 100)), [[1], [2]])] * 50, 100)

    def budget(family: str, *, every_logit: bool = False) -> int:
        loaded = replace(tiny_models.loaded(family), device=torch.device("cuda"))
        return padded.auto_token_budget(loaded, requests, every_logit=every_logit)

    assert budget("llama") == padded.MAX_CUDA_TOKEN_BUDGET
    free = 10**7
    per_token = 4 * (8 * 32 + 3 * 48) + tiny_models.VOCABULARY * 12 // 99
    assert budget("llama") == pytest.approx(0.8 * free / per_token, rel=0.01)
    assert budget("llama", every_logit=True) < budget("llama") / 4
    # Attention computed eagerly keeps its scores.
    assert budget("gemma2") < budget("llama")
    free = 0
    assert budget("llama") == 1


def test_a_model_in_training_is_scored_without_dropout_and_left_in_training() -> None:
    model = tiny_models.build("gpt2")
    model.train()
    model.transformer.h[0].eval()
    flags = [module.training for module in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    scores = score_padded(wrapped(model), Requests(MIXED, MAX_LENGTH))
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in model.parameters())
    check_equals_reference(scores, tiny_models.loaded("gpt2"), MIXED)


@pytest.mark.slow
def test_a_real_model_scores_real_text_as_one_sequence_at_a_time(smollm2_dir: Any) -> None:
    loaded = load_model(str(smollm2_dir), dtype="float32", device="cpu")
    encode = loaded.tokenizer.encode
    questions: list[Question] = [
        (encode(f"The capital of {country} is the city of"), [encode(f" {city}") for city in cities])
        for country, cities in [
            ("France", ["Paris", "London", "Ouagadougou"]),
            ("Burkina Faso", ["Paris", "London", "Ouagadougou"]),
            ("the United Kingdom of Great Britain and Northern Ireland", ["Paris", "London", "Ouagadougou"]),
        ]
    ]
    scores = score_padded(loaded, Requests(questions, loaded.max_length))
    expected = [total for total, _ in scoring.score(loaded.model, questions, loaded.max_length)]
    np.testing.assert_allclose(scores.loglikelihood, expected, atol=1e-4)
    assert scores.loglikelihood.reshape(3, 3).argmax(axis=1).tolist()[::2] == [0, 1]
