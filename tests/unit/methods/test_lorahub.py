"""LoRAHub's search: what it minimises, what it saves, how it resumes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import HarnessError, UsageError
from harness.testing.toys import TASKS, ToyTrainer, perturb, toy_data, toy_model
from methods.lorahub import LoRAHub

pytestmark = pytest.mark.numeric

SMALL = LoRAHub(rank=2, steps=15)
BEST = np.array([0.5, -0.2, 1.0])


class Stopped(Exception):
    """The process was killed."""


class Bowl(ToyTrainer):
    """A loss that is known: the squared distance of the asked task's weights from the best ones."""

    stop_after: int | None = None

    def train(self, stage: str, parameters: Any = None, tasks: Any = None, share: float = 1.0) -> None:
        self.finish(stage)

    def loss(self, examples: Any) -> float:
        if self.stop_after is not None:
            self.stop_after -= 1
            if self.stop_after < 0:
                raise Stopped
        (task,) = {e.task for e in examples}
        weights: Any = self.adapter.state_dict()["hub.weights"][list(self.data).index(task)]
        return float(((weights.numpy() - BEST) ** 2).sum())


def bowl(method: LoRAHub, **options: Any) -> Bowl:
    model = toy_model()
    adapter = method.attach(model, list(TASKS), seed=0)
    return Bowl(method=method, adapter=adapter, model=model, data=toy_data(), **options)


def fit(found: ToyTrainer) -> None:
    found.method.fit(found.adapter, found, list(found.data))


def test_the_search_starts_at_zero_and_ends_at_its_best_trial_or_better() -> None:
    found = bowl(LoRAHub(rank=2, exclude_target=False))
    fit(found)
    for task in TASKS:
        trials = found.artefacts["trials"][task]
        assert len(trials) == 40
        assert trials[0][0] == [0.0, 0.0, 0.0]
        for weights, value in trials:
            expected = ((np.array(weights) - BEST) ** 2).sum() + 0.05 * np.abs(weights).mean()
            assert value == pytest.approx(expected, abs=1e-9)
            assert np.abs(weights).max() <= 1.5
        chosen = np.array(found.artefacts["gates"]["hub"][task])
        value = ((chosen - BEST) ** 2).sum() + 0.05 * np.abs(chosen).mean()
        assert value <= min(v for _, v in trials) + 1e-6
        assert value < 0.5 * trials[0][1]


def test_a_search_that_fails_leaves_no_thread_behind_that_would_keep_the_process_alive() -> None:
    before = set(threading.enumerate())
    found = bowl(SMALL)
    found.stop_after = 4
    with pytest.raises(Stopped) as kept:  # and with it the traceback, with all its frames
        fit(found)
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in left), kept


@pytest.mark.long
@pytest.mark.parametrize("killed_at", [3, 12, 20])
def test_a_search_that_was_killed_resumes_to_the_same_weights(killed_at: int) -> None:
    whole = bowl(SMALL)
    fit(whole)
    part = bowl(SMALL)
    part.stop_after = killed_at
    with pytest.raises(Stopped):
        fit(part)
    again = bowl(SMALL, finished=part.finished, remembered=part.remembered)
    again.adapter.load_state_dict(part.adapter.state_dict())
    fit(again)
    assert again.artefacts == whole.artefacts


def test_trials_of_another_optimiser_stop_the_search() -> None:
    found = bowl(SMALL, remembered={"search-first": [[[0.1, 0.2], 1.0]]})
    with pytest.raises(
        HarnessError, match="search-first cannot be resumed: nevergrad proposes other weights at trial 1"
    ):
        fit(found)


def test_without_the_target_s_lora_its_weight_is_zero() -> None:
    found = bowl(LoRAHub(rank=2, steps=15))
    fit(found)
    weights = found.adapter.state_dict()["hub.weights"]
    assert not weights.diagonal().any()
    assert {len(w) for w, _ in found.artefacts["trials"]["first"]} == {2}


def test_a_task_without_any_other_lora_uses_its_own() -> None:
    method = LoRAHub(rank=2, steps=3)
    model = toy_model()
    adapter = method.attach(model, TASKS[:1], seed=0)
    fit(Bowl(method=method, adapter=adapter, model=model, data={TASKS[0]: toy_data()[TASKS[0]]}))
    assert adapter.state_dict()["hub.weights"].tolist() == [[1.0]]


def test_a_task_without_examples_uses_its_own_lora() -> None:
    found = bowl(SMALL)
    found.data = {**toy_data(), TASKS[1]: []}
    fit(found)
    weights = found.adapter.state_dict()["hub.weights"]
    assert weights[1].tolist() == [0.0, 1.0, 0.0]
    assert found.artefacts["trials"][TASKS[1]] is None


def test_stage_one_trains_loras_unmixed_even_when_weights_are_there_already() -> None:
    model = toy_model()
    adapter = SMALL.attach(model, list(TASKS), seed=0)
    perturb(adapter)
    tokens, labels = torch.ones(3, 4, dtype=torch.long), torch.tensor([0, 1, 2])

    def logits() -> torch.Tensor:
        with adapter.route(labels):
            return model(input_ids=tokens).logits.detach()

    own = logits()
    state = adapter.state_dict()
    adapter.load_state_dict({**state, "hub.weights": torch.rand(3, 3, dtype=torch.float64)})
    mixed = logits()
    with adapter.without_mixture():
        assert (logits() - own).abs().max() < 1e-6
    assert torch.equal(logits(), mixed)
    assert (mixed - own).abs().max() > 1e-4


def test_loras_of_tasks_without_training_examples_are_in_no_mixture() -> None:
    found = bowl(LoRAHub(rank=2, steps=3, exclude_target=False))
    found.data = {**toy_data(), TASKS[1]: []}
    fit(found)
    weights = found.adapter.state_dict()["hub.weights"]
    assert [bool(weights[i, 1]) for i in (0, 2)] == [False, False]


def test_a_number_of_modules_is_drawn_for_each_task_and_seed() -> None:
    tasks = [f"t{i}" for i in range(12)]
    drawn = {}
    for seed in (0, 1):
        trainer = ToyTrainer(
            method=LoRAHub(),
            adapter=None,
            model=toy_model(),
            data=dict.fromkeys(tasks, toy_data()[TASKS[0]]),
            seed=seed,
        )
        drawn[seed] = [LoRAHub(n_modules=4).sources(trainer, tasks, task) for task in tasks]
    for task, sources in enumerate(drawn[0]):
        assert len(set(sources)) == 4
        assert sources == sorted(sources)
        assert task not in sources
    assert drawn[0] != drawn[1]
    assert len({tuple(s) for s in drawn[0]}) > 1
    with pytest.raises(UsageError, match="11 LoRAs"):
        LoRAHub(n_modules=12).sources(trainer, tasks, "t0")
