"""A batch has the losses that the design states, padded or packed, and logits at predicted positions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from toy_steps import CLOSE, ROUTES, TASKS, make_sequences

import harness.training.batch
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.registry import method_class
from harness.training.batch import IGNORED, cross_entropies, encoder_decoder, packed, padded, token_losses, weigh
from harness.training.packing import groups
from methods.no_finetune import NoFinetune

pytestmark = pytest.mark.numeric


def encoded(task: str, prompt: int, target: int, start: int = 5) -> Encoded:
    tokens = [(start + 7 * i) % 90 + 1 for i in range(prompt + target)]
    return Encoded(task=task, prompt=tuple(tokens[:prompt]), target=tuple(tokens[prompt:]), truncated=False)


STEP = [
    encoded("a", 5, 2),
    encoded("a", 9, 6, 11),
    encoded("b", 3, 1, 23),
    encoded("b", 12, 3, 31),
    encoded("c", 4, 4, 47),
]


def test_masks_are_true_for_the_tokens_of_the_text_and_the_sides_of_an_encoder_decoder_differ_in_width() -> None:
    weighted = weigh([encoded("a", 3, 2), encoded("b", 1, 3)], "token", Routes(("a", "b")))
    assert [m.int().tolist() for m in padded(weighted).masks] == [[[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]]
    assert [m.int().tolist() for m in packed(weighted, 4).masks] == [[[1] * 9 + [0] * 3]]
    batch = encoder_decoder(weighted, 0)
    assert [m.int().tolist() for m in batch.masks] == [[[1, 1, 1], [1, 0, 0]], [[1, 1, 0, 0], [1, 1, 1, 0]]]
    assert batch.inputs["decoder_input_ids"].shape == batch.masks[1].shape
    assert batch.labels.view(2, 4)[:, 3].tolist() == [IGNORED, IGNORED]
    narrow = encoder_decoder(weighted[:1], 0)
    assert [tuple(m.shape) for m in narrow.masks] == [(1, 3), (1, 2)]


@pytest.mark.parametrize("kind", ["token", "example", "task"])
def test_the_loss_of_a_step_is_the_weighted_mean_of_single_sequences(toy_llama: Any, kind: str) -> None:
    model = toy_llama()
    adapter = NoFinetune().attach(model, ["a", "b", "c"], seed=0)
    weighted = weigh(STEP, kind, Routes(("a", "b", "c")))
    batches = [padded([weighted[i] for i in at]) for at in groups([len(r) for r in STEP], 40)]
    assert len(batches) > 1
    ours = sum(float((token_losses(model, adapter, b, reads=False) * b.weights).sum()) for b in batches)

    # Independently: the mean loss over the target tokens of each sequence alone, then the mean that is promised.
    means, tokens = [], []
    for r in STEP:
        ids = torch.tensor([[*r.prompt, *r.target]])
        log_p = model(input_ids=ids).logits[0].log_softmax(-1)
        picked = [-log_p[len(r.prompt) - 1 + j, t].item() for j, t in enumerate(r.target)]
        means.append(sum(picked) / len(picked))
        tokens.append(len(picked))
    if kind == "token":
        expected = float(np.average(means, weights=tokens))
    elif kind == "example":
        expected = float(np.mean(means))
    else:
        tasks = sorted({r.task for r in STEP})
        expected = float(
            np.mean(
                [
                    np.average(
                        [m for m, r in zip(means, STEP, strict=True) if r.task == t],
                        weights=[n for n, r in zip(tokens, STEP, strict=True) if r.task == t],
                    )
                    for t in tasks
                ]
            )
        )
    assert ours == pytest.approx(expected, abs=1e-6)  # the norms compute in float32


def test_labels_go_by_position_even_where_a_target_holds_the_padding_token(toy_llama: Any) -> None:
    sequences = [Encoded(task="a", prompt=(4, 0, 7), target=(0, 0, 9), truncated=False), encoded("a", 8, 2)]
    batch = padded(weigh(sequences, "token", Routes(("a",))))
    assert (batch.labels != IGNORED).view(2, -1).sum(1).tolist() == [3, 2]


def test_only_predicted_positions_get_logits(toy_llama: Callable[..., Any]) -> None:
    model, sequences = toy_llama(), weigh(make_sequences(), "token", ROUTES)
    adapter = method_class("lora_all")().attach(model, TASKS, seed=0)
    batch = packed(sequences)
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    with adapter.route(batch.routes):
        losses = token_losses(model, adapter, batch, reads=False)
    n_targets = sum(len(w.sequence.target) for w in sequences)
    assert seen == [(1, n_targets)]
    assert losses.shape == (n_targets,)
    assert batch.inputs["input_ids"].shape == (1, sum(len(w.sequence) for w in sequences))
    assert "attention_mask" not in batch.inputs


def test_a_padded_sequence_has_the_losses_that_it_has_alone(toy_llama: Callable[..., Any]) -> None:
    model, sequences = toy_llama(), weigh(make_sequences(4), "token", ROUTES)
    adapter = method_class("lora_all")().attach(model, TASKS, seed=0)
    with torch.no_grad():
        batch = padded(sequences)
        with adapter.route(batch.routes):
            together = token_losses(model, adapter, batch, reads=False).view(4, -1)
        for i, one in enumerate(sequences):
            alone = padded([one])
            with adapter.route(alone.routes):
                own = token_losses(model, adapter, alone, reads=False)
            assert torch.allclose(together[i, -len(own) :], own, atol=CLOSE)
            assert float(together[i, : -len(own)].abs().sum()) == 0.0


def test_a_batch_marks_its_real_tokens() -> None:
    weighted = weigh([encoded("a", 3, 2), encoded("b", 1, 1)], "token", Routes(("a", "b")))
    assert padded(weighted).masks[0].tolist() == [[True] * 5, [False] * 3 + [True] * 2]
    assert packed(weighted, multiple=10).masks[0].tolist() == [[True] * 7 + [False] * 3]
    assert encoder_decoder(weighted, start=0).masks[0].tolist() == [[True] * 3, [True, False, False]]


def test_large_logits_have_the_losses_and_gradients_of_one_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    batch = padded(weigh(STEP[:3], "token", Routes(("a", "b"))))
    n = len(batch.labels)
    values = torch.randn(1, n, 97)
    results = []
    for most in (harness.training.batch.MOST_LOGITS, 4 * 97):
        monkeypatch.setattr(harness.training.batch, "MOST_LOGITS", most)
        logits = values.to(torch.bfloat16).requires_grad_()
        losses = cross_entropies(logits, batch)
        losses.square().sum().backward()
        results.append((losses, logits.grad))
    assert n > 4
    assert results[0][0].any()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
