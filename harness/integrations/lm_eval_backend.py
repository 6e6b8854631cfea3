"""lm-eval's models as an inference back end: our prompts, their predictions, our parsers and scores.

``--backend lm-eval:MODEL,key=value,…`` takes the name of one of lm-eval's models and the arguments that lm-eval's own
``--model_args`` takes. Only commands that need lm_eval load this package.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.api.registry import get_model, model_registry
from lm_eval.models.openai_completions import LocalChatCompletion
from transformers import PreTrainedTokenizerBase

from harness.errors import ModelError, UsageError, unknown
from harness.inference import InferenceBackend, InferenceRequest, Message, ModelIdentity
from harness.models.loading import identify

# What lm-eval's models raise for wrong arguments: an unknown one, a value out of range or missing (a key in the
# environment, too), a combination that they assert against, and a model or server that cannot be reached.
_REFUSED_ARGUMENTS = (TypeError, ValueError, AssertionError, OSError)

# What their requests raise: the connection or an HTTP status (requests' and aiohttp's errors), a response that is not
# JSON or lacks the generated text, and too little memory for a model that runs here.
_FAILED_REQUESTS = (OSError, aiohttp.ClientError, json.JSONDecodeError, KeyError, torch.OutOfMemoryError)


@dataclass(frozen=True, kw_only=True)
class LmEvalArguments:
    """The arguments of the back end. model: the name of lm-eval's model class. text: ``key=value,…`` as given."""

    model: str
    text: str

    @classmethod
    def parse(cls, arguments: str) -> LmEvalArguments:
        """``MODEL,key=value,…``. Raises: UsageError without a model, or for a name that lm-eval does not have."""
        name, _, text = arguments.partition(",")
        if not name:
            raise UsageError(
                f"--backend lm-eval:{arguments}: expected lm-eval:MODEL,key=value,… such as "
                "lm-eval:local-completions,base_url=http://localhost:8000/v1/completions,model=NAME"
            )
        names = list(model_registry.keys())
        if name not in names:
            raise unknown("model of lm-eval", name, names)
        return cls(model=name, text=text)

    @property
    def by_key(self) -> Mapping[str, str]:
        pairs = (part.partition("=") for part in self.text.split(",") if part)
        return {key.strip(): value.strip() for key, _, value in pairs}

    def __str__(self) -> str:
        return f"lm-eval:{self.model}"


class LmEvalBackend(InferenceBackend):
    """One of lm-eval's models.

    Where it has a transformers tokenizer, prompts are truncated and limits are measured with it, as for a model that
    is loaded here.
    """

    def __init__(self, arguments: str) -> None:
        self.arguments = LmEvalArguments.parse(arguments)
        # lm-eval's transformers model selects CUDA if no device is given.
        given = "device" in self.arguments.by_key or torch.cuda.is_available()
        with _refusals_named(self.arguments):
            model = get_model(self.arguments.model).create_from_arg_string(
                self.arguments.text, {} if given else {"device": "cpu"}
            )
        self.model: LM = model
        if isinstance(model, LocalChatCompletion):
            self.styles = ("chat",)
        elif isinstance(model, TemplateLM):
            tokenizer = getattr(model, "tokenizer", None)
            if isinstance(tokenizer, PreTrainedTokenizerBase):
                self.tokenizer = _ModelTokenizer(model, tokenizer)
        self.max_length = getattr(model, "max_length", None)

    @classmethod
    def identify(cls, arguments: str) -> ModelIdentity:
        """The model's files where ``pretrained`` names them, otherwise the name that the server has for it."""
        given = LmEvalArguments.parse(arguments)
        pretrained = given.by_key.get("pretrained")
        if pretrained is not None:
            found = identify(pretrained, given.by_key.get("revision"))
            return ModelIdentity(label=f"{found.label} ({given})", fingerprint=f"{given}:{found.fingerprint}")
        name = given.by_key.get("model") or ""
        short = Path(name).name if Path(name).exists() else name
        return ModelIdentity(label=f"{short} ({given})" if name else str(given), fingerprint=f"{given}:{name}")

    @classmethod
    def portable(cls, arguments: str) -> str:
        """The folder that ``pretrained`` names, if it is one, made absolute."""
        name = LmEvalArguments.parse(arguments).by_key.get("pretrained", "")
        if not name or not Path(name).is_dir():
            return arguments
        return arguments.replace(f"pretrained={name}", f"pretrained={Path(name).resolve()}")

    def predict(self, requests: Sequence[InferenceRequest]) -> Sequence[str]:
        with _failures_named(self.arguments), contextlib.redirect_stdout(sys.stderr):  # some models print
            found = self.model.generate_until([self._instance(i, request) for i, request in enumerate(requests)])
        if len(found) != len(requests):
            raise ModelError(f"{self.arguments} returned {len(found)} predictions for {len(requests)} prompts")
        # A model without a prediction (filtered content) gives None.
        return [text if isinstance(text, str) else "" for text in found]

    def _instance(self, index: int, request: InferenceRequest) -> Instance:
        whole = self.tokenizer is None and request.messages
        context = self._rendered(request.messages) if whole else request.prompt
        settings = {"until": [], "max_gen_toks": request.max_new_tokens, "do_sample": False, "temperature": 0.0}
        return Instance("generate_until", {}, (context, settings), index, metadata=(request.task, index, 1))

    def _rendered(self, messages: Sequence[Message]) -> Any:
        """The conversation in the model's own format. Raises: UsageError if the model supports none."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self.model.apply_chat_template(turns, add_generation_prompt=True)
        except NotImplementedError as error:
            raise UsageError(f"{self.arguments} does not support --prompt chat: give --prompt plain") from error


class _ModelTokenizer:
    """A model's tokenizer, but chat templates are applied by the model, which may have settings for them."""

    def __init__(self, model: LM, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer

    @property
    def eos_token_id(self) -> int | None:
        found: int | None = self._tokenizer.eos_token_id
        return found

    @property
    def chat_template(self) -> Any:
        return self._tokenizer.chat_template

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool) -> Any:
        return self._tokenizer(list(texts), add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, turns: Any, *, tokenize: bool, add_generation_prompt: bool, **arguments: Any) -> Any:
        if not arguments:
            return self._model.apply_chat_template(turns, add_generation_prompt=add_generation_prompt)
        # The model does not take arguments with each conversation; those that it was opened with still apply.
        opened_with = getattr(self._model, "chat_template_args", None) or {}
        return self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, **{**opened_with, **arguments}
        )


@contextlib.contextmanager
def _refusals_named(arguments: LmEvalArguments) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ModelError(
            f"{arguments} needs packages that are not installed ({error}). For servers: "
            "pip install 'mtlora-harness[api]'; for vLLM: pip install vllm"
        ) from error
    except _REFUSED_ARGUMENTS as error:
        raise ModelError(
            f"{arguments} failed to open: {_described(error)}. Check its arguments in lm-eval's documentation of models"
        ) from error


@contextlib.contextmanager
def _failures_named(arguments: LmEvalArguments) -> Iterator[None]:
    try:
        yield
    except _FAILED_REQUESTS as error:
        raise ModelError(
            f"{arguments} failed: {_described(error)}. Predictions that were written are kept: run the same command "
            "again to resume"
        ) from error


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400].rstrip('.')}"
