"""Routers that score tasks from the hidden states of a prompt, and the gate that mixes LoRAs by these scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import NotFoldable
from methods.layers.gates import Gate
from methods.layers.prepared import Prepared
from methods.layers.routing import Route
from methods.layers.target import generator


class Routers(nn.Module):
    """One linear map for each of L blocks: weight (L, T, width).

    States are layer-normalised first, since their scales differ by orders of magnitude between blocks.
    """

    def __init__(self, n_blocks: int, width: int, tasks: Sequence[str], seed: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(
            torch.stack(
                [
                    torch.stack(
                        [
                            torch.empty(width).uniform_(-bound, bound, generator=generator(seed, "router", block, task))
                            for task in tasks
                        ]
                    )
                    for block in range(n_blocks)
                ]
            )
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Scores (L, P, T) of P prompts from pooled states (L, P, width)."""
        states = functional.layer_norm(pooled.to(self.weight.dtype), pooled.shape[-1:])
        return torch.bmm(states, self.weight.transpose(1, 2))


class PromptScores:
    """The routers' scores (L, P, T) for the P prompts of this forward, and the index of each label's prompt (M,)."""

    def __init__(self) -> None:
        self.scores: Tensor | None = None
        self.owner: Tensor | None = None


class RouterGate(Gate):
    """The soft mixture of one block: the softmax of its router's scores for the prompt of each label."""

    def __init__(self, block: str) -> None:
        super().__init__()
        last = block.rpartition(".")[2]
        self.block = int(last) if last.isdecimal() else -1
        self.prompt_scores = PromptScores()

    def task_weights(self) -> Tensor:
        raise NotFoldable(
            "a soft mixture of LoRAs (method.soft=true) depends on the prompt: it has no fold and cannot be exported"
        )

    def label_weights(self, route: Route) -> Tensor:
        scores, owner = self.inputs(route)
        return scores[min(self.block, len(scores) - 1)].softmax(-1)[owner.clamp(min=0)]

    def inputs(self, route: Route) -> list[Tensor]:
        scores, owner = self.prompt_scores.scores, self.prompt_scores.owner
        if scores is None or owner is None:
            raise RuntimeError("forward without prompts: call adapter.read(prompts, owner) inside the route first")
        return [scores, owner]


def prepare_routers(uses: Mapping[RouterGate, int], prompt_scores: PromptScores) -> None:
    """Compute the weights of each label by the gates of all blocks, as ``prepare_gates`` does for other gates.

    Args:
        uses: the number of layers that read each gate.
    """
    scores, owner = prompt_scores.scores, prompt_scores.owner
    if not uses or scores is None or owner is None:
        return
    own = (owner.clamp(min=0)[:, None] == torch.arange(scores.shape[1], device=owner.device)).to(scores.dtype)
    weights = own @ scores.softmax(-1)  # (L, M, T)
    for gate, n in uses.items():
        gate.prepared = Prepared(weights[min(gate.block, len(scores) - 1)], n, lambda: [scores, owner])
