"""Methods that need no training."""

from __future__ import annotations

import pytest
import torch

from harness.task import Example
from harness.testing.toys import toy_model
from methods.majority import Majority
from methods.nearest import Nearest
from methods.no_finetune import NoFinetune

pytestmark = pytest.mark.numeric


def example(prompt: str, target: str = "") -> Example:
    return Example(id=prompt, task="t", prompt=prompt, target=target)


def test_the_majority_answers_as_most_do_and_breaks_ties_by_the_text() -> None:
    ask = [example("?"), example("!")]
    rows = [example("1", "b"), example("2", "a"), example("3", "b"), example("4", "a"), example("5", "c")]
    assert Majority().predict(ask, rows) == ["a", "a"]
    assert Majority().predict(ask, rows[::-1]) == ["a", "a"]
    assert Majority().predict(ask, [*rows, example("6", "c"), example("7", "c")]) == ["c", "c"]


def test_nearest_is_the_cosine_of_sklearn_s_own_tf_idf(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    monkeypatch.setattr("methods.nearest.PIECE", 7)  # so that train rows and questions come in several pieces
    generator = torch.Generator().manual_seed(0)
    texts = ["".join(chr(97 + int(c)) for c in torch.randint(0, 6, (9,), generator=generator)) for _ in range(60)]
    train = [example(text, str(i)) for i, text in enumerate(texts[:40])]
    asked = [example(text) for text in texts[40:]]
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), lowercase=False).fit(texts[:40])
    similar = (vectorizer.transform(texts[40:]) @ vectorizer.transform(texts[:40]).T).toarray()
    assert Nearest().predict(asked, train) == [str(i) for i in similar.argmax(1)]


def test_nearest_takes_the_first_of_equals_and_answers_strangers_too() -> None:
    train = [example("apple", "1"), example("banana", "2"), example("banana", "3"), example("", "4")]
    asked = [example("banana"), example("apple"), example("xyz"), example("")]
    assert Nearest().predict(asked, train) == ["2", "1", "1", "1"]
    assert Nearest().predict(asked[:1], [example("", "only")]) == ["only"]


def test_without_fine_tuning_there_is_nothing_to_save_and_nothing_changes() -> None:
    model = toy_model()
    tokens = torch.arange(6)[None]
    base = model(input_ids=tokens).logits
    adapter = NoFinetune().attach(model, ["a"], seed=0)
    assert adapter.state_dict() == {}
    with adapter.route(torch.tensor([0])):
        assert torch.equal(model(input_ids=tokens).logits, base)
