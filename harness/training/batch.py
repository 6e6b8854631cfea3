"""Micro-batches: sequences padded side by side or packed into one, with logits only where a token is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.method import CountsTokens, StepRouting
from harness.training.attention import own_attention
from harness.transfer import to_device

# The label of positions without a target. Labels go by position, because a target may hold the padding token.
IGNORED = -100

# Logits whose cross-entropy is computed at once: 0.5 GB in float32.
MOST_LOGITS: Final = 2**27


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One forward pass of B sequences that predicts N tokens.

    A padded batch has B rows of S tokens; a packed batch has one row of S tokens that holds all sequences.

    It is made on the CPU, and ``placed`` copies to the model's device what the forward and the losses read there.

    inputs: the arguments of the model's forward.
    labels: (N,) target tokens, or IGNORED for padding.
    weights: (N,) float64, the weight of each label's loss.
    tasks: (N,) task index of each label, to sum losses by task.
    routes: the argument of ``adapter.route``: task indices, (B,) of padded sequences or (1, S) of packed tokens. It is
        on the CPU, because adapters group its values before they use the device.
    examples: of the shape of ``routes`` and on the CPU, the position in the whole step of each sequence's or token's
        example (``StepRouting.route``).
    prompts: B tensors on the CPU, the tokenised prompts, for adapters that read them.
    owner: of the shape of ``routes``, the index into ``prompts`` of each sequence or token; -1 for filling.
    masks: bool on the CPU, False for padding and filling: (rows, S); for an encoder-decoder one of each side.
    shift: the model gives logits of one more position than is predicted, the last one of each sequence.

    ``tasks``, ``routes`` and ``owner`` have three readers (the log, the adapter's layers, the adapter's router), in
    three shapes and places; a derived one would need a gather on the device in each forward.
    """

    inputs: Mapping[str, Any]
    labels: Tensor
    weights: Tensor
    tasks: Tensor
    routes: Tensor
    examples: Tensor
    prompts: Sequence[Tensor]
    owner: Tensor
    masks: Sequence[Tensor]
    shift: bool

    def placed(self, device: torch.device) -> Batch:
        """The same batch on a device. The copies are queued there, so that no host waits for them."""
        return replace(
            self,
            inputs={k: to_device(v, device) if isinstance(v, Tensor) else v for k, v in self.inputs.items()},
            labels=to_device(self.labels, device),
            weights=to_device(self.weights, device),
            tasks=to_device(self.tasks, device),
            owner=to_device(self.owner, device),
        )


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A sequence of a step.

    task: the index of its task. position: its position in the step, over all micro-batches and processes.
    weight: of each of its target tokens in the loss of the step.
    """

    sequence: Encoded
    task: int
    position: int
    weight: float


def loss_weights(sequences: Sequence[Encoded], kind: str) -> list[float]:
    """The weight of one target token of each sequence of a step, before normalisation (``train.loss``).

    token: every target token counts the same. example: every sequence. task: every task of the step.
    """
    if kind == "token":
        return [1.0] * len(sequences)
    if kind == "example":
        return [1.0 / len(s.target) for s in sequences]
    tokens: dict[str, int] = {}
    for sequence in sequences:
        tokens[sequence.task] = tokens.get(sequence.task, 0) + len(sequence.target)
    return [1.0 / tokens[s.task] for s in sequences]


def total_weight(sequences: Sequence[Encoded], weights: Sequence[float]) -> float:
    """The sum of the weights of all target tokens of a step, over all its micro-batches and processes."""
    return sum(w * len(s.target) for s, w in zip(sequences, weights, strict=True))


def weigh(sequences: Sequence[Encoded], kind: str, routes: Routes) -> list[Weighted]:
    """The sequences of one step with weights that sum to 1 over all target tokens; ``kind`` as for ``loss_weights``."""
    weights = loss_weights(sequences, kind)
    total = total_weight(sequences, weights)
    return [
        Weighted(sequence=s, task=routes.index(s.task), position=i, weight=w / total)
        for i, (s, w) in enumerate(zip(sequences, weights, strict=True))
    ]


def task_shares(sequences: Sequence[Weighted], n_tasks: int) -> list[float]:
    """The weight of all target tokens of each task; 0 for a task without sequences."""
    shares = [0.0] * n_tasks
    for w in sequences:
        shares[w.task] += w.weight * len(w.sequence.target)
    return shares


def sum_by_task(values: Tensor, batch: Batch, n_tasks: int) -> Tensor:
    """The sums (T, ...) over the labels of each task of float64 values (N, ...) of the batch's labels.

    A product, because an indexed sum has no fixed order of additions on a GPU.
    """
    own = batch.tasks == torch.arange(n_tasks, device=batch.tasks.device)[:, None]
    return own.double() @ values


def reweigh(sequences: Sequence[Weighted], weights: Mapping[int, float]) -> list[Weighted]:
    """The same sequences, each weighted by the factor of its task (by index) too; the sum may then differ from 1."""
    return [replace(w, weight=w.weight * weights[w.task]) for w in sequences]


def padded(sequences: Sequence[Weighted]) -> Batch:
    """A batch for a causal model, padded on the left, so that the last positions hold every target."""
    tokens = [(*w.sequence.prompt, *w.sequence.target) for w in sequences]
    mask = _pad([[1] * len(t) for t in tokens], 0, left=True)
    labels = _pad([w.sequence.target for w in sequences], IGNORED, left=True)
    inputs: dict[str, Any] = {
        "input_ids": _pad(tokens, 0, left=True),
        # The position before the first target predicts it; the last position predicts nothing.
        "logits_to_keep": labels.shape[1] + 1,
        "use_cache": False,
    }
    if not bool(mask.all()):
        inputs |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    return _side_by_side(sequences, inputs, labels, masks=[mask.bool()], shift=True)


def encoder_decoder(sequences: Sequence[Weighted], start: int) -> Batch:
    """A batch for a model that reads the prompt with its encoder and predicts the target with its decoder.

    start: the token that the decoder reads first; see ``harness.models.loading.decoder_start_token``.
    """
    labels = _pad([w.sequence.target for w in sequences], IGNORED, left=False)
    mask = _pad([[1] * len(w.sequence.prompt) for w in sequences], 0, left=False)
    if labels.shape == mask.shape:
        # Layers recognise the side that they read by its width, so the two sides have different ones.
        labels = nn.functional.pad(labels, (0, 1), value=IGNORED)
    first = torch.full((len(sequences), 1), start)
    inputs = {
        "input_ids": _pad([w.sequence.prompt for w in sequences], 0, left=False),
        "attention_mask": mask,
        "decoder_input_ids": torch.cat([first, labels[:, :-1].clamp(min=0)], dim=1),
        "use_cache": False,
    }
    # The decoder reads the start token and every target token but the last: as many as there are targets.
    return _side_by_side(sequences, inputs, labels, masks=[mask.bool(), labels != IGNORED], shift=False)


def packed(sequences: Sequence[Weighted], multiple: int = 1, boundaries: bool = False) -> Batch:
    """A batch of one row that holds the sequences one after another, filled up to a ``multiple`` of tokens.

    Positions start at 0 in each sequence. A model that takes restarting positions for new sequences lets no sequence
    attend to another one, as long as it gets no cache and no attention mask. Whether a model does this is checked
    before training, see ``harness.training.packing.choose_layout``.

    boundaries: also give the sequences' boundaries, for attention kernels that take them in place of a mask.
    """
    tokens: list[int] = []
    positions: list[int] = []
    routes: list[int] = []
    examples: list[int] = []
    owner: list[int] = []
    keep: list[int] = []
    for i, w in enumerate(sequences):
        first, length = len(tokens) + len(w.sequence.prompt), len(w.sequence)
        tokens += [*w.sequence.prompt, *w.sequence.target]
        positions += range(length)
        routes += [w.task] * length
        examples += [w.position] * length
        owner += [i] * length
        keep += range(first - 1, first - 1 + len(w.sequence.target))  # the position before a token predicts it
    empty = -len(tokens) % multiple
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([tokens + [0] * empty]),
        "position_ids": torch.tensor([[*positions, *range(empty)]]),
        "logits_to_keep": torch.tensor(keep),
        "use_cache": False,
    }
    if boundaries:
        inputs |= _boundaries([*map(len, (w.sequence for w in sequences)), *([empty] if empty else [])])
    counts = torch.tensor([len(w.sequence.target) for w in sequences])
    return Batch(
        inputs=inputs,
        labels=torch.tensor([t for w in sequences for t in w.sequence.target]),
        weights=torch.tensor([w.weight for w in sequences], dtype=torch.float64).repeat_interleave(counts),
        tasks=torch.tensor([w.task for w in sequences]).repeat_interleave(counts),
        routes=torch.tensor([routes + routes[-1:] * empty]),
        examples=torch.tensor([examples + examples[-1:] * empty]),
        prompts=[torch.tensor(w.sequence.prompt) for w in sequences],
        owner=torch.tensor([owner + [-1] * empty]),
        masks=[torch.tensor([[True] * len(tokens) + [False] * empty])],
        shift=False,
    )


def _boundaries(lengths: Sequence[int]) -> dict[str, Any]:
    """Where packed sequences begin and end, by the names that transformers gives to these arguments."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def batch_logits(model: Any, batch: Batch) -> Tensor:
    """The logits of a forward pass on the batch, at the positions of its labels where the model supports that."""
    logits: Tensor = model(**batch.inputs).logits
    if batch.shift:
        width = len(batch.labels) // len(batch.routes) + 1
        logits = logits[:, -width:-1]  # some models ignore logits_to_keep and give the logits of every position
    return logits


def cross_entropies(logits: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy of every label, (N,), in float32 or better; 0 where the label is IGNORED.

    Large logits are converted to float32 in parts, each again in the backward pass: with a vocabulary of 150,000 tokens
    the copies and the softmax of all of them take several times the memory of the logits themselves.
    """
    logits, labels = logits.flatten(0, 1), batch.labels
    if logits.numel() <= MOST_LOGITS:
        return _cross_entropies(logits, labels)
    n = max(1, MOST_LOGITS // logits.shape[1])
    parts = zip(torch.split(logits, n), torch.split(labels, n), strict=True)
    return torch.cat([checkpoint(_cross_entropies, *part, use_reentrant=False) for part in parts])


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")


def token_losses(model: Any, adapter: StepRouting, batch: Batch, reads: bool) -> Tensor:
    """The cross-entropy of every label, (N,). Call it within ``adapter.route(batch.routes)``.

    reads: the adapter chooses routes by reading the prompts (trait LABEL_FREE), so that it gets them first.
    """
    announce(model, adapter, batch, reads)
    return cross_entropies(batch_logits(model, batch), batch)


def announce(model: Any, adapter: StepRouting, batch: Batch, reads: bool) -> None:
    """Tell the adapter what it asks for before a forward on the batch: prompts, and which positions hold text."""
    if reads:
        with own_attention(model):
            adapter.read(batch.prompts, batch.owner)
    if isinstance(adapter, CountsTokens):
        adapter.count_tokens(batch.masks)


def _side_by_side(
    sequences: Sequence[Weighted],
    inputs: Mapping[str, Any],
    labels: Tensor,
    *,
    masks: Sequence[Tensor],
    shift: bool,
) -> Batch:
    width = labels.shape[1]
    tasks = torch.tensor([w.task for w in sequences])
    weights = torch.tensor([w.weight for w in sequences], dtype=torch.float64)
    return Batch(
        inputs=inputs,
        labels=labels.flatten(),
        weights=weights.repeat_interleave(width),
        tasks=tasks.repeat_interleave(width),
        routes=tasks,
        examples=torch.tensor([w.position for w in sequences]),
        prompts=[torch.tensor(w.sequence.prompt) for w in sequences],
        owner=torch.arange(len(sequences)),
        masks=masks,
        shift=shift,
    )


def _pad(sequences: Sequence[Sequence[int]], value: int, left: bool) -> Tensor:
    width = max(map(len, sequences))
    return torch.tensor(
        [[value] * (width - len(s)) + [*s] if left else [*s] + [value] * (width - len(s)) for s in sequences]
    )
