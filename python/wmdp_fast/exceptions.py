"""Every exception of the package that Python has no built-in for, and how those of others are told.

All derive from `WmdpFastError`. Those caused by an argument or a file also derive from `ValueError`, so that code which
knows nothing of this package still catches them.
"""

from __future__ import annotations


class WmdpFastError(Exception):
    """Root of the package's exceptions.

    Example:
        >>> from wmdp_fast import WmdpFastError, evaluate
        >>> try:
        ...     evaluate("any/model", tasks="wmpd")
        ... except WmdpFastError as error:
        ...     print(type(error).__name__)
        TaskError
    """


class DatasetError(WmdpFastError, ValueError):
    """A question or corpus file holds something that cannot be read as such.

    Attributes:
        file: Path of the file as it was given.
        problem: What is wrong and what to do.
        row: 1-based number of the record, or None if the fault lies in the file as a whole.
        field: Name of the column or key, or None.

    Example:
        >>> from wmdp_fast import DatasetError, QuestionSet
        >>> row = {"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 2}
        >>> try:
        ...     QuestionSet.from_rows([row], file="birds")
        ... except DatasetError as error:
        ...     print(error.file, error.row, error.field)
        birds 1 answer
    """

    def __init__(self, file: str, problem: str, row: int | None = None, field: str | None = None) -> None:
        super().__init__(file, problem, row, field)
        self.file = file
        self.problem = problem
        self.row = row
        self.field = field

    def __str__(self) -> str:
        where = self.file
        if self.row is not None:
            where += f", row {self.row}"
        if self.field is not None:
            where += f", field `{self.field}`"
        return f"{where}: {self.problem}"


class DataUnavailableError(WmdpFastError):
    """A dataset is gated, offline or missing; the message says what to do.

    Example:
        >>> from wmdp_fast import DataUnavailableError, demo, evaluate
        >>> try:
        ...     evaluate(demo.model_path(), tasks="wmdp_bio", data=".")  # where it is not
        ... except DataUnavailableError as error:
        ...     print("wmdp" in str(error))
        True
    """


class TemplateError(WmdpFastError, ValueError):
    """A prompt template does not compile, or fails on a question.

    Example:
        >>> from wmdp_fast import PromptTemplate, TemplateError
        >>> try:
        ...     PromptTemplate("{{ question")
        ... except TemplateError as error:
        ...     print(type(error).__name__)
        TemplateError
    """


class TokenizerError(WmdpFastError, ValueError):
    """A tokenizer cannot be loaded, or fails on a text.

    Example:
        >>> from wmdp_fast import Tokenizer, TokenizerError
        >>> try:
        ...     Tokenizer("{}", add_special_tokens=False, prefix_token_id=0, prefix_text="")
        ... except TokenizerError as error:
        ...     print(type(error).__name__)
        TokenizerError
    """


class ModelError(WmdpFastError):
    """A model cannot be loaded, or cannot be scored with; the message says what to do.

    Example:
        >>> from wmdp_fast import ModelError, demo, evaluate
        >>> try:
        ...     evaluate(demo.data_path(), tasks=demo.questions_path("forget"), progress=False)
        ... except ModelError as error:
        ...     print(str(demo.data_path()) in str(error))
        True
    """


class DivergedError(WmdpFastError):
    """Unlearning has made numbers that are infinite or NaN; the message says what to lower.

    Attributes:
        step: The step at which they were found, from 1.

    Example:
        >>> from wmdp_fast import DivergedError
        >>> error = DivergedError("the forget loss is NaN: lower the learning rate", step=3)
        >>> error.step, str(error)
        (3, 'the forget loss is NaN: lower the learning rate')
    """

    def __init__(self, problem: str, step: int) -> None:
        super().__init__(problem, step)
        self.problem = problem
        self.step = step

    def __str__(self) -> str:
        return self.problem


class TaskError(WmdpFastError, ValueError):
    """A task name is unknown, or a task refuses an option.

    Example:
        >>> from wmdp_fast import TaskError, evaluate
        >>> try:
        ...     evaluate("any/model", tasks="wmpd")
        ... except TaskError as error:
        ...     print("wmpd" in str(error))
        True
    """


class JournalError(WmdpFastError):
    """What an unfinished run has left cannot be resumed; the message says why and what to do.

    Example:
        >>> from wmdp_fast import JournalError, WmdpFastError
        >>> issubclass(JournalError, WmdpFastError)
        True
    """


class InternalError(WmdpFastError):
    """A fault of this package, never of the input. Please report it.

    Example:
        >>> from wmdp_fast import InternalError, WmdpFastError
        >>> issubclass(InternalError, WmdpFastError)
        True
    """


class WmdpFastWarning(UserWarning):
    """Something the user should know that does not stop the run: an ignored option, a fallback that was taken.

    Example:
        >>> import warnings
        >>> from wmdp_fast import WmdpFastWarning
        >>> warnings.simplefilter("error", WmdpFastWarning)  # stops at whatever would have been warned of
    """


def what_was_raised(error: Exception) -> str:
    """An error of others' code in at most a line."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"it raised {type(error).__name__}: {line if len(line) <= 200 else f'{line[:197]}...'}"
