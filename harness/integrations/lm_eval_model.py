"""Our model as one of lm-eval's, and our tasks as lm-eval's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from harness.data.encoding import DEFAULT_LIMIT
from harness.errors import UsageError
from harness.generation.generator import Choice, Generated, Generator, Request
from harness.pipeline.prepare import Prepared
from harness.scoring import statistics as stats
from harness.scoring.judge import judge
from harness.task import Example, Suite, Task

_ENDLESS = 1 << 30  # tokens of context of a model that states no limit


Row = Mapping[str, Any]


def suite_tasks(
    suite: Suite, examples: Mapping[str, Sequence[Example]], limits: Mapping[str, int] | None = None
) -> list[ConfigurableTask]:
    """Tasks of a suite for ``lm_eval.simple_evaluate(tasks=…)``: equal texts have equal scores there and here.

    Args:
        examples: by task, as ``Rows.of`` gives them. limits: tokens that may be generated, by task.

    Metrics are named ``<protocol>/<headline>``.
    """
    limits = limits or {}
    return [_task(suite.tasks[t], rows, limits.get(t, DEFAULT_LIMIT)) for t, rows in examples.items() if rows]


def _task(task: Task, examples: Sequence[Example], limit: int) -> ConfigurableTask:
    names = {f"{protocol}/{rule.headline}": protocol for protocol, rule in task.protocols.items()}
    docs = Dataset.from_dict({"row": list(range(len(examples))), "prompt": [e.prompt for e in examples]})

    def aggregation(name: str) -> Callable[[Sequence[tuple[int, str]]], float]:
        def score(items: Sequence[tuple[int, str]]) -> float:
            rows, texts = zip(*items, strict=True)
            judged = judge(task, names[name], [examples[i] for i in rows], texts)
            return float(stats.metrics(judged.statistics)[name.split("/", 1)[1]])

        return score

    def process_results(doc: Row, results: Sequence[str]) -> dict[str, tuple[int, str]]:
        return dict.fromkeys(names, (doc["row"], results[0]))

    return ConfigurableTask(
        config={
            "task": task.name,
            "custom_dataset": lambda **_: {"test": docs},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": lambda doc: doc["prompt"],
            "doc_to_target": lambda doc: examples[doc["row"]].target,
            "process_results": process_results,
            "metric_list": [{"metric": n, "aggregation": aggregation(n), "higher_is_better": True} for n in names],
            "generation_kwargs": {"until": [], "max_gen_toks": limit, "do_sample": False},
            "num_fewshot": 0,
            "metadata": {"version": task.version},
        }
    )


class AdaptedLM(TemplateLM):  # type: ignore[misc]
    """A run's model for lm-eval, through our generator.

    Args:
        route: the index of the task whose share of the adapter is used for every request.
    """

    def __init__(self, prepared: Prepared, texts: Generator, route: int) -> None:
        super().__init__()
        self.loaded, self.texts, self.route = prepared.loaded, texts, route
        self.tokenizer = prepared.loaded.tokenizer
        self.style = prepared.encoder.style
        self.backend = "seq2seq" if prepared.loaded.encoder_decoder else "causal"
        self.max_length = prepared.loaded.max_context or _ENDLESS

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
        rendered: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return rendered

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Special tokens as in the run: those of the tokenizer, or of the chat template, which are in the text."""
        special = self.style == "plain" if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.tokenizer(string, add_special_tokens=special)["input_ids"]
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        choices = []
        for i, (_text, context, continuation) in enumerate(requests):
            whole = [*context, *continuation][-self.max_length :]  # too long: the beginning goes
            n = min(len(continuation), len(whole) - 1)
            if n:
                choices.append(Choice(id=str(i), route=self.route, prompt=whole[:-n], continuation=whole[-n:]))
        found = self.texts.likelihoods(choices)
        results = [found.get((self.route, str(i))) for i in range(len(requests))]
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
        asked, stops = [], []
        for i, request in enumerate(requests):
            context, given = request.args[0], normalize_gen_kwargs(request.args[1], DEFAULT_LIMIT)
            if given["do_sample"]:
                raise UsageError(f"task {request.task_name} asks for sampled texts; a run generates greedily only")
            most = self.max_length
            limit = given["max_gen_toks"] if given["max_gen_toks"] < most else most // 2
            room = most if self.loaded.encoder_decoder else most - limit
            prompt = self.tok_encode(context)[-room:] or [self.prefix_token_id]
            asked.append(Request(id=str(i), route=self.route, prompt=prompt, limit=limit))
            stops.append([stop for stop in given["until"] if stop])
        made: dict[str, str] = {}
        with tqdm(total=len(asked), desc="generate", unit="row", disable=None) as bar:

            def keep(batch: Sequence[Generated]) -> None:
                for one in batch:
                    made[one.id] = self.tokenizer.decode(list(one.tokens), skip_special_tokens=True)
                bar.update(len(batch))

            self.texts.run(asked, keep)
        return [_until(made[str(i)], stop) for i, stop in enumerate(stops)]


def _until(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
