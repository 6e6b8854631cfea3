"""lm-eval's models as back ends: our prompts, their texts, our parsers and scores.

Only this file and ``lm_eval_bridge`` import lm_eval, and only the commands that need it import them.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.api.registry import get_model, model_registry
from lm_eval.models.openai_completions import LocalChatCompletion
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from harness.config.backend import Backend, parse_backend
from harness.data.encoding import Encoder, check_style, generation_limits
from harness.data.rows import Rows
from harness.errors import ModelError, UsageError, unknown
from harness.generation.predictions import Answers
from harness.pipeline.prepare import draw_shots
from harness.pipeline.resolve import Resolved
from harness.runtime.signals import StopFlag
from harness.store.record import GenerationSummary
from harness.task import Example

_BATCH = 64  # rows asked for between two writes: what a crash can lose
_ENDLESS = 1 << 30  # tokens of context of a back end that does not tell
_TROUBLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    AssertionError,
    NotImplementedError,
    aiohttp.ClientError,
)


def answer_by_backend(resolved: Resolved, train: Rows | None, answers: Answers, stop: StopFlag) -> GenerationSummary:
    """Ask a back end for every text that is not on disk yet, greedily, up to the task's limit of tokens.

    Where the back end shows its tokenizer, prompts and limits are made with it as for a model of ours; where it does
    not, prompts go whole, and the limit is the number of bytes that answers take (never fewer than their tokens).

    Raises: UsageError for an unknown name or a prompt style that it cannot take; ModelError for whatever it says.
    """
    backend = parse_backend(resolved.spec.backend)
    assert backend is not None
    model = open_backend(backend)
    writer = _Writer(model, resolved, train)
    done = answers.recover()
    started = time.perf_counter()
    total = sum(map(len, answers.examples.values()))
    with tqdm(total=total, initial=len(done), desc="generate", unit="row", disable=None) as bar:
        for task, examples in answers.examples.items():
            left = [e for e in examples if (task, e.id) not in done]
            for first in range(0, len(left), _BATCH):
                batch = left[first : first + _BATCH]
                with _trouble(backend):
                    texts = writer.texts(task, batch)
                answers.write(task, [(e.id, text, None, None) for e, text in zip(batch, texts, strict=True)])
                bar.update(len(batch))
                stop.check()
    return GenerationSummary(tokens=None, seconds=time.perf_counter() - started)


def open_backend(backend: Backend) -> LM:
    """The model of lm-eval that a back end names. Raises: UsageError for an unknown name, ModelError."""
    names = list(model_registry.keys())
    if backend.name not in names:
        raise unknown("model of lm-eval", backend.name, names)
    # lm-eval's transformers model asks for CUDA where nobody says anything
    place = {} if "device" in backend.given or torch.cuda.is_available() else {"device": "cpu"}
    with _trouble(backend):
        return get_model(backend.name).create_from_arg_string(backend.arguments, place)


class _Writer:
    """Prompts for a back end, and its texts."""

    def __init__(self, model: LM, resolved: Resolved, train: Rows | None) -> None:
        self.model, self.style = model, resolved.spec.prompt
        self.codec = _Codec(model)
        if self.style == "plain" and isinstance(model, LocalChatCompletion):
            raise UsageError(f"{resolved.spec.backend} takes conversations only: give --prompt chat")
        check_style(self.codec, self.style)
        length = resolved.spec.train.max_length if self.codec.tokenizer else _ENDLESS
        tasks = list(resolved.rows.by_task)
        self.encoder = Encoder(
            tokenizer=self.codec,
            style=self.style,
            eos=self.codec.eos_token_id,
            max_length=min(length, getattr(model, "max_length", None) or length),
            limits=generation_limits(self.codec, train, tasks, resolved.spec.eval.max_new_tokens),
            shots=draw_shots(resolved, train),
            n_shots=resolved.spec.shots,
        )

    def texts(self, task: str, examples: Sequence[Example]) -> list[str]:
        """The texts of some examples of a task."""
        limit = min(self.encoder.limits[task], self.encoder.max_length - self.encoder.room(task))
        requests = []
        for i, example in enumerate(examples):
            settings = {"until": [], "max_gen_toks": limit, "do_sample": False, "temperature": 0.0}
            arguments = (self.prompt(example), settings)
            requests.append(Instance("generate_until", {}, arguments, i, metadata=(task, i, 1)))
        with contextlib.redirect_stdout(sys.stderr):  # some models print
            found = self.model.generate_until(requests)
        texts = [text if isinstance(text, str) else "" for text in found]
        if len(texts) < len(requests):
            raise ValueError(f"{len(texts)} texts for {len(requests)} prompts")
        return texts

    def prompt(self, example: Example) -> str:
        """The prompt as text, without its middle where it is too long for the model."""
        if self.codec.tokenizer is not None:
            ((ids, cut),) = self.encoder.prompts([example])
            if cut:
                return str(self.codec.tokenizer.decode(ids, skip_special_tokens=self.style == "plain"))
        return self.encoder.text(example, self.encoder.n_shots)


class _Codec:
    """What an encoder asks of a tokenizer, answered for a back end; bytes where it shows no tokenizer."""

    def __init__(self, model: LM) -> None:
        shown = isinstance(model, TemplateLM) and not isinstance(model, LocalChatCompletion)
        found = getattr(model, "tokenizer", None) if shown else None
        self.model = model
        self.tokenizer = found if isinstance(found, PreTrainedTokenizerBase) else None

    @property
    def eos_token_id(self) -> int:
        return 0 if self.tokenizer is None else int(self.tokenizer.eos_token_id or 0)

    @property
    def chat_template(self) -> Any:
        return "the server's" if self.tokenizer is None else self.tokenizer.chat_template

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool) -> Any:
        if self.tokenizer is not None:
            return self.tokenizer(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [list(text.encode()) for text in texts]}

    def apply_chat_template(self, turns: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any:
        return self.model.apply_chat_template(turns, add_generation_prompt=add_generation_prompt)


@contextlib.contextmanager
def _trouble(backend: Backend) -> Iterator[None]:
    """Whatever a back end says becomes a ModelError with its name."""
    try:
        yield
    except ImportError as error:
        raise ModelError(
            f"lm-eval:{backend.name} needs packages that are not installed ({error}). For servers: "
            "pip install 'mtlora-harness[api]'; for vLLM: pip install vllm"
        ) from error
    except _TROUBLE as error:
        said = " ".join(str(error).split())[:400].rstrip(".")
        raise ModelError(
            f"lm-eval:{backend.name} failed: {type(error).__name__}: {said}. Texts that were written are kept; the "
            "same command goes on"
        ) from error
