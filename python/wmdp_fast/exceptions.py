"""Every exception of the package that Python has no built-in for.

All derive from `WmdpFastError`. Those caused by an argument or a file also derive from `ValueError`, so that code which
knows nothing of this package still catches them.
"""

from __future__ import annotations


class WmdpFastError(Exception):
    """Root of the package's exceptions."""


class DatasetError(WmdpFastError, ValueError):
    """A question or corpus file holds something that cannot be read as such.

    Attributes:
        file: Path of the file as it was given.
        problem: What is wrong and what to do.
        row: 1-based number of the record, or None if the fault lies in the file as a whole.
        field: Name of the column or key, or None.
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
    """A dataset is gated, offline or missing; the message says what to do."""


class TemplateError(WmdpFastError, ValueError):
    """A prompt template does not compile, or fails on a question."""


class TokenizerError(WmdpFastError, ValueError):
    """A tokenizer cannot be loaded, or fails on a text."""


class ModelError(WmdpFastError):
    """A model cannot be loaded, or cannot be scored with; the message says what to do."""


class DivergedError(WmdpFastError):
    """Unlearning has made numbers that are infinite or NaN; the message says what to lower.

    Attributes:
        step: The step at which they were found, from 1.
    """

    def __init__(self, problem: str, step: int) -> None:
        super().__init__(problem, step)
        self.problem = problem
        self.step = step

    def __str__(self) -> str:
        return self.problem


class TaskError(WmdpFastError, ValueError):
    """A task name is unknown, or a task refuses an option."""


class JournalError(WmdpFastError):
    """What an unfinished run has left cannot be resumed; the message says why and what to do."""


class InternalError(WmdpFastError):
    """A fault of this package, never of the input. Please report it."""


class WmdpFastWarning(UserWarning):
    """Something the user should know that does not stop the run: an ignored option, a fallback that was taken."""
