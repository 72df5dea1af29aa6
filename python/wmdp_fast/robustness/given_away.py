"""Whether a text that attacks train on gives away what is reported: a model then learns it anew, forgotten or not."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from wmdp_fast._rust import read_documents
from wmdp_fast.data.corpora import find_corpus
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.robustness.split import normalized
from wmdp_fast.robustness.subject import DOCUMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

    from wmdp_fast.prompts.documents import Corpus
    from wmdp_fast.robustness.questions import Questions
    from wmdp_fast.robustness.subject import CorpusName

# A question of fewer words may stand in any text.
_FIRST_WORDS = 6


def given_away(
    questions: Questions, corpora: Mapping[CorpusName, Corpus], data: str | PathLike[str] | None
) -> list[str]:
    """A sentence for each text that has reported questions with their answers in it; usually none.

    A question counts if a document has its words in their order, and those of its right answer after them. Case and
    punctuation do not matter. Rewordings are not found, nor is anything in a text that was given as tokens.

    Args:
        questions: Those of the attack.
        corpora: The texts by what they are.
        data: Folder with corpora by name, in place of the hub.

    Raises:
        DataUnavailableError, DatasetError: A text is missing or faulty.
    """
    every = [one for read in questions.read for one in read.questions]
    reported = [one for one, chosen in zip(every, questions.is_for_choosing, strict=True) if not chosen]
    # Questions by their first words, so that a document is walked through once for all of them.
    asked: dict[tuple[str, ...], list[_Asked]] = defaultdict(list)
    for number, one in enumerate(reported):
        words = _words(one.question)
        if len(words) >= _FIRST_WORDS:
            asked[tuple(words[:_FIRST_WORDS])].append(_Asked(number, words, _words(one.choices[one.answer])))
    found = []
    for name, corpus in corpora.items():
        if isinstance(corpus, CorpusTokens):
            continue
        _, files, _ = find_corpus(corpus, data=data)
        away: set[int] = set()
        for text in read_documents(list(files), limit=DOCUMENTS):
            away.update(_answered_in(_words(text), asked))
        if away:
            found.append(
                f"the {name} text gives away {len(away)} of the {len(reported)} questions that are reported, each with"
                " its right answer: what is trained on it is learned anew and was not kept; take these documents out"
            )
    return found


class _Asked(NamedTuple):
    number: int
    question: list[str]
    answer: list[str]


def _answered_in(document: list[str], asked: Mapping[tuple[str, ...], list[_Asked]]) -> Iterator[int]:
    """Numbers of the questions that stand in a document with their answers after them."""
    first = {words[0] for words in asked}
    for place, word in enumerate(document):
        if word in first:
            for one in asked.get(tuple(document[place : place + _FIRST_WORDS]), ()):
                end = place + len(one.question)
                if document[place:end] == one.question and _holds(document[end:], one.answer):
                    yield one.number


def _holds(words: list[str], sought: list[str]) -> bool:
    return any(words[place : place + len(sought)] == sought for place in range(len(words) - len(sought) + 1))


def _words(text: str) -> list[str]:
    return normalized(text).split()
