"""A run's model as one of lm-eval's models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from harness.data.chat import render_chat
from harness.data.decode import texts_of
from harness.data.encoding import DEFAULT_LIMIT
from harness.errors import UsageError
from harness.generation.generator import Generator
from harness.generation.requests import Choice, Generated, GenerationRequest
from harness.pipeline.prepare import Prepared

_UNLIMITED = 1 << 30
"""Tokens of context of a model that states no limit."""


class AdaptedLM(TemplateLM):  # type: ignore[misc]
    """A run's model for lm-eval, through our generator.

    Args:
        generator: through the run's adapter, or without it.
        task: the task of the run whose share of the adapter is used for every request.
    """

    def __init__(self, prepared: Prepared, generator: Generator, task: str) -> None:
        super().__init__()
        self.loaded, self.generator, self.task = prepared.loaded, generator, task
        self.tokenizer = prepared.loaded.tokenizer
        self.style, self.template = prepared.encoder.style, prepared.encoder.template
        self.backend = "seq2seq" if prepared.loaded.encoder_decoder else "causal"
        self.max_length = prepared.loaded.max_context or _UNLIMITED

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return render_chat(
            self.tokenizer,
            chat_history,
            self.template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text. The tokenizer adds special tokens unless a chat template has written them."""
        special = self.style == "plain" if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.tokenizer(string, add_special_tokens=special)["input_ids"]
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        choices = []
        for i, (_text, context, continuation) in enumerate(requests):
            whole = [*context, *continuation][-self.max_length :]  # A text that is too long loses its beginning.
            n = min(len(continuation), len(whole) - 1)
            if n:
                choices.append(Choice(id=str(i), task=self.task, prompt=whole[:-n], continuation=whole[-n:]))
        scored = self.generator.likelihoods(choices)
        found = {choice.id: one for choice, one in zip(choices, scored, strict=True)}
        results = [found.get(str(i)) for i in range(len(requests))]
        return [(0.0, True) if x is None else (x.value, x.greedy) for x in results]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        sums = []
        for request in requests:
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            parts = [(None, *utils.make_disjoint_window(window)) for window in windows]
            sums.append(sum(value for value, _ in self._loglikelihood_tokens(parts)))
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts, stops = [], []
        for i, request in enumerate(requests):
            context, given = request.args[0], normalize_gen_kwargs(request.args[1], DEFAULT_LIMIT)
            if given["do_sample"]:
                raise UsageError(
                    f"task {request.task_name} needs sampling, but harness supports only greedy decoding: leave it out"
                )
            most = self.max_length
            limit = given["max_gen_toks"] if given["max_gen_toks"] < most else most // 2
            room = most if self.loaded.encoder_decoder else most - limit
            prompt = self.tok_encode(context)[-room:] or [self.prefix_token_id]
            prompts.append(GenerationRequest(id=str(i), task=self.task, prompt=prompt, limit=limit))
            stops.append([stop for stop in given["until"] if stop])
        texts: dict[str, str] = {}
        with tqdm(total=len(prompts), desc="generate", unit="example", disable=None) as bar:

            def keep(batch: Sequence[Generated]) -> None:
                for one in batch:
                    (texts[one.id],) = texts_of(self.tokenizer, [one.tokens])
                bar.update(len(batch))

            self.generator.run(prompts, keep)
        return [_until(texts[str(i)], stop) for i, stop in enumerate(stops)]


def _until(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
