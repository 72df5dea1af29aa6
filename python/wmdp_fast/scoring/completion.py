"""What a server's completion says of tokens.

Everything is checked here before it counts as a number: a server may be broken or hostile, and what it says ends in a
results file. Loads neither torch nor transformers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# By how many nats rounding may carry a log-probability above 0, and a token's above that of the likeliest one.
_ROUNDING = 0.01

# What the probabilities of different tokens may add up to; those of 16-bit numbers are not quite 1.
_LARGEST_SUM = 1.1

# More tokens than any prompt has.
_MOST_TOKENS = 1 << 40

# How vocabularies write a space at the beginning of a token, where a server does not decode it.
_SPACES = ("\u0120", "\u2581")

Place = tuple[float, dict[str, float]]
"""Of a token of a prompt: its log-probability, and those of the likeliest tokens at its place by name."""


class AnswerError(Exception):
    """An answer is not what was asked for; the message says what is wrong. It may quote the server."""


def completion_of(answer: object) -> tuple[Mapping[str, Any], int]:
    """The one completion of an answer, and the number of tokens of the prompt, 0 if the server does not say.

    Raises:
        AnswerError: There is not just one.
    """
    choices = _object(answer, "the answer").get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        raise AnswerError("`choices` is not a list of one")
    tokens = _object(_object(answer, "the answer").get("usage") or {}, "`usage`").get("prompt_tokens") or 0
    if isinstance(tokens, bool) or not isinstance(tokens, int | float) or not 0 <= tokens < _MOST_TOKENS:
        raise AnswerError("`usage.prompt_tokens` is no number of tokens")
    return _object(choices[0], "`choices[0]`"), int(tokens)


def message_of(answer: object) -> str:
    """The text of the one message of a chat's answer.

    Raises:
        AnswerError: There is not just one, or it has no text.
    """
    text = _object(completion_of(answer)[0].get("message"), "`message`").get("content")
    if not isinstance(text, str):
        raise AnswerError("`message.content` is no text")
    return text


def logprobs_of(completion: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A completion's `logprobs`, or None if there are none.

    Raises:
        AnswerError: They are something else.
    """
    given = completion.get("logprobs")
    return None if given is None else _object(given, "`logprobs`")


def likeliest(given: Mapping[str, Any]) -> list[dict[str, float]]:
    """The likeliest tokens at each place, from either of the two forms of `logprobs` that servers give them in.

    Where two tokens are written alike, the likelier one counts. A place of which nothing is said has none.

    Raises:
        AnswerError: They are something else, or not log-probabilities.
    """
    if (content := given.get("content")) is not None:
        places = [_object(one, "a part of `content`").get("top_logprobs") for one in _list(content, "`content`")]
        named = [
            [(_text(_object(one, "a token").get("token")), one.get("logprob")) for one in _list(place or [], "a place")]
            for place in places
        ]
    else:
        places = _list(given.get("top_logprobs") or [], "`top_logprobs`")
        named = [list(_object(place or {}, "a part of `top_logprobs`").items()) for place in places]
    return [_distribution(place) for place in named]


def of_prompt(completion: Mapping[str, Any], length: int, continuation: Sequence[int]) -> list[Place]:
    """What vLLM's `prompt_logprobs` says of the last tokens of a prompt.

    Args:
        completion: The completion.
        length: How many tokens the prompt has.
        continuation: The last of them.

    Raises:
        AnswerError: It says it of others, or says something else.
    """
    given = completion.get("prompt_logprobs")
    if not isinstance(given, list) or len(given) != length:
        raise AnswerError("it gave none" if not isinstance(given, list) else f"{len(given)} for {length} tokens")
    found = []
    for token, place in zip(continuation, given[-len(continuation) :], strict=True):
        if not isinstance(place, dict) or str(token) not in place:
            raise AnswerError(f"token {token} is not among them")
        top = _distribution(
            [(f"token_id:{name}", _object(one, "a token").get("logprob")) for name, one in place.items()]
        )
        if f"token_id:{token}" not in top:
            raise AnswerError(f"token {token} has no log-probability")
        found.append((top[f"token_id:{token}"], top))
    return found


def of_echo(completion: Mapping[str, Any], length: int, continuation: int) -> list[Place]:
    """What an echoed prompt of tokens says of the last ones.

    Args:
        completion: The completion.
        length: How many tokens the prompt has.
        continuation: How many of them, at its end, are wanted.

    Raises:
        AnswerError: It says it of others, or says something else.
    """
    values, tops, _ = _echoed(completion)
    # With one more for the token that was made, unless that is the end of the text.
    if len(values) not in (length, length + 1):
        raise AnswerError(f"{len(values)} token_logprobs for {length} tokens")
    return _places(values, tops, slice(length - continuation, length))


def of_echoed_text(completion: Mapping[str, Any], context: str, continuation: str) -> list[Place]:
    """What an echoed prompt of text says of the tokens from a continuation's first character to its last one.

    Raises:
        AnswerError: It says it of others, or says something else.
    """
    values, tops, given = _echoed(completion)
    text, tokens, offsets = completion.get("text"), given.get("tokens"), given.get("text_offset")
    if not isinstance(text, str) or not text.startswith(context + continuation):
        raise AnswerError("the text it gave does not begin with the prompt")
    if not isinstance(tokens, list) or not isinstance(offsets, list) or not len(tokens) == len(offsets) == len(values):
        raise AnswerError("it does not say where its tokens begin (tokens, text_offset)")
    begin, end = len(context), len(context + continuation)
    ends = [*offsets, len(text)]
    if begin not in offsets or end not in ends:
        raise AnswerError("one of its tokens lies across the border between the question and the choice")
    places = slice(offsets.index(begin), ends.index(end))
    written = "".join(map(_text, tokens[places]))
    # Offsets may count a BOS that is not in the text. Parts of characters are not told.
    if places.start >= places.stop or _ascii(written) != _ascii(continuation):
        raise AnswerError(f"where {continuation!r} should be it has {written!r}")
    return _places(values, tops, places)


def spelled(token: str) -> str:
    """A token with its spaces as spaces."""
    for space in _SPACES:
        token = token.replace(space, " ")
    return token


def _echoed(completion: Mapping[str, Any]) -> tuple[list[Any], list[dict[str, float]], Mapping[str, Any]]:
    """The `token_logprobs`, unchecked, and the likeliest tokens at each place, of an echoed prompt."""
    given = logprobs_of(completion)
    if given is None or not isinstance(values := given.get("token_logprobs"), list):
        raise AnswerError("it gave no token_logprobs")
    tops = likeliest(given)
    if len(tops) != len(values):
        raise AnswerError(f"{len(values)} token_logprobs and {len(tops)} top_logprobs")
    return values, tops, given


def _places(values: Sequence[Any], tops: Sequence[dict[str, float]], places: slice) -> list[Place]:
    found = list(zip(values[places], tops[places], strict=True))
    if any(value is None or not top for value, top in found):
        raise AnswerError("it gave no log-probability for one of its tokens")
    checked = [(_logprob(value), top) for value, top in found]
    if any(value > max(top.values()) + _ROUNDING for value, top in checked):
        raise AnswerError("one of its tokens is likelier than the likeliest one")
    return checked


def _distribution(named: Sequence[tuple[str, Any]]) -> dict[str, float]:
    """Log-probabilities of tokens at one place by name; those that are null are left out."""
    found: dict[str, float] = {}
    total = 0.0
    for name, value in named:
        if value is not None:
            logprob = _logprob(value)
            total += math.exp(logprob)
            found[name] = max(logprob, found.get(name, logprob))
    if total > _LARGEST_SUM:
        raise AnswerError(f"its probabilities add up to {total:.3g}, so these are no log-probabilities")
    return found


def _logprob(value: object) -> float:
    """A value that a server gave as a log-probability."""
    # In this order: a whole number may be larger than any float.
    if isinstance(value, int | float) and not isinstance(value, bool) and -_MOST_TOKENS < value <= _ROUNDING:
        return float(value)
    what = (
        f"{value:.6g}" if isinstance(value, float) else repr(value[:40]) if isinstance(value, str) else "what it gave"
    )
    raise AnswerError(f"{what} is no log-probability")


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise AnswerError(f"{what} is no JSON object")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise AnswerError(f"{what} is no list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise AnswerError("a token is no text")
    return value


def _ascii(text: str) -> str:
    return spelled(text).encode("ascii", "ignore").decode()
