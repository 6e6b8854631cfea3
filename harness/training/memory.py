"""An estimate of the memory that training needs, computed before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from harness.balancing import GradientBalancer
from harness.config.balance import balancer_of
from harness.config.spec import TrainConfig
from harness.data.encoding import Encoder
from harness.method import Adapter
from harness.models.loading import LoadedModel
from harness.training.packing import Layout, micro_tokens

if TYPE_CHECKING:
    from harness.data.mixture import Mixture


# Bytes that the libraries of a CPU allocate for buffers.
_CPU_BUFFERS: Final = 60_000_000

# Bytes for each pair of tokens in a packed sequence on a CPU. The mask of attention is made from matrices of 8-byte
# integers, whose memory the allocator keeps. The number is that of two measured trainings, of 1,000 and 2,000 tokens.
_CPU_MASK: Final = 116

# The estimate is for the largest micro-batch of this many first steps.
_STEPS: Final = 20

# Bytes for each trained number, in float32: its value, its gradient and the two moments of Adam.
_MOMENTS: Final = 16

# Bytes for each trained number and task where a balancer combines gradients: those of the parameters, and side by side.
_TASK_GRADIENTS: Final = 8

# Bytes for each logit in float32: its log-probability and two gradients.
_LOSS: Final = 12


def estimate_memory(
    loaded: LoadedModel,
    adapter: Adapter,
    encoder: Encoder,
    tasks: Sequence[str],
    config: TrainConfig,
    mixture: Mixture,
) -> int:
    """An estimate of the peak of training in bytes, for decoders of the Llama kind with adapters on all linear layers.

    It is the sum of the model's weights; value, gradient and moments of each trained number, and its gradients for each
    task where a balancer combines them; and what the backward
    pass needs for the largest micro-batch of the first steps:

    - for each token and block nine hidden states (the inputs and outputs of two norms, query, keys and values for
      every head, attention's output before and after it is reshaped), four states of the inner width, and the inner
      products of the adapter. With gradient checkpointing it is one hidden state for each block, and one whole block;
    - for each target token the logits and, in float32, their log-probabilities and two gradients.

    On a CPU the measured extra costs of its libraries and of the mask of a packed sequence are added.

    A sharded base counts with this rank's part of the blocks, and with the blocks that a pass has gathered.
    """
    trained = sum(p.numel() for p in adapter.trainable().values())
    combined = len(tasks) * _TASK_GRADIENTS if isinstance(balancer_of(config), GradientBalancer) else 0
    plan = mixture.plan(tasks, 1.0)
    layout = Layout(packed=config.packing == "auto" and not loaded.encoder_decoder)
    largest = 0
    for step in range(min(_STEPS, plan.steps)):
        sequences = encoder.encode(mixture.examples.at(plan.batch(step)))
        for positions in layout.split([len(s) for s in sequences], micro_tokens(config, loaded.device)):
            part = [sequences[i] for i in positions]
            tokens = sum(map(len, part)) if layout.packed else len(part) * max(map(len, part))
            targets = sum(len(s.target) for s in part)
            largest = max(largest, _activations(loaded, adapter, config, tokens, targets))
    return loaded.weight_bytes + trained * (_MOMENTS + combined) + largest


def _activations(loaded: LoadedModel, adapter: Adapter, config: TrainConfig, tokens: int, targets: int) -> int:
    text, size = loaded.model.config.get_text_config(), loaded.dtype.itemsize
    hidden = _size(text, "hidden_size", "d_model")
    inner = _size(text, "intermediate_size", "d_ff", otherwise=4 * hidden)
    blocks = _size(text, "num_hidden_layers", "num_layers", otherwise=1)
    trainable = adapter.trainable()
    inside = sum(min(p.shape) for p in trainable.values() if p.dim() == 2) // blocks
    half = size < 4  # norms compute in float32, and the weights of the adapter are cast
    on_cpu = loaded.device.type == "cpu"
    block = (9 * hidden + 4 * inner + inside) * size + half * 2 * hidden * 4
    kept = blocks * hidden * size + block if config.gradient_checkpointing else blocks * block
    logits = _size(text, "vocab_size") * (size + _LOSS)
    cast = half * size * sum(p.numel() for p in trainable.values())
    needed = tokens * kept + targets * logits + cast
    return needed + _CPU_MASK * tokens**2 + _CPU_BUFFERS if on_cpu else needed


def _size(config: Any, *names: str, otherwise: int = 0) -> int:
    """The first of these sizes that the configuration states; the mean of a size that it states for each layer."""
    values = (getattr(config, n, None) for n in names)
    stated = next((value for value in values if value), otherwise)
    return round(sum(stated) / len(stated)) if isinstance(stated, list | tuple) else int(stated)
