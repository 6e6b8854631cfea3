"""The base model and its tokenizer: frozen, in one precision, from a folder, a GGUF file or the model hub."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.config.spec import ModelSpec, Precision
from harness.errors import ModelError
from harness.models.quantised import (
    QUANTISATIONS,
    check_quantisable,
    check_quantised,
    n_parameters,
    quantisation_config,
    weight_bytes,
)
from harness.models.sharding import Sharding, shard_base
from harness.models.source import TOKENIZER_PARTS, Source, check_fetched, check_folder, fetch, fingerprint, locate
from harness.models.tokenizer_checks import check_sentencepiece, check_vocabulary, stated_vocabulary

if TYPE_CHECKING:
    import torch

    from harness.runtime.distributed import ProcessGroup

# Tokenizers without a maximum length state about 1e30 tokens; any length above this one means that there is none.
_NO_LENGTH: Final = 1_000_000_000

# Errors of transformers for files that it cannot read as a tokenizer or a model: OSError for missing and damaged
# files, ValueError for an unknown architecture, a bad config or broken JSON, KeyError for missing entries of a config,
# TypeError for entries of a wrong type or a missing vocabulary, ImportError for an optional package that is missing.
_UNREADABLE: Final = (OSError, ValueError, KeyError, TypeError, ImportError)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A frozen base model in eval mode with its tokenizer.

    max_context: the longest sequence in tokens (of the encoder, if there is one); None without a known limit.
    dtype: of the weights, or of the computation if they are quantised.
    n_parameters: each parameter counts once, also where it is tied to another one.
    quantised: the method of the weights' quantisation, such as "nf4"; None without one.
    sharding: how the blocks are divided over ranks; None if each rank has the whole model.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    n_parameters: int
    max_context: int | None
    encoder_decoder: bool
    quantised: str | None = None
    sharding: Sharding | None = None

    @property
    def weight_bytes(self) -> int:
        """The memory of the weights in bytes; of a sharded model, with the blocks that a pass has gathered."""
        return weight_bytes(self.model) + (0 if self.sharding is None else self.sharding.gathered_bytes)

    @property
    def merges(self) -> bool:
        """Whether folded adapters are added to the weights.

        In low precision that would round away small updates, and sharded weights are never whole between two passes.
        """
        return self.dtype.itemsize >= 4 and self.quantised is None and self.sharding is None

    def together(self) -> AbstractContextManager[None]:
        """Around passes without gradients whose number differs between ranks; see ``Lockstep.together``."""
        return nullcontext() if self.sharding is None else self.sharding.lockstep.together()

    def before_backward(self) -> None:
        """Call it between the passes forward and backward of a step: those of a sharded model begin together."""
        if self.sharding is not None:
            self.sharding.lockstep.begin_backward()

    @property
    def n_embeddings(self) -> int | None:
        """The number of tokens that the model has an input embedding for; None if it has no table of them."""
        try:
            table = self.model.get_input_embeddings()
        except NotImplementedError:  # transformers finds it by its name, which a few architectures change
            return None
        weight = getattr(table, "weight", None)
        return None if weight is None else int(weight.shape[0])

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends a prediction: the tokenizer's eos, and those of the generation config."""
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        more = configured if isinstance(configured, list) else [configured]
        return tuple(dict.fromkeys(int(i) for i in [self.tokenizer.eos_token_id, *more] if i is not None))


def decoder_start_token(loaded: LoadedModel) -> int:
    """The token that the decoder of an encoder-decoder model reads first, in training, scoring and generation.

    The generation config has precedence over the model's config, as in transformers' ``generate``.

    Raises: ModelError for a model that states no such token, or several of them.
    """
    configs = (getattr(loaded.model, "generation_config", None), loaded.model.config)
    stated = [getattr(config, "decoder_start_token_id", None) for config in configs]
    token = next((value for value in stated if value is not None), None)
    if not isinstance(token, int):
        raise ModelError(
            f"{type(loaded.model).__name__} needs one token that its decoder starts from, and its configuration has "
            f"decoder_start_token_id {token}. Set decoder_start_token_id in the model's generation_config.json to the "
            "token it was trained with (often its pad or its eos token)."
        )
    return token


def identify(name: str, revision: str | None = None) -> ModelSpec:
    """The model's label and fingerprint, without loading weights; ``revision`` is for hub ids. Raises: ModelError."""
    source = locate(name, revision)
    return ModelSpec(label=source.label, fingerprint=fingerprint(source))


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model. Raises: ModelError if there is none, it is empty, or it has no eos token."""
    source = locate(name)
    return _tokenizer(source, fetch(source))


def load_model(
    name: str,
    precision: Precision = "auto",
    device: str | None = None,
    *,
    revision: str | None = None,
    processes: ProcessGroup | None = None,
) -> LoadedModel:
    """Load a language model for training adapters or generating with them.

    Args:
        name: as for ``locate``: a registered name, a folder, a ``.gguf`` file (dequantised), a hub id.
        precision: of the weights; auto: bfloat16 where the GPU computes in it, else float32; nf4, int8: see
            ``harness.models.quantised``.
        device: a torch device (default: CUDA where there is one, else the CPU).
        revision: of a hub id; give the recorded fingerprint to load exactly that version.
        processes: divide the blocks over these ranks, all of which load the model; None to load it whole.

    Raises: ModelError, saying what to do.
    """
    import torch

    source = locate(name, revision)
    if processes is not None and source.gguf is not None:
        raise ModelError(
            f"{source.label} is a GGUF file, which every process would dequantise whole on the CPU: with "
            "train.shard_base=true, give the model's original folder or hub id"
        )
    folder = fetch(source)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype_of(precision, place)
    tokenizer = _tokenizer(source, folder)
    # The weights of a model that is to be divided are read from its files on the CPU, where ranks share their pages.
    first = place if processes is None else torch.device("cpu")
    model = _weights(source, folder, dtype, precision, first).eval().requires_grad_(False)
    n_numbers = n_parameters(model)
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=place,
        dtype=dtype,
        n_parameters=n_numbers,
        max_context=_max_context(model.config, tokenizer),
        encoder_decoder=bool(model.config.is_encoder_decoder),
        quantised=_quantised(model, precision),
        sharding=None if processes is None else _shard(model, source.label, place, processes),
    )
    if loaded.n_embeddings is not None:
        check_vocabulary(tokenizer, source.label, folder, loaded.n_embeddings)
    if loaded.encoder_decoder:
        decoder_start_token(loaded)  # Without one it can neither train nor generate; fail before any work is done.
    return loaded


def _shard(model: Any, label: str, place: torch.device, processes: ProcessGroup) -> Sharding:
    stated = getattr(model.config, "quantization_config", None)
    if stated is not None:
        raise ModelError(
            f"{label} is quantised in its files, and train.shard_base=true is for plain weights: leave it out, or give "
            "the original model"
        )
    return shard_base(model, label, place, processes)


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of ``precision`` on a device; that of the computation for quantised weights."""
    import torch

    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision in named:
        return named[precision]
    # Older GPUs support bfloat16 by emulation only, which is slower than float32.
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def _tokenizer(source: Source, folder: Path) -> Any:
    from transformers import AutoTokenizer

    extra = _gguf(source)
    check_fetched(folder, *((source.gguf,) if source.gguf else TOKENIZER_PARTS))
    if not source.gguf:
        check_sentencepiece(source.label, folder)
    try:
        size = None if source.gguf else stated_vocabulary(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **extra)
    except _UNREADABLE as error:
        raise _refused(source, "tokenizer", error) from error
    check_vocabulary(tokenizer, source.label, folder, size)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {source.label} has no eos token, which ends each prediction. "
            'Set "eos_token" in its tokenizer_config.json.'
        )
    # Long prompts are truncated by Encoder, so transformers need not warn that the model could not take them.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _weights(source: Source, folder: Path, dtype: torch.dtype, precision: Precision, place: torch.device) -> Any:
    """The model on its device. Quantised weights go to it one by one, because they cannot be moved as others can."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from harness.models.transposed import replace_transposed

    extra = {**_gguf(source), "trust_remote_code": False}
    quantises = precision in QUANTISATIONS
    auto = AutoModelForCausalLM
    try:
        if not source.gguf:
            check_folder(folder)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            _check_kind(source, config)
            auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else auto
        if quantises:
            check_quantisable(source.label, precision, None if source.gguf else config, gguf=source.gguf is not None)
            extra |= {"quantization_config": quantisation_config(precision, dtype), "device_map": {"": place}}
        with bars_on_terminals_only():
            model, report = auto.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **extra
            )
    # RuntimeError: weights of other shapes than the config states. SafetensorError: a damaged file of weights.
    except (*_UNREADABLE, RuntimeError, SafetensorError) as error:
        raise _refused(source, "model", error) from error
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise ModelError(
            f"the files of {source.label} lack {len(names)} of its weights ({', '.join(names[:3])}), which would be "
            "random. Is it a language model with its output head, and the download complete?"
        )
    if quantises:
        check_quantised(source.label, precision, model)
        return model
    replace_transposed(model)
    if source.gguf and getattr(model, "hf_quantizer", None) is not None:
        # The weights are plain tensors by now, and a model that is marked as quantised could not be saved.
        model.hf_quantizer.remove_quantization_config(model)
    return model.to(place)


def _quantised(model: Any, precision: Precision) -> str | None:
    """The method of the weights' quantisation: that which was asked for, or that of the model's own files."""
    if precision in QUANTISATIONS:
        return precision
    stated = getattr(model.config, "quantization_config", None)
    return None if stated is None else str(getattr(stated.quant_method, "value", stated.quant_method))


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Without this, transformers writes its bars for loading and saving models into log files too."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _check_kind(source: Source, config: Any) -> None:
    """Refuse other kinds of models: transformers would load the body and initialise the output head at random."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    if getattr(config, "auto_map", None):
        return
    known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if config.is_encoder_decoder else {}
    known = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **known}
    heads = {head for heads in known.values() for head in ([heads] if isinstance(heads, str) else heads)}
    stated = getattr(config, "architectures", None) or []
    if config.model_type not in known or (stated and not heads & set(stated)):
        raise ModelError(
            f"{source.label} is not a language model that generates text: its config.json has model_type "
            f"{config.model_type!r}, architectures {stated}. Give a causal or an encoder-decoder language model."
        )


def _gguf(source: Source) -> dict[str, str]:
    if source.gguf is None:
        return {}
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{source.gguf} needs the package gguf: pip install 'mtlora-harness[gguf]'")
    return {"gguf_file": source.gguf}


def _max_context(config: Any, tokenizer: Any) -> int | None:
    text = config.get_text_config()
    if hasattr(text, "relative_attention_num_buckets"):  # T5 states a length that its computation does not use
        return None
    for field in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        limit = getattr(text, field, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    stated = tokenizer.model_max_length
    return int(stated) if stated < _NO_LENGTH else None


def _refused(source: Source, part: str, error: Exception) -> ModelError:
    if isinstance(error, ModelError):
        return error
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return ModelError(
            f"{source.label} needs Python code of its own, which harness does not run. Give a model whose "
            "architecture transformers supports."
        )
    return ModelError(f"the {part} of {source.label} cannot be loaded: {type(error).__name__}: {text[:400]}")
