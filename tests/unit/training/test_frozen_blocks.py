"""Hidden states below the first adapted block, kept on disk: the same step with fewer blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_steps import CLOSE, PACKED, PADDED, as_loaded, gradients, make_sequences, make_steps

from harness.errors import TrainingError
from harness.registry import method_class
from harness.training.frozen_blocks import frozen_blocks
from harness.training.packing import Layout
from harness.training.step import StepRunner

UPPER = "model.layers.[23].*"


def steps_of(
    toy_llama: Callable[..., Any],
    folder: Path | None,
    *,
    name: str = "cgc_lora",
    layout: Layout = PACKED,
    targets: str = UPPER,
    **config: Any,
) -> StepRunner:
    model = toy_llama(num_hidden_layers=4)
    runner = make_steps(model, method_class(name)(targets=targets), layout, micro_tokens=80, **config)
    if folder is not None:
        runner.frozen = frozen_blocks(runner.loaded, folder)
    return runner


def count_blocks(runner: StepRunner) -> list[int]:
    """The number of calls of the attention of each block, counted from now on."""
    calls = [0] * len(runner.loaded.model.model.layers)

    def count(i: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[i] += 1

        return hook

    for i, block in enumerate(runner.loaded.model.model.layers):
        block.self_attn.register_forward_hook(count(i))
    return calls


@pytest.mark.numeric
@pytest.mark.parametrize("layout", [PACKED, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ["lora_all", "cgc_lora", "hydra_lora", "moa"])
def test_a_step_has_the_losses_and_gradients_of_a_step_with_every_block(
    toy_llama: Callable[..., Any], tmp_path: Path, name: str, layout: Layout
) -> None:
    sequences = make_sequences()
    plain_losses, plain = gradients(steps_of(toy_llama, None, name=name, layout=layout), sequences)
    for _ in ("computed and written", "read from disk"):
        losses, found = gradients(steps_of(toy_llama, tmp_path, name=name, layout=layout), sequences)
        assert losses == pytest.approx(plain_losses, rel=CLOSE)
        for parameter, gradient in plain.items():
            if gradient is None:
                assert found[parameter] is None
            else:
                torch.testing.assert_close(found[parameter], gradient, rtol=CLOSE, atol=CLOSE)


@pytest.mark.numeric
def test_checkpointed_blocks_take_the_states_again_in_the_backward_pass(
    toy_llama: Callable[..., Any], tmp_path: Path
) -> None:
    from harness.training.attention import checkpoint_activations

    sequences = make_sequences()
    losses, plain = gradients(steps_of(toy_llama, None), sequences)
    runner = steps_of(toy_llama, tmp_path)
    checkpoint_activations(runner.loaded.model, True)
    found_losses, found = gradients(runner, sequences)
    assert found_losses == pytest.approx(losses, rel=CLOSE)
    for parameter, gradient in plain.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=CLOSE, atol=CLOSE)


def test_frozen_blocks_are_computed_once_for_each_sequence_by_all_runs(
    toy_llama: Callable[..., Any], tmp_path: Path
) -> None:
    sequences = make_sequences()
    gradients(steps_of(toy_llama, tmp_path, name="lora_all"), sequences)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == len(sequences)
    later = steps_of(toy_llama, tmp_path)
    calls = count_blocks(later)
    gradients(later, sequences)
    micro_batches = calls[3] - 2  # The check of the first batch calls each adapted block twice.
    assert calls[:2] == [1, 1]  # Only the check calls the frozen ones.
    assert micro_batches == len(later.division.layout.split([len(s) for s in sequences], 80))
    assert sorted(tmp_path.rglob("*.safetensors")) == files


def test_a_damaged_file_is_computed_again(toy_llama: Callable[..., Any], tmp_path: Path) -> None:
    sequences = make_sequences()
    losses, _ = gradients(steps_of(toy_llama, tmp_path), sequences)
    first, second, *_ = sorted(tmp_path.rglob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-9])
    second.write_bytes(b"")
    again, _ = gradients(steps_of(toy_llama, tmp_path), sequences)
    assert again == pytest.approx(losses, rel=CLOSE)
    assert len(first.read_bytes()) == len(whole)  # Their last bits depend on the micro-batch.
    assert second.stat().st_size > 0


def test_the_model_is_as_before_after_a_step(toy_llama: Callable[..., Any], tmp_path: Path) -> None:
    runner = steps_of(toy_llama, tmp_path)
    gradients(runner, make_sequences())
    assert all("forward" not in vars(block) for block in runner.loaded.model.model.layers)


@pytest.mark.parametrize(
    ("targets", "config", "message"),
    [
        ("all", {}, "the adapter changes the first block"),
        (UPPER, {"attention_dropout": 0.1}, r"the base model has attention_dropout=0\.1"),
        (UPPER, {"hidden_dropout_prob": 0.2}, r"the base model has hidden_dropout_prob=0\.2"),
    ],
)
def test_a_model_or_an_adapter_without_frozen_blocks_is_an_error(
    toy_llama: Callable[..., Any], tmp_path: Path, targets: str, config: dict[str, Any], message: str
) -> None:
    model = toy_llama(num_hidden_layers=4, **config)
    make_steps(model, method_class("lora_all")(targets=targets), PACKED)
    with pytest.raises(TrainingError, match=message):
        frozen_blocks(as_loaded(model), tmp_path)


def test_states_of_another_model_are_noticed(toy_llama: Callable[..., Any], tmp_path: Path) -> None:
    sequences = make_sequences()
    gradients(steps_of(toy_llama, tmp_path), sequences)
    other = make_steps(
        toy_llama(seed=1, num_hidden_layers=4), method_class("cgc_lora")(targets=UPPER), PACKED, micro_tokens=80
    )
    other.frozen = frozen_blocks(other.loaded, tmp_path)
    with pytest.raises(TrainingError, match=r"a token's loss differs by .* without the first 2 blocks"):
        gradients(other, sequences)
