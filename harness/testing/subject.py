"""A method under test, on a toy model of its own, and what its checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.method import Adapter, AdapterMethod, Baseline, Method, Trait, adapter_method
from harness.testing.toys import TASKS, VOCABULARY, perturb


class Subject:
    """A method under test, with four sequences of five tokens (``tokens``) and the route of each (``labels``).

    Args:
        make: returns equal models, one for each subject.
        ablation: the method is an ablation, which may lose what the traits of its method promise.
    """

    def __init__(self, method: Method, make: Callable[[], nn.Module], ablation: bool = False) -> None:
        self.method, self.make, self.ablation = method, make, ablation
        self.model: Any = make()
        self.tasks = list(TASKS)
        state = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(0, VOCABULARY, (4, 5), generator=state)
        self.labels = torch.tensor([2, 0, 1, 0])

    @property
    def baseline(self) -> Baseline:
        """The method, which is a baseline."""
        assert isinstance(self.method, Baseline)
        return self.method

    @property
    def adapted(self) -> AdapterMethod:
        """The method, which has an adapter."""
        return adapter_method(self.method)

    def attach(self, seed: int = 0, noise: bool = True) -> Adapter:
        """The adapter on this subject's model; with noise on its parameters, since a fresh one often adds nothing."""
        adapter = self.adapted.attach(self.model, self.tasks, seed=seed)
        if noise:
            perturb(adapter)
        return adapter

    def has(self, trait: Trait) -> bool:
        return trait in self.method.traits

    @contextmanager
    def routed(self, adapter: Adapter, labels: Tensor, tokens: Tensor) -> Iterator[None]:
        """Inside a route; the adapter reads the prompts if the method reads them."""
        with adapter.route(labels):
            if self.has(Trait.LABEL_FREE):
                owner = torch.arange(len(labels))
                prompts = list(tokens[:: len(tokens) // len(labels)])
                adapter.read(prompts, owner if labels.dim() == 1 else owner[:, None].expand(labels.shape))
            yield

    def logits(self, tokens: Tensor | None = None) -> Tensor:
        """The model's logits (sequences, tokens, vocabulary), without gradient."""
        logits: Tensor = self.model(input_ids=self.tokens if tokens is None else tokens, use_cache=False).logits
        return logits.detach()

    def route(self, adapter: Adapter, labels: Tensor, tokens: Tensor) -> Tensor:
        """The logits of tokens routed by labels."""
        with self.routed(adapter, labels, tokens):
            return self.logits(tokens)


def promise(kept: bool, words: str) -> None:
    """Raises AssertionError with these words, also where Python optimises assert statements away."""
    if not kept:
        raise AssertionError(words)


def raises(kind: type[Exception], act: Callable[[], object]) -> bool:
    """Whether a call raises an error of that kind."""
    try:
        act()
    except kind:
        return True
    return False


def distance(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference of two entries."""
    return float((one - other).abs().max())


def gradients(s: Subject, adapter: Adapter) -> dict[str, Tensor]:
    """The gradients of a loss and the penalty in training mode, by parameter name; zeros for an unused parameter."""
    s.model.train()
    adapter.begin_step("stage", 1)
    torch.manual_seed(1)  # as the engine seeds each step, so that dropout is the same in every call
    with s.routed(adapter, s.labels, s.tokens):
        logits = s.model(input_ids=s.tokens, use_cache=False).logits
        (logits.logsumexp(-1) - logits[..., 0]).mean().add(adapter.penalty()).backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in adapter.trainable().items()}
    for parameter in adapter.trainable().values():
        parameter.grad = None
    s.model.eval()
    return grads
