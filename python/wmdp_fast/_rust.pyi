"""
Rust core of wmdp-fast.
"""

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any, Final, SupportsFloat, SupportsIndex, final

from _typeshed import SupportsGetItem
from numpy import bool_, float32, float64, int64, uint16
from numpy.typing import NDArray

__all__ = [
    "RELEASE_BUILD",
    "__version__",
    "Calibration",
    "CorporaAhead",
    "EncodedCorpus",
    "OrderAnswers",
    "OrderEffects",
    "Outcome",
    "PaddedBatch",
    "PromptTemplate",
    "Prompts",
    "Question",
    "QuestionSet",
    "ReadAhead",
    "Requests",
    "Samples",
    "TokenLogprobs",
    "Tokenizer",
    "Trie",
    "TrieBatch",
    "TrieBatches",
    "_restore_prompts",
    "_restore_questions",
    "_restore_requests",
    "_restore_tokenizer",
    "against_chance",
    "aggregate",
    "available_memory",
    "calibration",
    "chi_square_uniform",
    "clustered_stderr",
    "gate_in_place",
    "holm",
    "mcnemar",
    "num_threads",
    "order_effects",
    "packed_attention",
    "packed_attention_gradient",
    "paired_interval",
    "pool",
    "probabilities",
    "read_documents",
    "read_many",
    "read_questions",
    "read_samples",
    "rms_norm",
    "rotate",
    "rotate_bfloat16",
    "wilson",
    "write_samples",
]

RELEASE_BUILD: Final[bool]
"""
Whether this is an optimized build; benchmarks of any other are meaningless.
"""

__version__: Final[str]
"""
Version of the extension, the same as the package's.
"""

@final
class Calibration:
    """
    How far probabilities can be believed. Bin b of B holds confidences above b/B up to (b+1)/B; the lowest holds 0, too.
    """
    def __repr__(self, /) -> str: ...
    @property
    def accuracy(self, /) -> NDArray[float64]:
        """
        Share of right answers by bin; NaN if the bin is empty: float64 `[num_bins]`.
        """
    @property
    def brier(self, /) -> float:
        """
        lm-eval's Brier score: mean over questions of `Σ_choices (probability - 1 if right else 0)²`; 0 is perfect, 2 the worst.
        """
    @property
    def confidence(self, /) -> NDArray[float64]:
        """
        Mean probability of the predicted choice by bin; NaN if the bin is empty: float64 `[num_bins]`.
        """
    @property
    def counts(self, /) -> NDArray[int64]:
        """
        Number of questions by bin: int64 `[num_bins]`.
        """
    @property
    def ece(self, /) -> float:
        """
        Expected calibration error: over the bins, weighted by size, how far mean confidence is from the share of right answers.
        """

@final
class CorporaAhead:
    """
    A tokenizer that is being loaded, and corpora that are tokenized with it after that, on a thread that needs no interpreter.

    Dropping the object stops the thread without waiting for it.

    Args:
        json: As of `Tokenizer`.
        add_special_tokens: Likewise.
        prefix_token_id: Likewise.
        prefix_text: Likewise.
        corpora: For each corpus the arguments of `Tokenizer.encode_corpus`: `paths`, `max_length`, `field`, `raw_lines`, `min_chars`
            and `limit`.
    """
    def __new__(
        cls,
        /,
        json: str,
        *,
        add_special_tokens: bool,
        prefix_token_id: SupportsIndex,
        prefix_text: str,
        corpora: SupportsGetItem[
            int,
            tuple[
                SupportsGetItem[int, str | PathLike[str]], SupportsIndex, str, bool, SupportsIndex, SupportsIndex | None
            ],
        ],
    ) -> CorporaAhead: ...
    def stop(self, /) -> None:
        """
        Has the thread stop at the next document, or once the tokenizer is loaded.
        """
    def take(self, /, corpus: SupportsIndex) -> EncodedCorpus:
        """
        The tokens of a corpus, by its place in `corpora`: waits for them. They are given once.

        Raises:
            DatasetError, OSError, TokenizerError, ValueError: As `Tokenizer.encode_corpus`.
        """
    def tokenizer(self, /) -> Tokenizer:
        """
        The tokenizer: waits until it is loaded.

        Raises:
            TokenizerError: As `Tokenizer`; the first time.
            ValueError: If that was raised before.
        """

@final
class EncodedCorpus:
    """
    The documents of a corpus as token ids.

    Attributes:
        tokens: int64 `[N]`, all documents' ids one after another, writable.
        offsets: int64 `[documents + 1]`, where each document's ids begin, then their number.
        content_hash: SHA-256 over the documents' texts.
        engine: The crate that made the tokens: `"fastokens"` or `"tokenizers"`.
        why_not_fast: Why it was not fastokens, or None if it was.
    """
    @property
    def content_hash(self, /) -> str: ...
    @property
    def engine(self, /) -> str: ...
    @property
    def offsets(self, /) -> NDArray[int64]: ...
    @property
    def tokens(self, /) -> NDArray[int64]: ...
    @property
    def why_not_fast(self, /) -> str | None: ...

@final
class OrderAnswers:
    """
    The answers to a task's questions in several orders of their choices.

    An order is written as the letters of the choices that stand in its places: `BCDA` has the second choice first. Choices are
    numbered as in the question, not by place.

    Args:
        questions: The questions.
        orders: `"cyclic"` or `"all"`, as given to `QuestionSet.permuted`.
        original: The outcome of the questions as they are.
        others: The outcome of `questions.permuted(orders)`.

    Raises:
        ValueError: If an outcome is of other questions.
    """
    def __len__(self, /) -> int: ...
    def __new__(cls, /, questions: QuestionSet, orders: str, original: Outcome, others: Outcome) -> OrderAnswers: ...
    def loglikelihood(self, /, question: SupportsIndex) -> list[tuple[str, list[float]]]:
        """
        For each order of a question's choices, the original one first, the log-likelihood of each choice in nats.
        """
    def predicted(self, /, question: SupportsIndex) -> list[tuple[str, int]]:
        """
        For each order of a question's choices, the original one first, the choice that the model picked.
        """

@final
class OrderEffects:
    """
    What the order of the choices does to the answers. Each question counts the same.

    Attributes:
        orders: For each order its letters, the number of questions asked in it, and the share of right answers.
        mean: Share of right answers over all orders.
        sd: Sample standard deviation (n - 1) of the orders' accuracies; None if questions differ in their number of choices.
        changed: Share of the other orders in which the answer is another text than in the original order.
        consistent: Share of questions that are answered with the same text in all orders.
        letters: For each letter its share of right answers and of predictions in the original order, and its share of
            predictions over all orders.
    """
    @property
    def changed(self, /) -> float: ...
    @property
    def consistent(self, /) -> float: ...
    @property
    def letters(self, /) -> list[tuple[str, float, float, float]]: ...
    @property
    def mean(self, /) -> float: ...
    @property
    def orders(self, /) -> list[tuple[str, int, float]]: ...
    @property
    def sd(self, /) -> float | None: ...

@final
class Outcome:
    """
    The scores of one task and what follows from them. Questions and choices are in the task's order; arrays are read-only.
    """
    def __len__(self, /) -> int: ...
    def __repr__(self, /) -> str: ...
    @property
    def acc(self, /) -> float:
        """
        Share of right answers.
        """
    @property
    def acc_norm(self, /) -> float:
        """
        Share of right answers by `predicted_norm`.
        """
    @property
    def acc_norm_stderr(self, /) -> float | None:
        """
        Standard error of `acc_norm`, or None for a single question.
        """
    @property
    def acc_stderr(self, /) -> float | None:
        """
        Standard error of `acc`, or None for a single question.
        """
    @property
    def answers(self, /) -> NDArray[int64]:
        """
        The right choice: int64 `[num_questions]`.
        """
    @property
    def choice_offsets(self, /) -> NDArray[int64]:
        """
        Choices of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`: int64 `[num_questions + 1]`.
        """
    @property
    def correct(self, /) -> NDArray[bool_]:
        """
        Whether `predicted` is right: bool `[num_questions]`.
        """
    @property
    def correct_norm(self, /) -> NDArray[bool_]:
        """
        Whether `predicted_norm` is right: bool `[num_questions]`.
        """
    @property
    def is_greedy(self, /) -> NDArray[bool_]:
        """
        Whether each token of a choice is the model's most likely one: bool `[num_choices]`.
        """
    @property
    def loglikelihood(self, /) -> NDArray[float64]:
        """
        Log-likelihood of each choice in nats: float64 `[num_choices]`.
        """
    @property
    def margin(self, /) -> NDArray[float64]:
        """
        How far the best choice is ahead of the runner-up, in nats; 0 is a tie: float64 `[num_questions]`.
        """
    @property
    def near_tie(self, /) -> NDArray[bool_]:
        """
        Whether the margin is so small that rounding may have decided: bool `[num_questions]`.
        """
    @property
    def predicted(self, /) -> NDArray[int64]:
        """
        The choice of highest log-likelihood, the first of several equal ones: int64 `[num_questions]`.
        """
    @property
    def predicted_norm(self, /) -> NDArray[int64]:
        """
        The same after dividing by each choice's length in characters (lm-eval's `acc_norm`): int64 `[num_questions]`.
        """

@final
class PaddedBatch:
    """
    A rectangle of token ids and what to read from the model's answer. All arrays are int64 and writable.

    Attributes:
        input_ids: `[B, T]`, filled up on the right with 0.
        lengths: `[B]`, tokens in each row.
        readouts: `[R, 2]`, pairs (row, position) whose next-token distribution is wanted, in order.
        target_readouts: `[N]`, for each target its readout.
        target_tokens: `[N]`, the token whose probability is wanted.
        target_choices: `[N]`, the choice (over the whole run) it belongs to; the tokens of a choice are in order.
        stop: The row of the run after the batch's last.

    Example:
        >>> from wmdp_fast import Requests, plan
        >>> requests = Requests.from_tokens([[1, 2, 3], [1, 4]], [[[7], [8]], [[7], [8]]], max_length=2048)
        >>> [batch] = plan(requests)
        >>> batch.input_ids.tolist()
        [[1, 2, 3], [1, 4, 0]]
        >>> batch.readouts.tolist(), batch.target_tokens.tolist()
        ([[0, 2], [1, 1]], [7, 8, 7, 8])
    """
    @property
    def input_ids(self, /) -> NDArray[int64]: ...
    @property
    def lengths(self, /) -> NDArray[int64]: ...
    @property
    def readouts(self, /) -> NDArray[int64]: ...
    @property
    def stop(self, /) -> int: ...
    @property
    def target_choices(self, /) -> NDArray[int64]: ...
    @property
    def target_readouts(self, /) -> NDArray[int64]: ...
    @property
    def target_tokens(self, /) -> NDArray[int64]: ...

@final
class PromptTemplate:
    """
    How questions become prompts.

    Args:
        doc_to_text: `"mmlu"` (question, lettered choices, `Answer:`), `"question"` (`Question: ...`, `Answer:`), or a Jinja template
            over the question's columns, rendered as lm-eval renders it: here if it is plain (columns, items of lists, `strip`, one
            loop), else by jinja2 in a process of its own, whose time and memory are bounded.
        choices: `"letters"` if the model answers with a letter, `"texts"` if with a choice's own text.
        description: Text before everything else.
        target_delimiter: Stands between a question and its answer.
        fewshot_delimiter: Stands after each few-shot example.

    Raises:
        TemplateError: If `doc_to_text` is neither a built-in form nor a template that compiles, or has more than 2**20 bytes.
        ValueError: If `choices` is neither `"letters"` nor `"texts"`.

    Example:
        >>> from wmdp_fast import PromptTemplate, QuestionSet
        >>> questions = QuestionSet.from_rows([{"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0}])
        >>> print(PromptTemplate("mmlu").render(questions).context(0))
        Which bird hoots?
        A. owl
        B. hen
        Answer:
    """
    def __getnewargs_ex__(self, /) -> tuple[tuple[str], dict[str, str]]: ...
    def __new__(
        cls,
        /,
        doc_to_text: str = "mmlu",
        *,
        choices: str = "letters",
        description: str = "",
        target_delimiter: str = " ",
        fewshot_delimiter: str = "\n\n",
    ) -> PromptTemplate: ...
    def __repr__(self, /) -> str: ...
    def choice_texts(self, /, questions: QuestionSet) -> list[list[str]]:
        """
        What the model may answer to each question, without the delimiter.
        """
    @property
    def choices(self, /) -> str:
        """
        `"letters"` or `"texts"`.
        """
    @property
    def description(self, /) -> str:
        """
        Text before everything else.
        """
    @property
    def doc_to_text(self, /) -> str:
        """
        The built-in form's name or the Jinja source.
        """
    @property
    def fewshot_delimiter(self, /) -> str:
        """
        Stands after each few-shot example.
        """
    def question_texts(self, /, questions: QuestionSet) -> list[str]:
        """
        The text of each question by itself, without description and examples.

        Raises:
            TemplateError: If a question cannot be rendered; names file and row.
        """
    def render(
        self, /, questions: QuestionSet, fewshot: QuestionSet | None = None, num_fewshot: SupportsIndex = 0
    ) -> Prompts:
        """
        The prompts of all questions.

        Args:
            questions: The questions to ask.
            fewshot: Where examples come from; the first `num_fewshot` are taken (lm-eval's sampler `first_n`).
            num_fewshot: How many examples to put before each question.

        Raises:
            TemplateError: If a question cannot be rendered; names file and row.
            ValueError: If there are fewer examples than asked for.
        """
    @property
    def target_delimiter(self, /) -> str:
        """
        Stands between a question and its answer.
        """

@final
class Prompts:
    """
    The prompts of one task, in question order.

    A context and one of its continuations, joined, are what a model reads; the continuation is what it is scored on.
    Immutable; can be pickled and shared between threads.

    Example:
        >>> from wmdp_fast import Prompts
        >>> prompts = Prompts.from_contexts(["Which bird hoots? The"], [["owl", "hen"]], [0], delimiter=" ")
        >>> prompts.context(0) + prompts.continuation(0, 1)
        'Which bird hoots? The hen'
    """
    def __len__(self, /) -> int: ...
    def __reduce__(self, /) -> tuple[Any, tuple[bytes]]: ...
    @property
    def answers(self, /) -> list[int]:
        """
        Index of each question's right choice.
        """
    def choices(self, /, question: SupportsIndex) -> list[str]:
        """
        What the model may answer to a question, without the delimiter.
        """
    def context(self, /, question: SupportsIndex) -> str:
        """
        The whole context of a question.
        """
    def continuation(self, /, question: SupportsIndex, choice: SupportsIndex) -> str:
        """
        What follows a question's context if the model answers with a choice.
        """
    @property
    def delimiter(self, /) -> str:
        """
        Stands between a context and an answer.
        """
    @staticmethod
    def from_contexts(
        contexts: SupportsGetItem[int, str],
        choices: SupportsGetItem[int, SupportsGetItem[int, str]],
        answers: SupportsGetItem[int, SupportsIndex],
        *,
        delimiter: str = "",
        source: str = "<memory>",
    ) -> Prompts:
        """
        Prompts from texts made elsewhere, a chat template for instance.

        Args:
            contexts: The whole text before each answer.
            choices: What the model may answer to each question.
            answers: Index of each question's right choice.
            delimiter: Stands between a context and an answer.
            source: Where the questions come from, for error messages.

        Raises:
            ValueError: If the lists differ in length, a question has no choices, or an answer is not one of them.
        """
    @property
    def num_choices(self, /) -> int:
        """
        Number of choices of all questions together.
        """
    @property
    def prefix(self, /) -> str:
        """
        The text that every context begins with: description and few-shot examples.
        """
    @property
    def renderer(self, /) -> str:
        """
        What rendered the questions: `"rust"`, `"jinja2"`, or `"given"` if the contexts were.
        """
    def with_contexts(self, /, contexts: SupportsGetItem[int, str], *, delimiter: str = "") -> Prompts:
        """
        The same questions, choices and answers after other contexts, such as those of a chat template.

        Args:
            contexts: The whole text before each answer.
            delimiter: Stands between a context and an answer.

        Raises:
            ValueError: If there are not as many contexts as questions.
        """

@final
class Question:
    """
    One multiple-choice question. Immutable; questions are equal if all their columns are.

    Example:
        >>> from wmdp_fast import QuestionSet
        >>> [question] = QuestionSet.from_rows(
        ...     [{"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0, "level": "easy"}]
        ... )
        >>> question.choices[question.answer], question.extra
        ('owl', {'level': 'easy'})
    """
    def __eq__(self, other: object, /) -> bool: ...
    def __reduce__(self, /) -> tuple[Any, tuple[QuestionSet, int]]: ...
    def __repr__(self, /) -> str: ...
    @property
    def answer(self, /) -> int:
        """
        Index of the right choice, from 0.
        """
    @property
    def choices(self, /) -> list[str]:
        """
        The choices as they stand in the file; between 2 and 26.
        """
    @property
    def extra(self, /) -> dict[str, Any]:
        """
        The other columns by name.
        """
    @property
    def question(self, /) -> str:
        """
        The question as it stands in the file, white space included.
        """
    @property
    def subject(self, /) -> str | None:
        """
        The MMLU subject, or None if the file does not say.
        """

@final
class QuestionSet:
    """
    The questions of one file, in file order.

    A sequence of `Question`; immutable, can be pickled and shared between threads.

    Example:
        >>> from wmdp_fast import QuestionSet
        >>> questions = QuestionSet.from_rows([
        ...     {"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0},
        ...     {"question": "Which bird crows?", "choices": ["jay", "cock"], "answer": 1},
        ... ])
        >>> len(questions), questions[1].choices
        (2, ['jay', 'cock'])
        >>> questions.head(1) == questions.select([0])
        True
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __getitem__(self, index: SupportsIndex, /) -> Question: ...
    def __iter__(self, /) -> Iterator[Question]: ...
    def __len__(self, /) -> int: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __reduce__(self, /) -> tuple[Any, tuple[bytes]]: ...
    def __repr__(self, /) -> str: ...
    @property
    def columns(self, /) -> list[str]:
        """
        Column names in file order; a CSV file's choice columns count as one column `choices`.
        """
    @staticmethod
    def concat(sets: SupportsGetItem[int, QuestionSet]) -> QuestionSet:
        """
        The questions of several sets one after another: the shards of one split, for instance.

        Args:
            sets: At least one set. The result's `file` is the first one's, its `columns` are those of all.

        Raises:
            ValueError: If there is no set.
        """
    @property
    def content_hash(self, /) -> str:
        """
        SHA-256 of questions, choices and answers as 64 hexadecimal digits: the same for the same questions in any file format.

        Hashed are the bytes `wmdp-fast questions 1\\n`, then for each question: the question, the number of choices, each
        choice, the answer's index. A text is its length in bytes, then its bytes in UTF-8; numbers are 64 bits, little-endian.
        """
    @property
    def file(self, /) -> str:
        """
        Path of the file as it was given.
        """
    @property
    def foreign_columns(self, /) -> dict[str, str]:
        """
        Columns with values that JSON has no form for, each with what those are: binary data, `NaN`, dates. They are None in
        `Question.extra` (dates, times and decimals are Python's text for them), and a template that names such a column is refused.
        """
    @staticmethod
    def from_rows(rows: Iterable[Mapping[str, object]], file: str = "<memory>") -> QuestionSet:
        """
        Questions from rows in memory, checked as those of a JSON file are.

        Args:
            rows: Dicts with the keys `question`, `choices` and `answer`; `subject` and any others are optional.
            file: What error messages call the rows.

        Raises:
            DatasetError: If a row is not a question; names row and field.
        """
    def head(self, /, n: SupportsIndex) -> QuestionSet:
        """
        The first `n` questions, or all if there are fewer.
        """
    def permuted(self, /, orders: str) -> QuestionSet:
        """
        Each question in every order of its choices but the original one, question after question.

        Args:
            orders: `"cyclic"` puts each choice once in each place, in n - 1 other orders of n choices; `"all"` is for at most 4
                choices and gives all n! - 1 other orders.

        Raises:
            ValueError: If a question has too many choices for all their orders; names file and row.
        """
    def select(self, /, indices: SupportsGetItem[int, SupportsIndex]) -> QuestionSet:
        """
        The questions at these places, in this order.

        Args:
            indices: Places from 0; one may occur several times.

        Raises:
            ValueError: If there is no such question.
        """
    def shared_with(self, /, others: QuestionSet) -> list[int]:
        """
        Places of the questions that are among others too: the same but for white space around question and choices, with the choices
        in any order.
        """
    @property
    def subjects(self, /) -> list[str]:
        """
        The distinct subjects, sorted.
        """

@final
class ReadAhead:
    """
    Safetensors files being read into the page cache by threads that need no interpreter.

    A hint and never an error: whatever is wrong with a file is left to the code that loads it. Nothing is read where the files
    would take more than five sixths of the available memory. Dropping the object stops the threads without waiting for them.

    Args:
        files: The files, first come first read.
        last_layer: Of tensors with a number in their names, only those up to this one; None reads all.
    """
    def __new__(
        cls, /, files: SupportsGetItem[int, str | PathLike[str]], *, last_layer: SupportsIndex | None = None
    ) -> ReadAhead: ...
    @property
    def bytes_cached(self, /) -> int:
        """
        Bytes that the page cache held already.
        """
    @property
    def bytes_read(self, /) -> int:
        """
        Bytes read so far.
        """
    @property
    def bytes_total(self, /) -> int:
        """
        Bytes that are wanted; 0 until the files were opened.
        """
    def stop(self, /) -> None:
        """
        Has the threads stop after what they are reading at the moment.
        """
    def wait(self, /) -> None:
        """
        Waits until nothing more will be read.
        """
    @property
    def why_skipped(self, /) -> str | None:
        """
        Why nothing is read, or None.
        """

@final
class Requests:
    """
    The tokenized prompts of a run: the questions of all its tasks, one task after another.

    Choices are numbered over the whole run; those of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`.
    Immutable; can be pickled and shared between threads.

    Example:
        >>> from wmdp_fast import Requests
        >>> requests = Requests.from_tokens([[1, 2, 3]], [[[7], [8, 9]]], max_length=2048)
        >>> requests.num_choices, requests.context(0).tolist(), requests.continuation(1).tolist()
        (2, [1, 2, 3], [8, 9])
    """
    def __reduce__(self, /) -> tuple[Any, tuple[bytes]]: ...
    @property
    def choice_offsets(self, /) -> NDArray[int64]:
        """
        For each question its first choice, then the number of choices: int64 `[num_questions + 1]`.
        """
    @property
    def content_hash(self, /) -> str:
        """
        SHA-256 of what is asked, as 64 hexadecimal digits: the same for the same tokens, however they were made.

        Hashed are the bytes `wmdp-fast requests 1\\n` and `max_length`, then for each question the context's tokens, the number of
        choices, and each continuation's tokens. Tokens are their number, then 32 bits each; all other numbers are 64 bits,
        little-endian.
        """
    def context(self, /, question: SupportsIndex) -> NDArray[int64]:
        """
        Token ids of a question's context, before truncation: int64 `[length]`.
        """
    def continuation(self, /, choice: SupportsIndex) -> NDArray[int64]:
        """
        Token ids of a choice's continuation: int64 `[length]`. `choice` counts over the whole run.
        """
    @property
    def continuation_offsets(self, /) -> NDArray[int64]:
        """
        For each choice where its tokens begin among the continuation tokens of the run, then their number: int64 `[num_choices + 1]`.
        """
    @property
    def engine(self, /) -> str | None:
        """
        The crate that made the tokens: `"fastokens"` or `"tokenizers"`; None if they were given.
        """
    @property
    def first_joined(self, /) -> str | None:
        """
        File and row of the first question with such a choice, or None.
        """
    @staticmethod
    def from_tokens(
        contexts: SupportsGetItem[int, SupportsGetItem[int, SupportsIndex]],
        continuations: SupportsGetItem[int, SupportsGetItem[int, SupportsGetItem[int, SupportsIndex]]],
        max_length: SupportsIndex,
    ) -> Requests:
        """
        Requests that another program has tokenized.

        Args:
            contexts: Token ids of each question's context.
            continuations: For each question, the token ids of each choice's continuation.
            max_length: Maximum sequence length of the model; longer requests lose tokens on the left.

        Raises:
            ValueError: If a context or continuation is empty, or a continuation longer than `max_length`.
        """
    @property
    def joined_choices(self, /) -> int:
        """
        Choices whose first characters became one token with the end of their context. What is scored of them is the rest, as in lm-eval.
        """
    @property
    def max_length(self, /) -> int:
        """
        Maximum sequence length of the model.
        """
    @property
    def num_choices(self, /) -> int:
        """
        Number of choices of all questions together.
        """
    @property
    def num_questions(self, /) -> int:
        """
        Number of questions.
        """
    @property
    def num_rows(self, /) -> int:
        """
        Number of distinct model inputs: contexts with all but the last token of a continuation.
        """
    @property
    def num_tokens(self, /) -> int:
        """
        Tokens of all distinct model inputs, after truncation and without padding.
        """
    def padded_batch(
        self, /, start: SupportsIndex, token_budget: SupportsIndex, cuts: SupportsGetItem[int, SupportsIndex] = ...
    ) -> PaddedBatch | None:
        """
        The batch that begins at row `start`, or None past the last row.

        Rows are sorted by length, the longest first, so that the first batch is the one that needs the most memory.

        Args:
            start: Where to begin; 0, then the `stop` of the batch before.
            token_budget: Maximum tokens in the batch, padding included; one row is taken even if it is longer.
            cuts: Lengths at which batches are cut: none holds rows shorter than one of these beside rows at least as long.

        Raises:
            ValueError: If `token_budget` is 0.
        """
    def part(self, /, questions: SupportsGetItem[int, SupportsIndex]) -> Requests:
        """
        Some of the questions as a run of their own, with all their choices.

        Args:
            questions: Which; they are numbered from 0 in this order.

        Raises:
            ValueError: If there is no such question.
        """
    def token_beyond(self, /, num_tokens: SupportsIndex) -> tuple[int, int] | None:
        """
        The first question with a token id that is not below `num_tokens`, and that token; None if there is none.
        """
    def truncation(self, /) -> tuple[int, int, int, int]:
        """
        How much of the prompts the model cannot read, since they are longer than `max_length`; they lose it on the left.

        Returns:
            Four numbers: questions that lose tokens, choices that do, the most tokens that one loses, and the question that loses those
            (-1 if there is none).
        """
    @property
    def why_no_cuts(self, /) -> str | None:
        """
        Why contexts were tokenized whole, or None if their common beginnings were shared.
        """
    @property
    def why_not_fast(self, /) -> str | None:
        """
        Why it was not fastokens, or None if it was.
        """

@final
class Samples:
    """
    What was scored in one task, question by question, as a samples file has it. Arrays are read-only, questions in the order of
    `doc_ids`.
    """
    def __len__(self, /) -> int: ...
    def __repr__(self, /) -> str: ...
    @property
    def choice_offsets(self, /) -> NDArray[int64]:
        """
        Choices of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`: int64 `[num_questions + 1]`.
        """
    def continuations(self, /, question: SupportsIndex) -> list[str]:
        """
        What the model was scored on for each choice of a question, delimiter included.

        Raises:
            IndexError: If there is no such question.
        """
    def correct(self, /, metric: str) -> NDArray[bool_] | None:
        """
        Whether the choice that a metric picks is right: bool `[num_questions]`.

        Where the target names no single choice, it is what the file says; None if it says nothing.

        Raises:
            ValueError: If the metric is not `acc`, `acc_norm` or `acc_bytes`.
        """
    @property
    def delimiter(self, /) -> str:
        """
        Text between prompt and choice.
        """
    @property
    def doc_hashes(self, /) -> list[str]:
        """
        lm-eval's hash of each question's document; empty in files of lm-eval before 0.4.3.
        """
    @property
    def doc_ids(self, /) -> NDArray[int64]:
        """
        Number of each question in its dataset, rising: int64 `[num_questions]`.
        """
    @property
    def file(self, /) -> str:
        """
        Path of the file as it was given.
        """
    @staticmethod
    def from_outcome(questions: QuestionSet, prompts: Prompts, outcome: Outcome) -> Samples:
        """
        The samples of a task that was just scored, as `read_samples` would find them in the file that `write_samples` makes.

        Raises:
            ValueError: If questions, prompts and outcome are not as many.
        """
    @property
    def gold(self, /) -> NDArray[int64]:
        """
        The right choice, or -1 where the target names no single one: int64 `[num_questions]`.
        """
    @property
    def is_greedy(self, /) -> NDArray[bool_]:
        """
        Whether each token of a choice is the model's most likely one: bool `[num_choices]`.
        """
    @property
    def loglikelihood(self, /) -> NDArray[float64]:
        """
        Log-likelihood of each choice in nats: float64 `[num_choices]`.
        """
    @property
    def margin(self, /) -> NDArray[float64]:
        """
        How far the best choice is ahead of the runner-up, in nats; 0 is a tie: float64 `[num_questions]`.
        """
    def predicted(self, /, metric: str) -> NDArray[int64]:
        """
        The choice that a metric (`acc`, `acc_norm`, `acc_bytes`) picks, the first of several equal ones: int64 `[num_questions]`.

        `acc` takes the highest log-likelihood, `acc_norm` that after dividing by the choice's characters, `acc_bytes` by its bytes in
        UTF-8.

        Raises:
            ValueError: If the metric is another.
        """
    @property
    def prompt_hashes(self, /) -> list[str]:
        """
        lm-eval's hash of each prompt, few-shot examples included; empty in files of lm-eval before 0.4.3.
        """
    def recorded(self, /, metric: str) -> NDArray[float64] | None:
        """
        What the file itself says of a metric (`acc`, `acc_norm`, `acc_bytes`), or None if it says nothing: float64
        `[num_questions]`.

        Raises:
            ValueError: If the metric is another.
        """
    @property
    def target_hashes(self, /) -> list[str]:
        """
        lm-eval's hash of each answer; empty in files of lm-eval before 0.4.3.
        """

@final
class TokenLogprobs:
    """
    Looks up tokens in next-token distributions, without writing down those of the whole vocabulary.

    Logits are given some columns at a time, in order.

    Args:
        readouts: For each token, its row: int64 [N].
        tokens: Token ids: int64 [N].
        rows: Number of rows, R.

    Raises:
        ValueError: There is no such row.
    """
    def __new__(cls, /, readouts: NDArray[int64], tokens: NDArray[int64], rows: SupportsIndex) -> TokenLogprobs: ...
    def add(self, /, logits: NDArray[float32], *, threads: SupportsIndex = 1) -> None:
        """
        The next columns.

        Args:
            logits: float32 [R, columns].
            threads: Threads to use.

        Raises:
            ValueError: There is another number of rows.
        """
    def found(self, /) -> tuple[NDArray[float32], NDArray[bool_]]:
        """
        What the columns up to now say.

        Returns:
            Log-probability of each token, float32 [N], and whether its logit is the first of the largest in its row, bool [N].

        Raises:
            ValueError: A token is not among the columns.
        """

@final
class Tokenizer:
    """
    A tokenizer as a `tokenizer.json` describes it, under lm-eval's rules for special tokens.

    Two engines stand behind it: the crate `fastokens` where its tokens equal those of the crate `tokenizers` on prompts of the run at hand,
    else `tokenizers` itself. `Requests.engine` says which one it was. Immutable; can be pickled and shared between threads.

    Args:
        json: The text of a `tokenizer.json`; of a transformers tokenizer, `tokenizer.backend_tokenizer.to_str()`.
        add_special_tokens: Whether texts get the special tokens of the tokenizer's post-processor (BOS, mostly).
        prefix_token_id: Token in front of a continuation that has no context (lm-eval: BOS, else EOS).
        prefix_text: What that token decodes to; a text that begins with it gets no special tokens.

    Raises:
        TokenizerError: If the text is not a tokenizer that the crate `tokenizers` can load.

    Example:
        >>> from wmdp_fast import Tokenizer, demo
        >>> json = (demo.model_path() / "tokenizer.json").read_text(encoding="utf-8")
        >>> tokenizer = Tokenizer(json, add_special_tokens=False, prefix_token_id=0, prefix_text="")
        >>> len(tokenizer.encode("Which lantern is lit?")) > 0
        True
    """
    def __new__(
        cls, /, json: str, *, add_special_tokens: bool, prefix_token_id: SupportsIndex, prefix_text: str
    ) -> Tokenizer: ...
    def __reduce__(self, /) -> tuple[Any, tuple[str, bool, int, str]]: ...
    def encode(self, /, text: str) -> list[int]:
        """
        The tokens of a text, special tokens included where they are due; made by the crate `tokenizers`.
        """
    def encode_corpus(
        self,
        /,
        paths: SupportsGetItem[int, str | PathLike[str]],
        *,
        max_length: SupportsIndex,
        field: str = ...,
        raw_lines: bool = False,
        min_chars: SupportsIndex = 0,
        limit: SupportsIndex | None = None,
    ) -> EncodedCorpus:
        """
        Reads and tokenizes the documents of a corpus, in parallel and no more of them than are wanted.

        Each document gets the tokenizer's special tokens and loses tokens on the right if it is too long; the tokens are those of
        transformers with `truncation=True` and `truncation_side="right"`.

        Args:
            paths: The files, as `read_documents` takes them.
            max_length: Maximum tokens of a document, special tokens included.
            field: Key or column that holds the text.
            raw_lines: Whether each line as it stands is a document.
            min_chars: Only documents of more characters than this are kept.
            limit: Most documents to read; None reads all.

        Raises:
            DatasetError: A file holds something else than documents, or there are none; names file, row and field.
            OSError: A file cannot be opened or read.
            TokenizerError: A text cannot be tokenized.
            ValueError: `max_length` leaves no room for text, `limit` is 0, or the tokens take more than 4 GiB.
        """
    def encode_requests(self, /, tasks: SupportsGetItem[int, Prompts], max_length: SupportsIndex) -> Requests:
        """
        The prompts of a run as token ids, by lm-eval's `_encode_pair`.

        Args:
            tasks: The prompts of each task.
            max_length: Maximum sequence length of the model; longer requests lose tokens on the left.

        Raises:
            TokenizerError: If a context or a continuation has no tokens, or a continuation is longer than `max_length`; names
                file and row.
            ValueError: If `max_length` is 0.
        """
    @property
    def why_no_cuts(self, /) -> str | None:
        """
        Why no text of this tokenizer is tokenized in parts, or None if that is proven safe.
        """
    @property
    def why_not_fast(self, /) -> str | None:
        """
        Why fastokens cannot load this tokenizer, or None if it can.
        """

@final
class Trie:
    """
    The inputs of a run as a trie: their common beginnings held, and run, once.

    A *path* is an input that is not the beginning of another one; paths are sorted by their tokens.

    Args:
        requests: What is to be scored.
    """
    def __new__(cls, /, requests: Requests) -> Trie: ...
    def batches(
        self, /, token_budget: SupportsIndex, readout_budget: SupportsIndex, start: SupportsIndex = 0
    ) -> TrieBatches:
        """
        The batches that run the paths from `start` on, in order. Each must be run after the one before it.

        They are planned on another thread, two ahead of the one that is taken.

        Args:
            token_budget: Maximum tokens per batch.
            readout_budget: Most readouts in a batch; each is a row as wide as the vocabulary.
            start: 0, or the `stop` of a batch to go on after it.

        Raises:
            ValueError: If a budget is 0 or there is no path `start`.
        """
    def first_unfinished(self, /, finished: NDArray[bool_]) -> int:
        """
        The path to start at if some choices have their scores already: all that is unfinished is read on it or later.

        Args:
            finished: Whether a choice is finished: bool `[num_choices]`.

        Raises:
            ValueError: If `finished` has another length.
        """
    @property
    def num_paths(self, /) -> int:
        """
        Number of paths.
        """
    @property
    def num_tokens(self, /) -> int:
        """
        Tokens to run: no plan can run fewer.
        """

@final
class TrieBatch:
    """
    One row of tokens, the segments of a trie depth-first, and what to read from the model's answer.

    All arrays are int64 and writable. Keys are numbered with the carried tokens first, then the batch's own.

    Attributes:
        input_ids: `[T]`, token ids.
        position_ids: `[T]`, depth of each token in the trie.
        num_carried: Tokens whose keys and values the batch before has left: the path above the first token.
        segments: `[S, 4]`, for each segment, carried ones first: its first key, its last key + 1, its subtree's last key + 1, and
            the depth of its first token. Token q sees token k if and only if `k <= q < subtree end of k's segment`.
        keep: `[K, 2]`, runs of keys (first, last + 1) to leave to the next batch, the root first.
        readouts: `[R]`, tokens of the batch whose next-token distribution is wanted, in order.
        target_readouts: `[N]`, for each target its readout.
        target_tokens: `[N]`, the token whose probability is wanted.
        targets: `[N]`, the token's place among the continuation tokens of the run.
        stop: Number of paths that are done after the batch.
    """
    @property
    def input_ids(self, /) -> NDArray[int64]: ...
    @property
    def keep(self, /) -> NDArray[int64]: ...
    @property
    def num_carried(self, /) -> int: ...
    @property
    def position_ids(self, /) -> NDArray[int64]: ...
    @property
    def readouts(self, /) -> NDArray[int64]: ...
    @property
    def segments(self, /) -> NDArray[int64]: ...
    @property
    def stop(self, /) -> int: ...
    @property
    def target_readouts(self, /) -> NDArray[int64]: ...
    @property
    def target_tokens(self, /) -> NDArray[int64]: ...
    @property
    def targets(self, /) -> NDArray[int64]: ...

@final
class TrieBatches:
    """
    Iterator of the batches of a trie.
    """
    def __iter__(self, /) -> TrieBatches: ...
    def __next__(self, /) -> TrieBatch: ...

def _restore_prompts(state: SupportsGetItem[int, SupportsIndex]) -> Prompts:
    """
    What pickle calls to make `Prompts` again.
    """

def _restore_questions(state: SupportsGetItem[int, SupportsIndex]) -> QuestionSet:
    """
    What pickle calls to make a `QuestionSet` again.
    """

def _restore_requests(state: SupportsGetItem[int, SupportsIndex]) -> Requests:
    """
    What pickle calls to make `Requests` again.
    """

def _restore_tokenizer(
    json: str, add_special_tokens: bool, prefix_token_id: SupportsIndex, prefix_text: str
) -> Tokenizer:
    """
    What pickle calls to make a `Tokenizer` again.
    """

def against_chance(
    correct: SupportsIndex, num_choices: SupportsGetItem[int, SupportsIndex]
) -> tuple[float, float, float]:
    """
    How far a number of right answers is from guessing, which is right with 1/k for k choices.

    Args:
        correct: Number of right answers.
        num_choices: For each question its number of choices.

    Returns:
        The share that guessing gives; how many standard deviations of guessing the answers are above it; and the two-sided p-value of
        the exact binomial test (with the mean of 1/k, if questions differ).

    Raises:
        ValueError: If there is no question, one with fewer than two choices, or more are right than there are.
    """

def aggregate(
    prompts: Prompts,
    loglikelihood: NDArray[float64],
    is_greedy: NDArray[bool_],
    *,
    near_tie: SupportsFloat | SupportsIndex,
) -> Outcome:
    """
    Turns the log-likelihoods of a task's choices into predictions, accuracies and their standard errors.

    Args:
        prompts: The task's prompts.
        loglikelihood: Of each choice in nats, question after question: float64 `[num_choices]`.
        is_greedy: Whether each choice is what greedy decoding gives: bool `[num_choices]`.
        near_tie: Margin in nats up to which a prediction counts as a near-tie.

    Raises:
        ValueError: If the arrays do not fit the prompts, there is no question, or a log-likelihood is NaN or positive infinity;
            names file and row.

    Example:
        >>> import numpy as np
        >>> from wmdp_fast import Prompts, aggregate
        >>> prompts = Prompts.from_contexts(["Which hoots?", "Which crows?"], [["owl", "hen"], ["jay", "cock"]], [0, 1])
        >>> outcome = aggregate(prompts, np.array([-1.0, -3.0, -2.0, -2.5]), np.zeros(4, bool), near_tie=0.01)
        >>> outcome.acc, outcome.predicted.tolist()
        (0.5, [0, 0])
    """

def available_memory() -> int | None:
    """
    Bytes that this process can take without swapping and without reaching the limit of a control group.

    What the page cache holds counts as free, since it gives way.

    Returns:
        None where the system does not say.
    """

def calibration(
    loglikelihood: NDArray[float64],
    choice_offsets: NDArray[int64],
    gold: NDArray[int64],
    *,
    num_bins: SupportsIndex = 15,
) -> Calibration:
    """
    Calibration of the probabilities that softmax over a question's choices gives.

    Source: Naeini, Cooper and Hauskrecht 2015 (AAAI); Guo et al. 2017, arXiv:1706.04599; Brier 1950, as in lm-eval's `brier_score`.

    Args:
        loglikelihood: Of each choice in nats, question after question: float64 `[num_choices]`.
        choice_offsets: Choices of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`: int64 `[num_questions + 1]`.
        gold: The right choice: int64 `[num_questions]`.
        num_bins: Bins of equal width between 0 and 1.

    Raises:
        ValueError: If the arrays do not fit, there are no bins, or a question's log-likelihoods give no probabilities.
    """

def chi_square_uniform(counts: SupportsGetItem[int, SupportsIndex]) -> tuple[float, float]:
    """
    Pearson's chi-square test of counts against equal frequency: the statistic and its p-value.

    Raises:
        ValueError: If there are fewer than two kinds, or nothing was counted.
    """

def clustered_stderr(values: NDArray[float64], clusters: NDArray[int64]) -> float:
    """
    Standard error of a mean over values in clusters (questions by subject): `√(G/(G-1) · Σ_clusters (Σ (x - mean))²) / n`.

    Source: Liang and Zeger 1986, with the factor of Cameron and Miller 2015; for evaluations Miller 2024, arXiv:2411.00640.

    Args:
        values: float64 `[n]`.
        clusters: The number of each value's cluster: int64 `[n]`.

    Raises:
        ValueError: If the arrays differ in length, there are fewer than two clusters, or a value is not finite.
    """

def gate_in_place(
    opened: NDArray[float32],
    inner: NDArray[float32],
    *,
    scale: SupportsFloat | SupportsIndex,
    cubic: SupportsFloat | SupportsIndex,
    threads: SupportsIndex = 1,
) -> None:
    """
    What is between the products of a gated feed-forward block: `opened * sigmoid(scale * (opened + cubic * opened^3)) * inner`.

    Args:
        opened: The gate's product, float32 [N]; overwritten with the result.
        inner: What the gate lets through, float32 [N], contiguous.
        scale: 1 for `SiLU`, 2 sqrt(2 / pi) for GELU by the hyperbolic tangent.
        cubic: 0 for `SiLU`, 0.044715 for that GELU.
        threads: Threads to use.

    Raises:
        ValueError: Lengths differ, an array is not contiguous, or scale or cubic is out of range.
    """

def holm(p_values: SupportsGetItem[int, SupportsFloat | SupportsIndex]) -> list[float]:
    """
    p-values corrected for how many there are: the i-th smallest of m times m - i + 1, no smaller than those before it, at most 1.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2).

    Raises:
        ValueError: If one is not between 0 and 1.
    """

def mcnemar(right_to_wrong: SupportsIndex, wrong_to_right: SupportsIndex) -> float:
    """
    The p-value of the exact McNemar test between two runs over the same questions, from the numbers of questions that changed either
    way; 1 if none did.

    Source: McNemar 1947, Psychometrika 12(2); exact by the binomial distribution with chance 1/2.
    """

def num_threads() -> int:
    """
    Threads used for parallel work: `WMDP_FAST_NUM_THREADS`, else the number of cores, at most 8.

    Raises:
        ValueError: The variable is set to something else than a positive number.
    """

def order_effects(tasks: SupportsGetItem[int, OrderAnswers]) -> OrderEffects:
    """
    Sums up the answers to the questions of one or several tasks.

    Raises:
        ValueError: If there is no question.
    """

def packed_attention(
    query: NDArray[float32],
    keys: SupportsGetItem[int, tuple[NDArray[float32], NDArray[float32]]],
    segments: NDArray[int64],
    out: NDArray[float32],
    log_sum_exp: NDArray[float32],
    *,
    scale: SupportsFloat | SupportsIndex,
    window: SupportsIndex | None = None,
    softcap: SupportsFloat | SupportsIndex | None = None,
    threads: SupportsIndex = 1,
) -> None:
    """
    Attention of a packed batch's tokens to their ancestors and themselves, on the processor.

    Args:
        query: float32 [heads, T, size].
        keys: Keys, float32 [key heads, N, size], and values, float32 [key heads, N, value size], of a run of tokens after
            the other; the last run is the batch's own T tokens.
        segments: int64 [S, 4], as `TrieBatch.segments`; together they are all keys.
        out: float32 [T, heads, value size], written.
        log_sum_exp: float32 [T, heads], written: the log-sum-exps of the scores.
        scale: Factor of the scores.
        window: A token sees only keys less than so many positions before it.
        softcap: Scores s become `softcap * tanh(s / softcap)`.
        threads: Threads to use.

    Raises:
        ValueError: Shapes do not fit together.
    """

def packed_attention_gradient(
    query: NDArray[float32],
    key: NDArray[float32],
    value: NDArray[float32],
    segments: NDArray[int64],
    out: NDArray[float32],
    log_sum_exp: NDArray[float32],
    out_gradient: NDArray[float32],
    log_sum_exp_gradient: NDArray[float32],
    query_gradient: NDArray[float32],
    key_gradient: NDArray[float32],
    value_gradient: NDArray[float32],
    *,
    scale: SupportsFloat | SupportsIndex,
    window: SupportsIndex | None = None,
    softcap: SupportsFloat | SupportsIndex | None = None,
    threads: SupportsIndex = 1,
) -> None:
    """
    The gradient of `packed_attention`, for batches to which nothing was carried over.

    Args:
        query: As it was given: float32 [heads, T, size].
        key: float32 [key heads, T, size].
        value: float32 [key heads, T, value size].
        segments: int64 [S, 4].
        out: What `packed_attention` wrote: float32 [T, heads, value size].
        log_sum_exp: Likewise: float32 [T, heads].
        out_gradient: float32 [T, heads, value size].
        log_sum_exp_gradient: float32 [T, heads].
        query_gradient: float32 [key heads, T, heads / key heads * size], written.
        key_gradient: float32 [key heads, T, size], written.
        value_gradient: float32 [key heads, T, value size], written.
        scale: As it was given.
        window: As it was given.
        softcap: As it was given.
        threads: Threads to use.

    Raises:
        ValueError: Shapes do not fit together.
    """

def paired_interval(
    right_to_wrong: SupportsIndex,
    wrong_to_right: SupportsIndex,
    n: SupportsIndex,
    *,
    confidence: SupportsFloat | SupportsIndex = 0.95,
) -> tuple[float, float]:
    """
    Tango's score interval for how much the share of right answers changed between two runs over the same `n` questions.

    It has a width even where nothing changed. Where it would leave out 0 although the exact McNemar test does not reject, it is the
    one with a continuity correction of one question, so that interval and p-value do not contradict each other.

    Source: Tango 1998, Statistics in Medicine 17(8); the correction is that of Edwards 1948, Psychometrika 13(3).

    Args:
        right_to_wrong: How many questions only the first run got right.
        wrong_to_right: How many only the second one got right.
        n: Number of questions.
        confidence: Confidence level of the interval.

    Raises:
        ValueError: If more questions changed than there are, or `confidence` is not between 0 and 1.
    """

def pool(
    means: SupportsGetItem[int, SupportsFloat | SupportsIndex],
    stderrs: SupportsGetItem[int, SupportsFloat | SupportsIndex | None],
    sizes: SupportsGetItem[int, SupportsIndex],
    *,
    weight_by_size: bool = True,
) -> tuple[float, float | None]:
    """
    The mean of several tasks and its standard error, by lm-eval's formulas for groups.

    Args:
        means: Of each task.
        stderrs: Their standard errors; None where there is none.
        sizes: Number of questions of each task.
        weight_by_size: Whether the mean is that over all questions, with a standard error from the pooled variance within the
            tasks (what they differ by does not enter); else each task counts the same.

    Returns:
        The mean, and its standard error unless a task has none.

    Raises:
        ValueError: If the lists differ in length or are empty, or a task has no question.
    """

def probabilities(loglikelihood: NDArray[float64], choice_offsets: NDArray[int64]) -> NDArray[float64]:
    """
    The probability of each choice among its question's: softmax of the log-likelihoods. float64 `[num_choices]`.

    Args:
        loglikelihood: Of each choice in nats, question after question: float64 `[num_choices]`.
        choice_offsets: Choices of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`: int64 `[num_questions + 1]`.

    Raises:
        ValueError: If the offsets do not fit, or a question's log-likelihoods give no probabilities; names the question.
    """

def read_documents(
    paths: SupportsGetItem[int, str | PathLike[str]],
    *,
    field: str = ...,
    raw_lines: bool = False,
    min_chars: SupportsIndex = 0,
    keep_empty: bool = False,
    limit: SupportsIndex | None = None,
) -> list[str]:
    """
    Reads the documents of a corpus.

    The extension says the format; `.gz` or `.zst` may stand behind it.

    - `.jsonl`: on a line a JSON object with the text under `field`, or a JSON string, which is the text. Blank lines are passed over.
    - `.parquet`: the column `field`; no other is read.
    - `.txt`: the file is one document.

    Text is UTF-8; a byte-order mark at the beginning is passed over. Nothing is read behind the last document that is wanted.

    Args:
        paths: The files, in order.
        field: Key or column that holds the text.
        raw_lines: Whether each line of a `.jsonl` or `.txt` file as it stands is a document: blank ones too, JSON not parsed, line
            ends included (as `\\n`, whatever they are in the file), as Python's text files give them.
        min_chars: Only documents of more characters than this are kept.
        keep_empty: Whether documents without a single character are kept all the same.
        limit: Most documents to read; None reads all.

    Raises:
        DatasetError: A file holds something else than documents, or there are none; names file, row and field.
        OSError: A file cannot be opened or read.
        ValueError: `limit` is 0, there are no files, or the texts take more than 4 GiB.
    """

def read_many(paths: SupportsGetItem[int, str | PathLike[str]]) -> list[QuestionSet]:
    """
    Reads many files in parallel.

    Args:
        paths: The files.

    Returns:
        One set for each file, in the same order.

    Raises:
        DatasetError: A file holds something else than questions; if several do, the first of them is named.
        OSError: A file cannot be opened or read.
    """

def read_questions(path: str | PathLike[str]) -> QuestionSet:
    """
    Reads the questions of one file.

    The extension says the format; `.gz` or `.zst` may stand behind it.

    - `.parquet`: the columns `question` (text), `choices` (list of texts) and `answer` (integer or text).
    - `.jsonl`: one object with these keys on a line. `.json`: an array of such objects, or an object that has it as `data`.
    - `.csv`: with a header that names `question`, `answer`, and the choices `choice0`, `choice1`, ... or `A`, `B`, ... or
      `choices` (a JSON list); or MMLU's original form without header: question, choices, answer.

    The column `subject` is optional; others become `Question.extra`. An integer answer is an index from 0. Answers that are text
    are all letters, all indices or all texts of choices: whichever makes sense of the whole file. If more than one does and they
    disagree, that is an error. Text is UTF-8, with or without byte-order mark.

    Args:
        path: The file.

    Raises:
        DatasetError: The file holds something else than questions; names file, row and field.
        OSError: The file cannot be opened or read; `FileNotFoundError` and others as Python raises them.

    Example:
        >>> from wmdp_fast import demo, load_questions
        >>> questions = load_questions(demo.questions_path("forget"))
        >>> [len(question.choices) for question in questions.head(3)]
        [4, 4, 4]
    """

def read_samples(path: str | PathLike[str], *, delimiter: str | None = None) -> Samples:
    """
    Reads the samples file of a multiple-choice task, written by this package or by lm-eval (0.4.0 and later). Prompts are not kept.

    Args:
        path: The file, `samples_{task}_{time}.jsonl`.
        delimiter: Text between a prompt and its answer (lm-eval's `target_delimiter`), which does not count for `acc_norm`. None takes
            a space if every continuation begins with one, else nothing.

    Raises:
        OSError: If the file cannot be read; names it.
        DatasetError: For what is not a scored multiple-choice question, or one that occurs twice; names file, row and field.
    """

def rms_norm(
    rows: NDArray[float32],
    weight: NDArray[float32],
    out: NDArray[float32],
    *,
    epsilon: SupportsFloat | SupportsIndex,
    threads: SupportsIndex = 1,
) -> None:
    """
    Root-mean-square norms of rows: `x / sqrt(mean(x^2) + epsilon) * weight`.

    Args:
        rows: float32 [N, d].
        weight: float32 [d].
        out: float32 [N, d], written.
        epsilon: Added to the mean of the squares.
        threads: Threads to use.

    Raises:
        ValueError: Shapes do not fit together.
    """

def rotate(
    rows: NDArray[float32],
    cosines: NDArray[float32],
    sines: NDArray[float32],
    out: NDArray[float32],
    *,
    threads: SupportsIndex = 1,
) -> None:
    """
    Rotary position embedding: turns each pair of numbers that lie half a row apart by its token's angle.

    Args:
        rows: Queries or keys, float32 [heads, T, size].
        cosines: float32 [T, size].
        sines: float32 [T, size].
        out: float32 [T, heads, size], written.
        threads: Threads to use.

    Raises:
        ValueError: Shapes do not fit together.
    """

def rotate_bfloat16(
    rows: NDArray[uint16],
    cosines: NDArray[uint16],
    sines: NDArray[uint16],
    out: NDArray[uint16],
    *,
    threads: SupportsIndex = 1,
) -> None:
    """
    The same of bfloat16, rounded after each operation.

    Args:
        rows: Queries or keys, bfloat16 [heads, T, size], as uint16.
        cosines: bfloat16 [T, size], as uint16.
        sines: bfloat16 [T, size], as uint16.
        out: bfloat16 [T, heads, size], as uint16, written.
        threads: Threads to use.

    Raises:
        ValueError: Shapes do not fit together.
    """

def wilson(
    successes: SupportsIndex, n: SupportsIndex, *, confidence: SupportsFloat | SupportsIndex = 0.95
) -> tuple[float, float]:
    """
    Wilson's score interval for a share: `(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`.

    Source: Wilson 1927, JASA 22(158).

    Args:
        successes: How many there are.
        n: Of how many.
        confidence: Confidence level of the interval.

    Raises:
        ValueError: If that is no share, or `confidence` is not between 0 and 1.
    """

def write_samples(
    path: str | PathLike[str],
    questions: QuestionSet,
    prompts: Prompts,
    outcome: Outcome,
    metrics: SupportsGetItem[int, str],
    orders: OrderAnswers | None = None,
) -> str:
    """
    Writes lm-eval's samples file of a task, one line a question. The file appears whole or not at all.

    Each line has one key more than lm-eval's, `wmdp_fast`: the predicted choice by either metric, the margin to the runner-up,
    whether that is a near-tie, and what the model answered in other orders of the choices if it was asked.

    Args:
        path: The file to write.
        questions: The questions asked.
        prompts: What the model read.
        outcome: What `aggregate` made of the scores.
        metrics: Names of the metrics to write, in lm-eval's order: `acc`, `acc_norm`.
        orders: The answers in other orders of the choices.

    Returns:
        lm-eval's hash over the task's documents, prompts and answers.

    Raises:
        OSError: If the file cannot be written; names it.
        ValueError: If questions, prompts and outcome are not as many, or a metric is unknown.
    """
