"""Perplexities of texts: lm-eval's metrics of `loglikelihood_rolling`, one more for each token, and their errors.

With the log-likelihood l_i of document i and its size w_i in words, bytes or tokens, a perplexity is
exp(-sum(l_i) / sum(w_i)). Words are what white space separates and bytes are those of UTF-8, both of the document as it
stands, as in lm-eval. Tokens are those that the model predicts: all of the tokenizer's, special ones included.

lm-eval gives these metrics no standard error. Words of one document are not independent, documents nearly are, so the
error here is that of a ratio of sums over documents (delta method), and intervals are Student's on the logarithm.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast.exceptions import DatasetError
from wmdp_fast.results import by_document
from wmdp_fast.results.student import p_value, quantile
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from wmdp_fast.prompts.texts import Text, TextRequests

# Metrics with what they are by; lm-eval has the first three.
METRICS = {
    "word_perplexity": "words",
    "byte_perplexity": "bytes",
    "bits_per_byte": "bytes",
    "token_perplexity": "tokens",
}

# What lm-eval writes where a number is not defined.
_NOT_AVAILABLE = "N/A"


@dataclass(frozen=True, kw_only=True)
class Documents:
    """What a model makes of the documents of a text.

    Attributes:
        loglikelihood: Of each whole document, in nats: float64 `[documents]`.
        words: Its words: int64 `[documents]`.
        bytes: Its bytes: int64 `[documents]`.
        tokens: Its tokens: int64 `[documents]`.
        hashes: SHA-256 of its text, in hexadecimal digits.
    """

    loglikelihood: npt.NDArray[np.float64]
    words: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    hashes: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.loglikelihood)

    def value(self, metric: str) -> float:
        """A metric over all documents; infinite if it is too large for a number."""
        return _scaled(metric, self._rate(metric))

    def stderr(self, metric: str) -> float | None:
        """The standard error of a metric, documents taken as independent; None of a single document."""
        error = self._rate_error(metric)
        if error is None:
            return None
        return error / math.log(2) if metric == "bits_per_byte" else self.value(metric) * error

    def interval(self, metric: str, confidence: float = 0.95) -> tuple[float, float] | None:
        """An interval for a metric, Student's over documents; None of a single document."""
        error = self._rate_error(metric)
        if error is None:
            return None
        half = quantile(confidence, len(self) - 1) * error
        rate = self._rate(metric)
        return _scaled(metric, rate - half), _scaled(metric, rate + half)

    def _sizes(self, metric: str) -> npt.NDArray[np.int64]:
        sizes: npt.NDArray[np.int64] = getattr(self, METRICS[metric])
        return sizes

    def _rate(self, metric: str) -> float:
        """Nats for each unit of size."""
        return -math.fsum(self.loglikelihood) / int(self._sizes(metric).sum())

    def _influence(self, metric: str) -> npt.NDArray[np.float64]:
        """By how much each document moves the rate, to first order; they add up to 0."""
        return by_document.influence(-self.loglikelihood, self._sizes(metric), self._rate(metric))

    def _rate_error(self, metric: str) -> float | None:
        return None if len(self) < 2 else by_document.error(self._influence(metric))


def read_documents_samples(path: Path) -> Documents:
    """Reads the samples file of a text, this package's or that of lm-eval for a task of `loglikelihood_rolling`.

    Tokens are 0 in a file of lm-eval, which does not count them.

    Raises:
        DatasetError: It is not a samples file; names file, line and field.
        OSError: It cannot be read.
    """
    lines: list[tuple[float, int, int, int, str]] = []
    row = 1
    try:
        # Not by splitlines, which also splits at characters that JSON leaves as they are.
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.strip():
                lines.append(_document_of(json.loads(line)))
                row += 1
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise DatasetError(str(path), f"is no samples file of a text ({error!r})", row) from error
    if not lines:
        raise DatasetError(str(path), "holds no documents")
    loglikelihood, words, sizes, tokens, hashes = zip(*lines, strict=True)
    return Documents(
        loglikelihood=np.array(loglikelihood, dtype=np.float64),
        words=np.array(words, dtype=np.int64),
        bytes=np.array(sizes, dtype=np.int64),
        tokens=np.array(tokens, dtype=np.int64),
        hashes=tuple(hashes),
    )


def _document_of(line: Any) -> tuple[float, int, int, int, str]:
    """Log-likelihood, words, bytes, tokens and hash of a document from its line.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, IndexError: It is not one.
    """
    value, words = line["word_perplexity"]
    _, size = line["byte_perplexity"]
    tokens = (line.get("wmdp_fast") or {}).get("tokens", 0)
    if not (isinstance(value, (int, float)) and math.isfinite(value)):
        raise ValueError("word_perplexity begins with no finite log-likelihood")
    for count in (words, size, tokens):
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < 2**53:
            raise ValueError(f"{count!r} is no number of words, bytes or tokens")
    # lm-eval hashes the document's text as the target of an empty prompt.
    if not isinstance(line["target_hash"], str):
        raise ValueError("target_hash is no text")  # noqa: TRY004 - all faults of a line are told alike
    return float(value), words, size, tokens, line["target_hash"]


@dataclass(frozen=True)
class Change:
    """How a metric differs between two models that read the same documents.

    Attributes:
        low: Lower end of the interval of the difference.
        high: Its upper end.
        p: Of the test that the metric is the same, by Student's t over documents.
    """

    low: float
    high: float
    p: float


def change(before: Documents, after: Documents, metric: str, confidence: float = 0.95) -> Change | None:
    """Compares two models document by document; None with fewer than two documents.

    The difference of the metrics to first order is a sum over documents, whose spread gives the interval. The test is
    of the logarithms of the perplexities, so that it is the same for words and for bits.

    Args:
        before: Of the model before.
        after: Of the other model, in the same order.
        metric: One of `METRICS`.
        confidence: Confidence level of the interval.

    Raises:
        ValueError: They are not of the same documents.
    """
    if before.hashes != after.hashes:
        raise ValueError("the documents differ")
    if len(before) < 2:
        return None
    moved = [one._influence(metric) * _slope(metric, one) for one in (before, after)]
    difference = after.value(metric) - before.value(metric)
    half = quantile(confidence, len(before) - 1) * by_document.error(moved[1] - moved[0])
    rates = after._rate(metric) - before._rate(metric)
    error = by_document.error(after._influence(metric) - before._influence(metric))
    p = (1.0 if rates == 0 else 0.0) if error == 0 else p_value(rates / error, len(before) - 1)
    return Change(difference - half, difference + half, p)


def _slope(metric: str, documents: Documents) -> float:
    """How fast a metric changes with its rate."""
    return 1 / math.log(2) if metric == "bits_per_byte" else documents.value(metric)


def _scaled(metric: str, rate: float) -> float:
    if metric == "bits_per_byte":
        return rate / math.log(2)
    try:
        return math.exp(rate)
    except OverflowError:
        return math.inf


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """The perplexities of one text, and what each of its documents got.

    Attributes:
        text: What was read.
        documents: What the model made of each document.
        windows: For each document the number of windows that it was read in: int64 `[documents]`.
        max_length: Maximum tokens of a window.
    """

    text: Text
    documents: Documents = field(repr=False)
    windows: npt.NDArray[np.int64] = field(repr=False)
    max_length: int

    @classmethod
    def from_scores(
        cls,
        text: Text,
        loglikelihood: npt.NDArray[np.float64],
        tokens: npt.NDArray[np.int64],
        windows: npt.NDArray[np.int64],
        max_length: int,
    ) -> TextResult:
        """Counts words and bytes; the arrays are by document."""
        encoded = [document.encode() for document in text.documents]
        documents = Documents(
            loglikelihood=loglikelihood,
            words=np.array([len(re.split(r"\s+", document)) for document in text.documents], dtype=np.int64),
            bytes=np.array(list(map(len, encoded)), dtype=np.int64),
            tokens=tokens,
            hashes=tuple(hashlib.sha256(one).hexdigest() for one in encoded),
        )
        return cls(text=text, documents=documents, windows=windows, max_length=max_length)

    def __getitem__(self, metric: str) -> float | None:
        """A metric or its standard error; lm-eval's longer names (`word_perplexity,none`) work too."""
        key = metric.removesuffix(",none")
        if key in METRICS:
            return self.metrics[key]
        if key.removesuffix("_stderr") in METRICS:
            return self.stderr[key.removesuffix("_stderr")]
        raise KeyError(f"{self.name} has no metric {metric!r}; it has {', '.join(METRICS)}")

    @property
    def name(self) -> str:
        """The text's name."""
        return self.text.name

    @property
    def alias(self) -> str:
        """The name shown in tables."""
        return self.text.name

    @property
    def sample_len(self) -> int:
        """Number of documents."""
        return len(self.documents)

    @property
    def num_fewshot(self) -> None:
        """A text has no examples before it."""
        return

    @property
    def metrics(self) -> dict[str, float]:
        """The perplexities, and bits for each byte; all are better if lower."""
        return {metric: self.documents.value(metric) for metric in METRICS}

    @property
    def stderr(self) -> dict[str, float | None]:
        """Their standard errors, documents taken as independent; None of a single document."""
        return {metric: self.documents.stderr(metric) for metric in METRICS}

    @property
    def remark(self) -> str:
        """What the numbers are of, in a sentence."""
        found = self.documents
        sizes = ", ".join(f"{int(getattr(found, name).sum())} {name}" for name in ("words", "bytes", "tokens"))
        error = "; one document: no standard error" if len(found) == 1 else "; errors are over documents"
        count = "1 document" if len(found) == 1 else f"{len(found)} documents"
        return f"{self.name}: {count} of {sizes}, in windows of {self.max_length} tokens{error}"

    def lm_eval_entry(self) -> dict[str, Any]:
        """The entry of lm-eval's `results`; what no number of JSON can hold is `N/A`."""
        entry: dict[str, Any] = {"name": self.name, "alias": self.alias, "sample_len": self.sample_len}
        for metric, value in self.metrics.items():
            entry[f"{metric},none"] = _number(value)
            entry[f"{metric}_stderr,none"] = _number(self.stderr[metric])
        return entry

    def lm_eval_config(self) -> dict[str, Any]:
        """The text as a task of lm-eval, under `configs`."""
        return {
            "task": self.name,
            "dataset_path": ", ".join(self.text.files) or "in memory",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "num_fewshot": 0,
            "metric_list": [{"metric": metric, "higher_is_better": False} for metric in METRICS],
            "output_type": "loglikelihood_rolling",
            "metadata": {"version": 1.0},
        }

    def details(self) -> dict[str, Any]:
        """What lm-eval does not record."""
        found = self.documents
        return {
            "files": list(self.text.files),
            "content_hash": self.text.content_hash,
            "documents": len(found),
            **{name: int(getattr(found, name).sum()) for name in ("words", "bytes", "tokens")},
            "windows": int(self.windows.sum()),
            "max_length": self.max_length,
            "loglikelihood": math.fsum(found.loglikelihood),
            "intervals_95": {
                metric: None if (ends := found.interval(metric)) is None else [_number(end) for end in ends]
                for metric in METRICS
            },
        }

    def write_samples(self, path: Path) -> str:
        """Writes a line for each document, as lm-eval does for such a task; returns lm-eval's hash over them.

        Beyond that, the key `wmdp_fast` has the document's tokens, windows and perplexity by token.

        Raises:
            OSError: The file cannot be written; names it.
        """
        lines = list(self._lines())
        write_whole(path, "".join(strict_json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        hashes = "".join(line[f"{name}_hash"] for line in lines for name in ("doc", "prompt", "target"))
        return _sha256(hashes)

    def _lines(self) -> Iterator[dict[str, Any]]:
        found = self.documents
        for index, document in enumerate(self.text.documents):
            value = float(found.loglikelihood[index])
            words, size, tokens = (int(sizes[index]) for sizes in (found.words, found.bytes, found.tokens))
            yield {
                "doc_id": index,
                "doc": {"text": document},
                "target": document,
                "arguments": {"gen_args_0": {"arg_0": document}},
                "resps": [[value]],
                "filtered_resps": [value],
                "filter": "none",
                "metrics": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
                "doc_hash": _sha256(json.dumps({"text": document}, indent=2, ensure_ascii=False)),
                "prompt_hash": _sha256(document),
                "target_hash": _sha256(document),
                "word_perplexity": [value, words],
                "byte_perplexity": [value, size],
                "bits_per_byte": [value, size],
                "wmdp_fast": {
                    "tokens": tokens,
                    "windows": int(self.windows[index]),
                    "token_perplexity": _number(_scaled("token_perplexity", -value / tokens)) if tokens else None,
                },
            }


def text_results(asked: TextRequests, loglikelihood: npt.NDArray[np.float64]) -> dict[str, TextResult]:
    """Results by text; a document's log-likelihood is the sum over its windows.

    Args:
        asked: What was read.
        loglikelihood: Of each window, in nats: float64 `[windows]`.
    """
    tokens = np.array(asked.windows.tokens, dtype=np.int64)
    windows = np.bincount(asked.windows.documents, minlength=len(tokens)).astype(np.int64)
    sums = np.zeros(len(tokens))
    np.add.at(sums, asked.windows.documents, loglikelihood)
    ends = accumulate((len(text.documents) for text in asked.texts), initial=0)
    return {
        text.name: TextResult.from_scores(
            text, sums[slice(*of)], tokens[slice(*of)], windows[slice(*of)], asked.requests.max_length
        )
        for text, of in zip(asked.texts, pairwise(ends), strict=True)
    }


def _number(value: float | None) -> float | str:
    return value if value is not None and math.isfinite(value) else _NOT_AVAILABLE


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
