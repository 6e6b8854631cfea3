"""The model's answers to examples: generated texts, and choices where a task is answered by choosing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.choosing import Choice
from harness.data.encoding import Encoder
from harness.generation.generator import Generator
from harness.generation.predictions import Completion, PredictionKey
from harness.generation.requests import ChoiceRequest, Generated, GenerationRequest, GenerationStats, Scored
from harness.runtime.distributed import ProcessGroup
from harness.task import Example, Task

OnAnswers = Callable[[str, Sequence[Completion]], None]


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How the examples of some tasks are answered.

    tasks: by name, those of the examples at least.
    """

    generator: Generator
    encoder: Encoder
    tasks: Mapping[str, Task]

    @property
    def processes(self) -> ProcessGroup:
        """The ranks that share the work."""
        return self.generator.processes

    def answer(
        self,
        examples: Mapping[str, Sequence[Example]],
        on_answers: OnAnswers,
        finished: Collection[PredictionKey] = frozenset(),
        on_finished: Callable[[int], object] = lambda n: None,
    ) -> GenerationStats:
        """Answer this rank's share of the examples of each task, by task.

        Args:
            on_answers: called with a task and its answers, as soon as a batch is complete.
            finished: answers that exist already; they are passed to ``on_answers`` again only as part of a batch that
                is not complete.
            on_finished: called with the number of examples that have just been answered.

        Raises: ModelError as the generator and the encoder do.
        """
        choosing = {t: e for t, e in examples.items() if self.tasks[t].answer == "choose"}
        generating = {t: e for t, e in examples.items() if t not in choosing}
        stats = GenerationStats()
        if generating or not choosing:
            stats = self._generate(generating, on_answers, finished, on_finished)
        if choosing:
            stats = _sum(stats, self._choose(choosing, on_answers, finished, on_finished))
        return stats

    def _generate(
        self,
        examples: Mapping[str, Sequence[Example]],
        on_answers: OnAnswers,
        finished: Collection[PredictionKey],
        on_finished: Callable[[int], object],
    ) -> GenerationStats:
        prompts = {task: self.encoder.prompts(of_task) for task, of_task in examples.items()}
        requests = [
            GenerationRequest(
                id=example.id, task=task, prompt=prompt.tokens, limit=self.encoder.limit(task, prompt.tokens)
            )
            for task, of_task in examples.items()
            for example, prompt in zip(of_task, prompts[task], strict=True)
        ]

        def keep(batch: Sequence[Generated]) -> None:
            for task in dict.fromkeys(g.task for g in batch):
                own = [g for g in batch if g.task == task]
                texts = self.encoder.texts([g.tokens for g in own])
                completions = [
                    Completion(id=g.id, text=text, tokens=len(g.tokens), truncated=g.truncated)
                    for g, text in zip(own, texts, strict=True)
                ]
                on_answers(task, completions)

        stats = self.generator.run(requests, keep, finished=finished, on_finished=on_finished)
        return replace(stats, truncated_prompts=sum(p.truncated for of_task in prompts.values() for p in of_task))

    def _choose(
        self,
        examples: Mapping[str, Sequence[Example]],
        on_answers: OnAnswers,
        finished: Collection[PredictionKey],
        on_finished: Callable[[int], object],
    ) -> GenerationStats:
        choices = {task: self.encoder.choices(of_task) for task, of_task in examples.items()}
        requests = [
            ChoiceRequest(id=example.id, task=task, prompt=encoded.prompt.tokens, continuations=encoded.choices)
            for task, of_task in examples.items()
            for example, encoded in zip(of_task, choices[task], strict=True)
        ]
        by_key = {PredictionKey(t, e.id): e for t, of_task in examples.items() for e in of_task}

        def keep(batch: Sequence[Scored]) -> None:
            for task in dict.fromkeys(scored.task for scored in batch):
                own = [scored for scored in batch if scored.task == task]
                on_answers(task, [_completion(scored, by_key[scored.key]) for scored in own])

        stats = self.generator.choose(requests, keep, finished=finished, on_finished=on_finished)
        return replace(
            stats, truncated_prompts=sum(e.prompt.truncated for of_task in choices.values() for e in of_task)
        )


def _completion(scored: Scored, example: Example) -> Completion:
    choice = Choice(
        log_likelihoods=tuple(one.value for one in scored.likelihoods),
        greedy=tuple(one.greedy for one in scored.likelihoods),
    )
    return Completion(id=scored.id, text=choice.text(example), tokens=0, truncated=False)


def _sum(one: GenerationStats, two: GenerationStats) -> GenerationStats:
    """The cost of both. Prompts that a label-free adapter has routed are those of different tasks."""
    chosen = None if one.chosen is None and two.chosen is None else {**(one.chosen or {}), **(two.chosen or {})}
    return replace(
        one,
        tokens=one.tokens + two.tokens,
        seconds=one.seconds + two.seconds,
        switches=one.switches + two.switches,
        halved=one.halved + two.halved,
        unfolded=one.unfolded + two.unfolded,
        truncated_prompts=one.truncated_prompts + two.truncated_prompts,
        choices=one.choices + two.choices,
        chosen=chosen,
    )
