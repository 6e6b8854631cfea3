"""How much memory training takes: measured, and estimated before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.config.spec import TrainConfig
from harness.data.encoding import Encoder
from harness.method import Adapter
from harness.models.loading import LoadedModel
from harness.training.packing import Layout, micro_tokens

if TYPE_CHECKING:
    from harness.data.mixture import Mixture


_CPU_SLACK, _CPU_BUFFERS, _CPU_MASK = 1.25, 60_000_000, 64  # share, bytes, bytes of two packed tokens


_STEPS = 20  # whose micro-batches are looked at


_MOMENTS = 16  # bytes of a trained float32: value, gradient and Adam's two moments


def estimate(
    loaded: LoadedModel,
    adapter: Adapter,
    encoder: Encoder,
    tasks: Sequence[str],
    config: TrainConfig,
    mixture: Mixture,
) -> int:
    """An estimate of the peak of training in bytes, for decoders of the Llama kind with adapters on all linear layers.

    Weights; of each trained number its value, gradient and moments; and, of the largest micro-batch of the first
    steps, what the backward pass needs:

    - of each token and block (one hidden state with gradient checkpointing, and one block in full): nine hidden states
      (the inputs of two norms and what they make of them, query, keys and values for every head, attention's output as
      the kernel and as the next layer sees it), four states of the inner width, and the adapter's inner products;
    - of each target token the logits and, in float32, their log-probabilities and two gradients.

    A CPU's allocator keeps part of what was freed, its libraries have buffers, and a packed row's mask is made from
    pairs of tokens (all measured).
    """
    trained = sum(p.numel() for p in adapter.trainable().values())
    plan = mixture.plan(tasks, 1.0)
    layout = Layout(packed=config.packing == "auto" and not loaded.encoder_decoder)
    largest = 0
    for step in range(min(_STEPS, plan.steps)):
        rows = encoder.rows(mixture.rows.examples(plan.batch(step)))
        for positions in layout.split([len(r) for r in rows], micro_tokens(config, loaded.device)):
            part = [rows[i] for i in positions]
            tokens = sum(map(len, part)) if layout.packed else len(part) * max(map(len, part))
            targets = sum(len(r.target) for r in part)
            largest = max(largest, _activations(loaded, adapter, config, tokens, targets))
    return loaded.n_parameters * loaded.dtype.itemsize + trained * _MOMENTS + largest


def _activations(loaded: LoadedModel, adapter: Adapter, config: TrainConfig, tokens: int, targets: int) -> int:
    text, size = loaded.model.config.get_text_config(), loaded.dtype.itemsize
    hidden = _size(text, "hidden_size", "d_model")
    inner = _size(text, "intermediate_size", "d_ff", otherwise=4 * hidden)
    blocks = _size(text, "num_hidden_layers", "num_layers", otherwise=1)
    trainable = adapter.trainable()
    inside = sum(min(p.shape) for p in trainable.values() if p.dim() == 2) // blocks
    half = size < 4  # norms compute in float32, and an adapter's weights are cast
    on_cpu = loaded.device.type == "cpu"
    block = (9 * hidden + 4 * inner + inside) * size + half * 2 * hidden * 4
    kept = blocks * hidden * size + block if config.gradient_checkpointing else blocks * block
    logits = _size(text, "vocab_size") * (size + 12)
    cast = half * size * sum(p.numel() for p in trainable.values())
    needed = tokens * kept + targets * logits + cast
    return round(_CPU_SLACK * (needed + _CPU_MASK * tokens**2)) + _CPU_BUFFERS if on_cpu else needed


def _size(config: Any, *names: str, otherwise: int = 0) -> int:
    found = (getattr(config, n, None) for n in names)
    return next((int(value) for value in found if value), otherwise)
