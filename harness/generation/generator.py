"""Greedy texts and choices' likelihoods through an adapter: folded task by task where it folds, else routed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Generator as PyGenerator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from harness.errors import ModelError, NotFoldable
from harness.generation.decoding import Enter, Likelihood, decode, likelihoods
from harness.method import Adapter, LoRAFactors
from harness.models.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to go on from. route: the index of its task. limit: tokens that may be generated, eos among them."""

    id: str
    route: int
    prompt: Sequence[int]
    limit: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A text whose likelihood after a prompt is asked for. route: the index of its task."""

    id: str
    route: int
    prompt: Sequence[int]
    continuation: Sequence[int]

    @property
    def limit(self) -> int:
        """Tokens beyond the prompt."""
        return len(self.continuation)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """An answer: its tokens without eos; cut where the limit came before an eos. route: as in the request."""

    id: str
    route: int
    tokens: tuple[int, ...]
    cut: bool


@dataclass(frozen=True, kw_only=True)
class GenerationStats:
    """What it took.

    tokens: generated, eos among them. seconds: of it all. switches, switch_seconds: changes to another task's fold.
    halved: batches made smaller after out-of-memory. unfolded: tasks whose rows were computed routed.
    chosen: the route that the adapter chose by itself for each (route, id); None where tasks are the routes.
    """

    tokens: int = 0
    seconds: float = 0.0
    switches: int = 0
    switch_seconds: float = 0.0
    halved: int = 0
    unfolded: tuple[str, ...] = ()
    chosen: Mapping[tuple[int, str], int] | None = None


class _Row(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def route(self) -> int: ...
    @property
    def prompt(self) -> Sequence[int]: ...
    @property
    def limit(self) -> int: ...


R = TypeVar("R", bound=_Row)
T = TypeVar("T")

# A batch holds this many times the rows that share a forward: what is lost where one is interrupted, and what the
# slots of ended rows are filled from.
_FILLS = 4


def plan(requests: Sequence[R], batch_tokens: int) -> list[list[R]]:
    """Batches by length, longest first: rows times (longest prompt + largest limit) is at most ``batch_tokens``.

    A row that is too long by itself is a batch of its own. Rows of one limit (of one task) are neighbours. A function
    of the requests' contents, not of their order (as long as ids are unique within a route).
    """
    batches: list[list[R]] = []
    longest = limit = 0
    for row in sorted(requests, key=lambda r: (-r.limit, -len(r.prompt), r.route, r.id)):
        longest, limit = max(longest, len(row.prompt)), max(limit, row.limit)
        if batches and (len(batches[-1]) + 1) * (longest + limit) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest, limit = len(row.prompt), row.limit
    return batches


def slots(batch: Sequence[_Row], batch_tokens: int) -> int:
    """Rows of a batch that may share a forward: so many that their tokens are at most ``batch_tokens``, at least 1."""
    return max(1, batch_tokens // (max(len(r.prompt) for r in batch) + max(r.limit for r in batch)))


class Generator:
    """Generates through an adapter that is on the model.

    Args:
        tasks: names of the routes, in the order given to ``Method.attach``.
        folds: fold a task's share before its rows (merged into float32 weights, else beside them); a share that does
            not fold is routed. False: everything is routed, and rows of several tasks share a batch.
        batch_tokens: prompt tokens and room for answers of the rows that share a forward.
        reads: the adapter reads prompts by itself (trait LABEL_FREE).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        adapter: Adapter,
        tasks: Sequence[str],
        *,
        folds: bool,
        batch_tokens: int,
        reads: bool = False,
    ) -> None:
        self.loaded, self.adapter, self.tasks = loaded, adapter, tuple(tasks)
        self.folds, self.batch_tokens, self.reads = folds, batch_tokens, reads
        self._stats = GenerationStats()
        self._routing = False  # the batch at hand is computed routed

    def run(
        self,
        requests: Sequence[Request],
        on_batch: Callable[[Sequence[Generated]], None],
        finished: Collection[tuple[int, str]] = frozenset(),
        ended: Callable[[int], object] = lambda rows: None,
    ) -> GenerationStats:
        """Generate every text; ``on_batch`` is told of each batch as soon as it ends.

        Args:
            finished: (route, id) of texts that exist already; a batch of such texts only is left out, any other one
                is made whole, so that a text does not depend on interruptions.
            ended: told of numbers of rows that have ended, as they do: long before ``on_batch`` of their batch.

        Raises: ModelError for a prompt that is empty, too long for the model or too large for the device.
        """
        self._stats, started = GenerationStats(), time.perf_counter()

        def work(batch: list[Request], n: int, enter: Enter) -> list[Generated]:
            prompts, limits = [r.prompt for r in batch], [r.limit for r in batch]
            together = self._together(batch)
            rows = decode(self.loaded, prompts, limits, enter, slots=n, together=together, ended=ended)
            self._count(tokens=sum(map(len, rows)))
            return [self._generated(request, row) for request, row in zip(batch, rows, strict=True)]

        # closed at once where on_batch raises, so that merged weights are restored before anyone handles the error
        with closing(self._batches(requests, work, finished)) as batches:
            for results in batches:
                on_batch(results)
        return replace(self._stats, seconds=time.perf_counter() - started)

    def log_likelihoods(self, choices: Sequence[Choice]) -> dict[tuple[int, str], float]:
        """log p(continuation | prompt) of each choice by (route, id), summed over its tokens. Raises: as ``run``."""
        return {key: found.value for key, found in self.likelihoods(choices).items()}

    def likelihoods(self, choices: Sequence[Choice]) -> dict[tuple[int, str], Likelihood]:
        """``log_likelihoods``, and whether each choice is what greedy decoding would have written."""

        def work(batch: list[Choice], n: int, enter: Enter) -> list[tuple[tuple[int, str], Likelihood]]:
            found = likelihoods(
                self.loaded, [c.prompt for c in batch], [c.continuation for c in batch], enter, at_once=n
            )
            return [((c.route, c.id), one) for c, one in zip(batch, found, strict=True)]

        self._stats = GenerationStats()
        return {key: value for results in self._batches(choices, work) for key, value in results}

    def _batches(
        self,
        requests: Sequence[R],
        work: Callable[[list[R], int, Enter], list[T]],
        finished: Collection[tuple[int, str]] = frozenset(),
    ) -> PyGenerator[list[T], None, None]:
        """The results of each batch: first task by task those that fold, then together those that do not."""
        for request in requests:
            self._check(request)
        self._routing = False
        routes = self._routes(requests)
        unfolded: list[R] = []
        for route in sorted(set(routes.values())):
            mine = [r for r in requests if routes[r.route, r.id] == route]
            batches = _unfinished(plan(mine, _FILLS * self.batch_tokens), finished)
            factors = self._fold(route)
            if factors is None:
                unfolded += mine
            elif batches:
                with self._applied(factors):
                    for batch in batches:
                        yield self._fitting(batch, work, lambda rows, batch: nullcontext())
        self._routing = True
        for batch in _unfinished(plan(unfolded, _FILLS * self.batch_tokens), finished):
            yield self._fitting(batch, work, lambda rows, batch: self._routed([batch[i] for i in rows], routes))
        names = {self.tasks[routes[r.route, r.id]] for r in unfolded}
        self._count(unfolded=tuple(sorted(names)))

    @torch.no_grad()
    def _routes(self, requests: Sequence[R]) -> dict[tuple[int, str], int]:
        """The route of each request: the adapter's own choice where it makes one, else its task's."""
        routes = {(r.route, r.id): r.route for r in requests}
        if not self.reads:
            return routes
        for batch in plan(requests, self.batch_tokens):
            chosen = self.adapter.assign([self._tensor(r) for r in batch])
            if chosen is None:
                return routes
            routes.update({(r.route, r.id): int(route) for r, route in zip(batch, chosen, strict=True)})
        self._stats = replace(self._stats, chosen=routes)
        return routes

    def _together(self, batch: Sequence[Request]) -> bool:
        """Whether rows must begin together where they are routed.

        An adapter that reads prompts would read those in the slots again with every one that joins; and in lower
        precision a layer's shapes, and its rounding, follow from which tasks are there.
        """
        mixed = len({r.route for r in batch}) > 1
        return self._routing and (self.reads or (mixed and self.loaded.dtype.itemsize < 4))

    def _fold(self, route: int) -> Mapping[str, LoRAFactors] | None:
        if not self.folds:
            return None
        started = time.perf_counter()
        try:
            factors = self.adapter.fold(self.tasks[route])
        except NotFoldable:
            return None
        self._count(switch_seconds=time.perf_counter() - started)
        return factors

    @contextmanager
    def _applied(self, factors: Mapping[str, LoRAFactors]) -> Iterator[None]:
        """The factors on the model: merged where the weights are float32 or float64, else beside the weights."""
        started = time.perf_counter()
        with self.adapter.apply(factors, merge=self.loaded.dtype.itemsize >= 4):
            self._count(switches=1, switch_seconds=time.perf_counter() - started)
            yield
            started = time.perf_counter()
        self._count(switch_seconds=time.perf_counter() - started)

    @contextmanager
    def _routed(self, rows: Sequence[R], routes: Mapping[tuple[int, str], int]) -> Iterator[None]:
        with self.adapter.route(torch.tensor([routes[r.route, r.id] for r in rows])):
            if self.reads:
                owner = torch.arange(len(rows), device=self.loaded.device)
                self.adapter.read([self._tensor(r) for r in rows], owner)
            yield

    def _fitting(
        self,
        batch: list[R],
        work: Callable[[list[R], int, Enter], list[T]],
        context: Callable[[list[int], list[R]], AbstractContextManager[None]],
    ) -> list[T]:
        """Work on a batch; where the device's memory is too small, with half as many rows at once."""
        n = min(len(batch), slots(batch, self.batch_tokens))
        while True:
            try:
                return work(batch, n, lambda rows: context(rows.tolist(), batch))
            except torch.OutOfMemoryError as error:
                if n == 1:
                    longest = max(batch, key=lambda r: len(r.prompt) + r.limit)
                    raise ModelError(
                        f"{longest.id}: one prompt of {len(longest.prompt)} tokens and {longest.limit} more do not fit "
                        f"into the memory of {self.loaded.device}. Lower train.max_length, or take a smaller model."
                    ) from error
            if self.loaded.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
            self._count(halved=1)
            n //= 2

    def _generated(self, request: Request, row: list[int]) -> Generated:
        ended = row[-1] in self.loaded.eos_ids
        tokens = row[:-1] if ended else row
        return Generated(id=request.id, route=request.route, tokens=tuple(tokens), cut=not ended)

    def _check(self, request: _Row) -> None:
        if not request.prompt or request.limit < 1:
            raise ModelError(
                f"{request.id}: {len(request.prompt)} tokens of prompt and room for {request.limit}; "
                "both must be at least 1. Look at the example, train.max_length and eval.max_new_tokens."
            )
        most = self.loaded.max_context
        length = max(len(request.prompt), request.limit)
        if not self.loaded.encoder_decoder:
            length = len(request.prompt) + request.limit
        if most is not None and length > most:
            raise ModelError(
                f"{request.id}: {len(request.prompt)} tokens of prompt and room for {request.limit} are more than "
                f"the model's {most}. Lower train.max_length or eval.max_new_tokens."
            )

    def _tensor(self, request: _Row) -> Tensor:
        return torch.tensor(request.prompt, dtype=torch.long, device=self.loaded.device)

    def _count(self, *, unfolded: tuple[str, ...] = (), **more: Any) -> None:
        """Add to the numbers of the run."""
        sums = {name: getattr(self._stats, name) + value for name, value in more.items()}
        self._stats = replace(self._stats, **sums, unfolded=self._stats.unfolded + unfolded)


def _unfinished(batches: list[list[R]], finished: Collection[tuple[int, str]]) -> list[list[R]]:
    return [batch for batch in batches if any((r.route, r.id) not in finished for r in batch)]
