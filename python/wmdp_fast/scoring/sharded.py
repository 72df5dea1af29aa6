"""Scores a run shard by shard, each a run of its own with a journal of its own, on one process or on several ranks.

What a shard's scores are depends on its questions alone, so whoever scores it, they are the same to the bit. Nobody
tells the others anything but how far it is, until all are done and each has the scores of all.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.scoring.journal import Journal, journal_path, shard_journals, shard_run
from wmdp_fast.scoring.journaled import GOES_ON, take_in, warn_of_nothing
from wmdp_fast.scoring.ranks import EVERY
from wmdp_fast.scoring.scores import PartialScores, Scores
from wmdp_fast.scoring.shards import Shard, shards_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from wmdp_fast._rust import Requests
    from wmdp_fast.scoring.ranks import Ranks

    Progress = Callable[[int, int], None]
    ReadsAlong = Callable[[Callable[[], object]], Mapping[str, Any] | None]


class ScoresRequests(Protocol):
    """Scores all choices of requests, as `Backend.score_windows` does."""

    def __call__(self, requests: Requests, *, progress: Progress, partial: PartialScores) -> Scores:
        """Scores them."""


@dataclass(frozen=True)
class _Own:
    """What a rank has done.

    Choices, their scores, what each shard cost, how many were in the shards' journals, and what streaming has cost.
    """

    choices: NDArray[np.int64]
    loglikelihood: NDArray[np.float64]
    is_greedy: NDArray[np.bool_]
    costs: list[dict[str, Any]]
    resumed: int
    streamed: Mapping[str, Any] | None


@dataclass
class ShardedRun:
    """A run that is cut into shards. Make one with `sharded_run`.

    Attributes:
        requests: The whole run.
        shards: The shards that are left.
        count: How many shards there are, those included of which nothing is left.
        finished: What was finished before it was cut: scores of the whole run.
        folder: Where the journals are, or None.
        identity: What the run is, or None.
        ranks: The processes that share it; None for this one alone.
        what: What its choices are called.
    """

    requests: Requests
    shards: list[Shard]
    count: int
    finished: PartialScores
    folder: Path | None
    identity: Mapping[str, Any] | None
    ranks: Ranks | None
    what: str

    def begin(self, *, resume: bool, warn: bool) -> None:
        """Finds what is finished, and cuts the rest; arguments and errors are those of `sharded_run`."""
        if self.rank == 0 and self.folder is not None and self.identity is not None:
            journal = Journal.open(self.folder, self.identity, resume=resume)
            self.finished = PartialScores.resumed(self.requests.num_choices, journal)
            if warn and not len(journal.choices) and not shard_journals(self.folder, self.identity):
                warn_of_nothing(self.folder)
            self._take_in_other_cuts(self.folder, self.identity)
        if self.ranks is not None:
            found = self.ranks.exchange((self.finished.loglikelihood, self.finished.is_greedy))[0]
            self.finished.loglikelihood, self.finished.is_greedy = found
        self.shards = shards_of(self.requests, self.count, self.finished.finished)

    def _take_in_other_cuts(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """If the run was cut in another way before, what those shards have goes to the run's own journal."""
        self.shards = shards_of(self.requests, self.count, self.finished.finished)
        these = {described[0] for described in map(self.journal_of, self.shards) if described is not None}
        journals = shard_journals(folder, identity)
        if set(journals) - these:
            take_in(self.finished, journals)

    def score(self, score: ScoresRequests, progress: Progress, read_along: ReadsAlong) -> ShardedScores:
        """Scores the shards of this rank, and returns the scores of all ranks.

        Args:
            score: Scores a shard.
            progress: Called with how many questions are done, and of how many.
            read_along: What is done for the other ranks when all shards of this one are done.
        """
        before = int(self.finished.finished.sum())
        whole = replace(self.finished, journal=None)
        bar = _Progress(self, progress)
        mine = [shard for shard in self.shards if self.rank_of(shard) == self.rank]
        costs: list[dict[str, Any]] = []
        resumed = 0
        for shard in mine:
            with self._journaled(shard, whole) as partial:
                resumed += int((partial.finished & ~whole.finished[shard.choices]).sum())
                if not partial.finished.all():
                    costs.append(_cost(score(shard.requests, progress=bar.of(shard), partial=partial)))
            whole.loglikelihood[shard.choices] = partial.loglikelihood
            whole.is_greedy[shard.choices] = partial.is_greedy
            bar.end(shard)
        choices = np.concatenate([np.empty(0, dtype=np.int64), *(shard.choices for shard in mine)])
        streamed = read_along(bar.now_and_then)
        own = _Own(choices, whole.loglikelihood[choices], whole.is_greedy[choices], costs, resumed, streamed)
        every = [own] if self.ranks is None else self.ranks.exchange(own, bar.show)
        bar.show()
        return self._merged(every, before)

    @property
    def rank(self) -> int:
        """The number of this process."""
        return 0 if self.ranks is None else self.ranks.place.rank

    def rank_of(self, shard: Shard) -> int:
        """Who scores a shard: each rank has neighbors, as many as the next or one more."""
        size = 1 if self.ranks is None else self.ranks.place.size
        return shard.number * size // self.count

    def journal_of(self, shard: Shard) -> tuple[Path, dict[str, Any]] | None:
        """The journal of a shard, and what it is of; None if nothing is written down."""
        if self.folder is None or self.identity is None:
            return None
        run = shard_run(self.identity, shard.number, shard.of, shard.choices)
        return journal_path(self.folder, run), run

    @contextlib.contextmanager
    def _journaled(self, shard: Shard, whole: PartialScores) -> Iterator[PartialScores]:
        """The scores of a shard, those included that were there before."""
        partial = PartialScores(whole.loglikelihood[shard.choices], whole.is_greedy[shard.choices])
        partial.numbers = shard.choices
        described = self.journal_of(shard)
        if described is None or self.folder is None:
            yield partial
            return
        # Whether there may be one has been decided by the first rank for all.
        journal = Journal.open(self.folder, described[1], resume=True)
        local = np.searchsorted(shard.choices, journal.choices)
        partial.loglikelihood[local] = journal.loglikelihood
        partial.is_greedy[local] = journal.is_greedy
        partial.journal = journal
        try:
            yield partial
        except BaseException as error:
            error.add_note(f"what is scored is kept in {self.folder}: {GOES_ON}")
            raise
        finally:
            if journal.is_empty:
                journal.remove()
            journal.close()

    def _merged(self, every: list[_Own], before: int) -> ShardedScores:
        """The scores of the run from what each rank has done."""
        whole = self.finished
        for one in every:
            whole.loglikelihood[one.choices], whole.is_greedy[one.choices] = one.loglikelihood, one.is_greedy
        costs = [cost for one in every for cost in one.costs]
        by_rank = [_of_rank(one.costs) for one in every]
        budgets = {cost["token_budget"] for cost in costs}
        if len(budgets) > 1:
            _warn_of_budgets(budgets)
        return ShardedScores(
            loglikelihood=whole.loglikelihood,
            is_greedy=whole.is_greedy,
            seconds=max(one["seconds"] for one in by_rank),
            seconds_waiting=sum(cost["seconds_waiting"] for cost in costs),
            tokens_run=sum(cost["tokens_run"] for cost in costs),
            tokens_useful=sum(cost["tokens_useful"] for cost in costs),
            batches=sum(cost["batches"] for cost in costs),
            token_budget=min(budgets, default=0),
            engine=" and ".join(sorted({cost["engine"] for cost in costs}, reverse=True)) or "none",
            why_not_trie=next((cost["why_not_trie"] for cost in costs if cost["why_not_trie"]), None),
            streamed=_streamed([one.streamed for one in every if one.streamed is not None]),
            shards=self.count,
            by_rank=by_rank,
            resumed=before + sum(one.resumed for one in every),
        )


@dataclass(frozen=True, kw_only=True)
class ShardedScores(Scores):
    """Scores of a run in shards.

    Attributes:
        shards: How many.
        by_rank: What each rank has done.
        resumed: Choices that were scored before.
    """

    shards: int
    by_rank: list[dict[str, Any]]
    resumed: int

    def cost(self) -> dict[str, Any]:
        """What results say they cost."""
        return {**super().cost(), "shards": self.shards, "ranks": self.by_rank}


@contextlib.contextmanager
def sharded_run(
    requests: Requests,
    count: int,
    ranks: Ranks | None,
    folder: Path | None,
    identity: Mapping[str, Any] | None,
    what: str,
    *,
    resume: bool,
    warn: bool,
) -> Iterator[ShardedRun]:
    """Cuts a run into shards, as it was cut before if it can go on from there.

    The first rank decides for all, as the others may not see its files. On leaving without an error the scores are
    safe, and the journals are deleted.

    Args:
        requests: The whole run.
        count: How many shards.
        ranks: The processes that share it; None for this one alone.
        folder: Where the results are going to be; None if nothing is to be written down.
        identity: What the run is; None if it cannot be known again.
        what: What its choices are called.
        resume: Whether to go on with what is there.
        warn: Whether to say so if there is nothing.

    Raises:
        JournalError: As `Journal.open`.
        ModelError: Another rank has ended.
    """
    run = ShardedRun(requests, [], count, PartialScores.empty(requests.num_choices), folder, identity, ranks, what)
    try:
        run.begin(resume=resume, warn=warn)
        yield run
        if ranks is not None:
            ranks.exchange(None)
    except BaseException:
        if (journal := run.finished.journal) is not None:
            if journal.is_empty:
                journal.remove()
            journal.close()
        raise
    for described in map(run.journal_of, run.shards):
        if described is not None:
            described[0].unlink(missing_ok=True)
    if run.finished.journal is not None:
        run.finished.journal.remove()


class _Progress:
    """How many questions all ranks have done, on one bar."""

    def __init__(self, run: ShardedRun, progress: Progress) -> None:
        self._ranks, self._what, self._progress = run.ranks, run.what, progress
        self._total = run.requests.num_questions
        self._before = self._total - sum(shard.requests.num_questions for shard in run.shards)
        self._ended = self._own = self._told = 0
        self._last = 0.0

    def of(self, shard: Shard) -> Progress:
        """What a shard's progress goes to."""

        def advance(done: int, total: int) -> None:
            self._own = self._ended + shard.requests.num_questions * done // max(total, 1)
            self.now_and_then()

        return advance

    def end(self, shard: Shard) -> None:
        """A shard is done."""
        self._ended += shard.requests.num_questions
        self._own = self._ended
        self.show()

    def now_and_then(self) -> None:
        """Shows how far all are, if that was long ago."""
        if self._ranks is None or time.monotonic() - self._last >= EVERY:
            self.show()

    def show(self) -> None:
        """Tells the others how far this one is, and shows how far all are."""
        self._last = time.monotonic()
        done = self._own
        if self._ranks is not None:
            done = self._ranks.add(self._what, self._own - self._told)
            self._told = self._own
        self._progress(min(self._before + done, self._total), self._total)


def _cost(scores: Scores) -> dict[str, Any]:
    names = ("seconds", "seconds_waiting", "tokens_run", "tokens_useful", "batches", "token_budget", "engine")
    return {name: getattr(scores, name) for name in (*names, "why_not_trie")}


def _streamed(every: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What streaming has cost all ranks: the bytes of all, and the time of the one that waited longest."""
    if not every:
        return None
    merged = {name: max(one.get(name, 0) for one in every) for name in sorted({name for one in every for name in one})}
    return merged | {"bytes_read": sum(one["bytes_read"] for one in every)}


def _of_rank(costs: list[dict[str, Any]]) -> dict[str, Any]:
    """What a rank has done, over its shards."""
    return {name: sum(cost[name] for cost in costs) for name in ("seconds", "tokens_run", "batches")}


def _warn_of_budgets(budgets: set[int]) -> None:
    warnings.warn(
        f"batches were of at most {min(budgets)} tokens in one shard and {max(budgets)} in another, by the memory that"
        " there was: in another run the last digits may differ, unless token_budget is small enough",
        WmdpFastWarning,
        stacklevel=5,
    )
