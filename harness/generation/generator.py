"""Greedy predictions, and the likelihoods of given ones, through an adapter: folded task by task, or routed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Generator as PyGenerator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.data.routes import Routes
from harness.errors import ModelError, NotFoldable
from harness.generation.decoding import Enter, Schedule, decode
from harness.generation.graph import recorder
from harness.generation.likelihood import Likelihood, likelihoods
from harness.generation.predictions import PredictionKey
from harness.generation.requests import (
    Choice,
    ChoiceRequest,
    Generated,
    GenerationRequest,
    GenerationStats,
    Prompted,
    Scored,
)
from harness.method import LoRAFactors, Routing
from harness.models.loading import LoadedModel

_BATCH_FILLS = 4
"""A batch has this many times the sequences that share a forward pass, so that free slots can be refilled.

All of a batch is generated again when it is interrupted.
"""


R = TypeVar("R", bound=Prompted)
T = TypeVar("T")


def plan_batches(requests: Sequence[R], batch_tokens: int, routes: Routes) -> list[list[R]]:
    """Batches by length, longest first: sequences times (longest prompt + largest limit) is at most ``batch_tokens``.

    A request that is too long by itself is a batch of its own. Requests with equal limits (of one task) are neighbours.
    The batches depend on the requests' contents, not on their order.
    """
    batches: list[list[R]] = []
    longest = limit = 0
    for request in sorted(requests, key=lambda r: (-r.limit, -len(r.prompt), routes.index(r.task), r.id)):
        longest, limit = max(longest, len(request.prompt)), max(limit, request.limit)
        if batches and (len(batches[-1]) + 1) * (longest + limit) <= batch_tokens:
            batches[-1].append(request)
        else:
            batches.append([request])
            longest, limit = len(request.prompt), request.limit
    return batches


def batch_size(batch: Sequence[Prompted], batch_tokens: int) -> int:
    """How many sequences of a batch share a forward pass: as many as ``batch_tokens`` allows, at least one."""
    return max(1, batch_tokens // (max(len(r.prompt) for r in batch) + max(r.limit for r in batch)))


class Generator:
    """Generates through an adapter that is on the model.

    Args:
        routing: the adapter, or ``BaseRouting`` for the base model.
        routes: the tasks that the adapter was attached for.
        folds: fold a task's share before its requests (merged into float32 weights, otherwise beside them), and route
            the shares that do not fold. False: route everything; requests of several tasks then share a batch.
        batch_tokens: tokens of the prompts and predictions of the sequences that share a forward pass.
        reads: the adapter chooses routes from prompts (trait LABEL_FREE).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        routing: Routing,
        routes: Routes,
        *,
        folds: bool,
        batch_tokens: int,
        reads: bool = False,
    ) -> None:
        self.loaded, self.routing, self.routes = loaded, routing, routes
        self.folds, self.batch_tokens, self.reads = folds, batch_tokens, reads
        self._stats = GenerationStats()
        self._is_routed = False  # Whether the current batch is routed rather than folded.

    def run(
        self,
        requests: Sequence[GenerationRequest],
        on_batch: Callable[[Sequence[Generated]], None],
        finished: Collection[PredictionKey] = frozenset(),
        on_finished: Callable[[int], object] = lambda n: None,
    ) -> GenerationStats:
        """Generate every prediction; ``on_batch`` gets each batch as soon as it is complete.

        Args:
            finished: predictions that exist already. A batch of only these is left out; any other one is generated
                whole, so that a prediction does not depend on interruptions.
            on_finished: called with the number of sequences that have just finished, long before ``on_batch``.

        Raises: ModelError for a prompt that is empty, too long for the model or too large for the device.
        """
        self._stats, started = GenerationStats(), time.perf_counter()

        def generate(batch: list[GenerationRequest], n: int, enter: Enter) -> list[Generated]:
            prompts, limits = [r.prompt for r in batch], [r.limit for r in batch]
            together = self._begins_together(batch)
            # A routed batch has another route whenever sequences take over slots.
            record = None if self._is_routed else recorder(self.loaded.device)
            rows = decode(
                *(self.loaded, prompts, limits, enter),
                slots=n,
                together=together,
                on_finished=on_finished,
                schedule=Schedule(record=record),
            )
            self._count(tokens=sum(map(len, rows)))
            return [self._generated(request, row) for request, row in zip(batch, rows, strict=True)]

        # Closed at once where on_batch raises, so that merged weights are restored before anyone handles the error.
        with closing(self._batches(requests, generate, finished)) as batches:
            for results in batches:
                on_batch(results)
        return replace(self._stats, seconds=time.perf_counter() - started)

    def choose(
        self,
        requests: Sequence[ChoiceRequest],
        on_batch: Callable[[Sequence[Scored]], None],
        finished: Collection[PredictionKey] = frozenset(),
        on_finished: Callable[[int], object] = lambda n: None,
    ) -> GenerationStats:
        """Score every continuation of every request. Arguments and errors as in ``run``."""
        self._stats, started = GenerationStats(), time.perf_counter()

        def score(batch: list[ChoiceRequest], n: int, enter: Enter) -> list[Scored]:
            # One sequence for each continuation; owner has the request of each.
            owner = torch.tensor([i for i, r in enumerate(batch) for _ in r.continuations])
            scored = iter(
                likelihoods(
                    self.loaded,
                    [r.prompt for r in batch for _ in r.continuations],
                    [c for r in batch for c in r.continuations],
                    lambda rows: enter(owner[rows]),
                    batch_size=n,
                )
            )
            on_finished(len(batch))
            self._count(choices=len(owner))
            return [
                Scored(id=r.id, task=r.task, likelihoods=tuple(islice(scored, len(r.continuations)))) for r in batch
            ]

        with closing(self._batches(requests, score, finished)) as batches:
            for results in batches:
                on_batch(results)
        return replace(self._stats, seconds=time.perf_counter() - started)

    def likelihoods(self, choices: Sequence[Choice]) -> list[Likelihood]:
        """The likelihood of each choice, in order. Raises: as ``run``."""
        found: dict[PredictionKey, Likelihood] = {}

        def keep(batch: Sequence[Scored]) -> None:
            found.update({one.key: one.likelihoods[0] for one in batch})

        self.choose(
            [ChoiceRequest(id=c.id, task=c.task, prompt=c.prompt, continuations=[c.continuation]) for c in choices],
            keep,
        )
        return [found[_key(choice)] for choice in choices]

    def _batches(
        self,
        requests: Sequence[R],
        work: Callable[[list[R], int, Enter], list[T]],
        finished: Collection[PredictionKey] = frozenset(),
    ) -> PyGenerator[list[T], None, None]:
        """The results of each batch: first task by task those that fold, then together those that do not."""
        for request in requests:
            self._check(request)
        self._is_routed = False
        routes = self._routes_of(requests)
        unfolded: list[R] = []
        for route in sorted(set(routes.values())):
            own = [r for r in requests if routes[_key(r)] == route]
            batches = self._plan(own, finished)
            factors = self._fold(self.routes.name(route))
            if factors is None:
                unfolded += own
            elif batches:
                with self.routing.apply(factors, merge=self.loaded.merges):
                    self._count(switches=1)
                    for batch in batches:
                        yield self._in_memory(batch, work, lambda rows, batch: nullcontext())
        self._is_routed = True
        for batch in self._plan(unfolded, finished):
            yield self._in_memory(batch, work, lambda rows, batch: self._routed([batch[i] for i in rows], routes))
        names = {self.routes.name(routes[_key(r)]) for r in unfolded}
        self._count(unfolded=tuple(sorted(names)))

    def _plan(self, requests: Sequence[R], finished: Collection[PredictionKey]) -> list[list[R]]:
        """The batches of some requests, without those in which every prediction exists."""
        batches = plan_batches(requests, _BATCH_FILLS * self.batch_tokens, self.routes)
        return [batch for batch in batches if any(_key(r) not in finished for r in batch)]

    @torch.no_grad()
    def route(self, requests: Sequence[R]) -> dict[PredictionKey, int] | None:
        """The route that the adapter chooses for each request from its prompt; None if routes are those of the tasks.

        The tasks of the requests only decide about the order in which the prompts are read.
        """
        if not self.reads:
            return None
        routes: dict[PredictionKey, int] = {}
        for batch in plan_batches(requests, self.batch_tokens, self.routes):
            chosen = self.routing.assign([self._tensor(r) for r in batch])
            if chosen is None:
                return None
            routes.update({_key(r): int(route) for r, route in zip(batch, chosen, strict=True)})
        return routes

    def _routes_of(self, requests: Sequence[R]) -> dict[PredictionKey, int]:
        """The route of each request: the adapter's choice where it makes one, otherwise its task's."""
        routes = self.route(requests)
        if routes is None:
            return {_key(r): self.routes.index(r.task) for r in requests}
        counts: dict[str, dict[str, int]] = {}
        for request in requests:
            own, name = counts.setdefault(request.task, {}), self.routes.name(routes[_key(request)])
            own[name] = own.get(name, 0) + 1
        self._stats = replace(self._stats, chosen=counts)
        return routes

    def _begins_together(self, batch: Sequence[GenerationRequest]) -> bool:
        """Whether no sequence of a routed batch may begin before those before it have finished.

        An adapter that reads prompts would read those in the slots again whenever one begins. And in lower precision
        the shapes inside a layer, and with them the rounding, depend on which tasks are in the slots.
        """
        mixed = len({r.task for r in batch}) > 1
        return self._is_routed and (self.reads or (mixed and self.loaded.dtype.itemsize < 4))

    def _fold(self, task: str) -> Mapping[str, LoRAFactors] | None:
        if not self.folds:
            return None
        try:
            return self.routing.fold(task)
        except NotFoldable:
            return None

    @contextmanager
    def _routed(self, batch: Sequence[R], routes: Mapping[PredictionKey, int]) -> Iterator[None]:
        with self.routing.route(torch.tensor([routes[_key(r)] for r in batch])):
            if self.reads:
                owner = torch.arange(len(batch), device=self.loaded.device)
                self.routing.read([self._tensor(r) for r in batch], owner)
            yield

    def _in_memory(
        self,
        batch: list[R],
        work: Callable[[list[R], int, Enter], list[T]],
        context: Callable[[list[int], list[R]], AbstractContextManager[None]],
    ) -> list[T]:
        """Work on a batch; where the device's memory is too small, with half as many sequences at once."""
        n = min(len(batch), batch_size(batch, self.batch_tokens))
        while True:
            try:
                return work(batch, n, lambda rows: context(rows.tolist(), batch))
            except torch.OutOfMemoryError as error:
                if n == 1:
                    longest = max(batch, key=lambda r: len(r.prompt) + r.limit)
                    raise ModelError(
                        f"{longest.id}: one prompt of {len(longest.prompt)} tokens and {longest.limit} new tokens do "
                        f"not fit into the memory of {self.loaded.device}. Lower train.max_length, or use a smaller "
                        "model"
                    ) from error
            if self.loaded.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
            self._count(halved=1)
            n //= 2

    def _generated(self, request: GenerationRequest, row: list[int]) -> Generated:
        ended = row[-1] in self.loaded.eos_ids
        tokens = tuple(row[:-1] if ended else row)
        return Generated(id=request.id, task=request.task, tokens=tokens, truncated=not ended)

    def _check(self, request: Prompted) -> None:
        n = len(request.prompt)
        if not n or request.limit < 1:
            raise ModelError(
                f"{request.id}: the prompt has {n} tokens and the limit of new tokens is {request.limit}; both must be "
                "at least 1. Check the example, train.max_length and eval.max_new_tokens"
            )
        most = self.loaded.max_context
        length = max(n, request.limit) if self.loaded.encoder_decoder else n + request.limit
        if most is not None and length > most:
            raise ModelError(
                f"{request.id}: a prompt of {n} tokens and {request.limit} new tokens exceed the model's context of "
                f"{most}. Lower train.max_length or eval.max_new_tokens"
            )

    def _tensor(self, request: Prompted) -> Tensor:
        return torch.tensor(request.prompt, dtype=torch.long)

    def _count(self, *, unfolded: tuple[str, ...] = (), **more: Any) -> None:
        """Add to the statistics of the run."""
        sums = {name: getattr(self._stats, name) + value for name, value in more.items()}
        self._stats = replace(self._stats, **sums, unfolded=self._stats.unfolded + unfolded)


def _key(request: Prompted) -> PredictionKey:
    return PredictionKey(request.task, request.id)
