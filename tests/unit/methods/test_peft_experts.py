"""PEFT LoRAs read in as experts of LoRAHub, MoA, Arrow and Merge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import messages
from safetensors.torch import load_file, save_file

from harness.config.method_config import fingerprints
from harness.errors import BudgetError, ModelError, UsageError
from harness.method import Budget, NamedFolder, Ranks, Trait, named_folder
from harness.testing import promises
from harness.testing.subject import Subject
from harness.testing.toys import TASKS, ToyTrainer, toy_data
from harness.testing.toys import toy_model as small_model
from methods.arrow import Arrow
from methods.lorahub import LoRAHub
from methods.merge import Merge
from methods.moa import MoA

Command = Callable[..., Any]
TOKENS = torch.arange(1, 15).view(2, 7)
PLAIN = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
RANKS = {"rank_pattern": {"layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 5, "layers.0.mlp.up_proj": 1}}
MIXED = {"r": 4, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "up_proj"], **RANKS}


def lora(folder: Path, settings: dict[str, Any], seed: int = 0, make: Callable[[], Any] = small_model) -> Any:
    """A LoRA of random factors that peft made and saved; the model with it."""
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(make(), LoraConfig(**settings), autocast_adapter_dtype=False)
    state = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=state, dtype=torch.float64))
    model.save_pretrained(str(folder))
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    lora(tmp_path / "one", PLAIN)
    lora(tmp_path / "two", MIXED, seed=1)
    return str(tmp_path / "one"), str(tmp_path / "two")


@pytest.mark.long
@pytest.mark.parametrize("settings", [PLAIN, MIXED, {**PLAIN, "use_rslora": True}], ids=["plain", "mixed", "rslora"])
@pytest.mark.parametrize("merge", ["factor", "output"])
def test_a_lora_of_peft_gives_peft_s_logits_in_lorahub(tmp_path: Path, settings: Any, merge: str) -> None:
    expected = logits(lora(tmp_path / "lora", settings))
    lora(tmp_path / "other", PLAIN, seed=5)
    method = LoRAHub(merge=merge, experts=(str(tmp_path / "other"), str(tmp_path / "lora")))
    model: Any = small_model()
    adapter = method.attach(model, list(TASKS), seed=0)
    labels = torch.tensor([1, 1])
    bare = logits(small_model())
    with adapter.route(labels):
        assert (logits(model) - bare).abs().max() < 1e-9, "before a search no LoRA has weight"
    adapter.load_state_dict({**adapter.state_dict(), "hub.weights": torch.tensor([[0.0, 1.0]] * 3).double()})
    with adapter.route(labels):
        assert (logits(model) - expected).abs().max() < 1e-6
    with adapter.apply(adapter.fold(TASKS[1]), merge=True):
        assert (logits(model) - expected).abs().max() < 1e-6
    assert (expected - bare).abs().max() > 1e-3


def test_a_lora_of_another_base_model_is_named_although_its_shapes_are_equal(tmp_path: Path) -> None:
    lora(tmp_path / "lora", PLAIN)
    bases = {"org/toy-1b": False, "/models/TOY-1b/": False, "org/toy-2b": True, None: False}
    bases[str(tmp_path / "models--org--toy-1b" / "snapshots" / "abc")] = False
    for base, differs in bases.items():
        rewrite(tmp_path / "lora", base_model_name_or_path=base)
        for method in (LoRAHub(experts=(str(tmp_path / "lora"),)), MoA(experts=(f"{TASKS[0]}={tmp_path / 'lora'}",))):
            model: Any = small_model()
            model.name_or_path = "org/toy-1b"
            with messages("methods") as lines:
                method.attach(model, list(TASKS), seed=0)
            assert [f"was trained on the base model {base}, and this one is org/toy-1b" in line for line in lines] == (
                [True] if differs else []
            )


def test_a_git_lfs_pointer_is_no_lora(tmp_path: Path) -> None:
    lora(tmp_path / "lora", PLAIN)
    (tmp_path / "lora" / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    model: Any = small_model()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is a Git LFS pointer.*git lfs pull"):
        LoRAHub(experts=(str(tmp_path / "lora"),)).attach(model, list(TASKS), seed=0)


def test_experts_are_mixed_by_factors_of_a_common_rank(two: tuple[str, str]) -> None:
    model: Any = small_model()
    method = LoRAHub(experts=two)
    adapter = method.attach(model, list(TASKS), seed=0)
    assert set(adapter.layers) == {
        f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    }
    weights = torch.tensor([0.5, -1.2], dtype=torch.float64)
    adapter.load_state_dict({**adapter.state_dict(), "hub.weights": weights.repeat(3, 1)})
    files = [load_file(Path(folder) / "adapter_model.safetensors") for folder in two]
    name = "model.layers.1.self_attn.q_proj"
    a, b = ([f[f"base_model.model.{name}.lora_{part}.weight"] for f in files] for part in "AB")
    scales = [6 / 2, 7 / 3**0.5]  # alpha / r; alpha / sqrt(r), r by the rank_pattern
    wide_a = torch.stack([torch.nn.functional.pad(x, (0, 0, 0, 4 - len(x))) for x in a])
    wide_b = torch.stack([torch.nn.functional.pad(s * x, (0, 4 - x.shape[1])) for s, x in zip(scales, b, strict=True)])
    expected = torch.einsum("k,kor->or", weights, wide_b) @ torch.einsum("k,krd->rd", weights, wide_a)
    found = adapter.fold(TASKS[0])[name]
    assert (found.b @ found.a - expected).abs().max() < 1e-9
    assert method.ranks(3).stored == 8
    assert method.ranks(3).active == 4
    with pytest.raises(BudgetError, match="active:4"):
        method.within(Budget(kind="active", rank=3), 3)


def test_a_lora_of_peft_gives_peft_s_logits_in_moa(tmp_path: Path, two: tuple[str, str]) -> None:
    expected = [logits(lora(tmp_path / "again", settings, seed)) for settings, seed in ((PLAIN, 0), (MIXED, 1))]
    bare = logits(small_model())
    for experts in ((f"{TASKS[2]}={two[1]}", f"{TASKS[0]}={two[0]}"), (two[0], two[0], two[1])):
        model: Any = small_model()
        adapter = MoA(rank=5, experts=experts).attach(model, list(TASKS), seed=0)
        for route, wanted in ((0, expected[0]), (2, expected[1]), *([(1, bare)] if len(experts) == 2 else [])):
            with adapter.route(torch.tensor([route, route])):
                assert (logits(model) - wanted).abs().max() < 1e-6


def test_moa_trains_no_lora_alone_that_was_read_in(two: tuple[str, str]) -> None:
    method = MoA(rank=4, experts=(f"{TASKS[0]}={two[0]}", f"{TASKS[2]}={two[1]}"), joint=False)
    model: Any = small_model()
    adapter = method.attach(model, list(TASKS), seed=0)
    start = adapter.state_dict()
    trainer = ToyTrainer(method=method, adapter=adapter, model=model, data=toy_data())
    method.fit(adapter, trainer, list(TASKS))
    assert trainer.finished == [TASKS[1], "together"]
    changed = {n for n, v in adapter.state_dict().items() if not torch.equal(v, start[n])}
    assert {n.partition("proj.")[2] for n in changed} == {f"A.{TASKS[1]}", f"B.{TASKS[1]}", ""}
    assert method.stage_key(TASKS[0], TASKS) is None
    assert method.stage_key(TASKS[1], TASKS) is not None


def test_moa_says_that_the_steps_of_stage_1_are_not_used_if_every_lora_was_read_in(two: tuple[str, str]) -> None:
    for tasks, share in ((2, 0.5), (3, 0.5), (3, 0.0)):
        experts = tuple(f"{task}={two[0]}" for task in TASKS[:tasks])
        method, model = MoA(rank=4, experts=experts, stage1_share=share), small_model()
        adapter = method.attach(model, list(TASKS), seed=0)
        with messages("methods") as lines:
            method.fit(adapter, ToyTrainer(method=method, adapter=adapter, model=model, data=toy_data()), list(TASKS))
        assert ["train.steps (50 %) is not used: set method.stage1_share=0" in line for line in lines] == (
            [True] if (tasks, share) == (3, 0.5) else []
        )


def fitted(method: Any) -> tuple[Any, Any]:
    """The model and the adapter of a method that trains nothing."""
    model: Any = small_model()
    adapter = method.attach(model, list(TASKS), seed=0)
    trainer = ToyTrainer(method=method, adapter=adapter, model=model, data=toy_data())
    method.fit(adapter, trainer, list(TASKS))
    assert not [stage for stage in trainer.finished if stage in TASKS]
    return model, adapter


def updates(folders: tuple[str, ...]) -> list[dict[str, torch.Tensor]]:
    """The updates B A of each folder by module, as PEFT merges them; (d_out, d_in)."""
    from peft import PeftModel

    found = []
    for folder in folders:
        bare: Any = small_model()
        before = {n: p.clone() for n, p in bare.named_parameters()}
        merged = PeftModel.from_pretrained(bare, folder, autocast_adapter_dtype=False).merge_and_unload()
        found.append({n.removesuffix(".weight"): p.detach() - before[n] for n, p in merged.named_parameters()})
    return found


def test_a_lora_of_peft_gives_peft_s_logits_in_arrow_with_one_folder(tmp_path: Path) -> None:
    expected = logits(lora(tmp_path / "lora", MIXED))
    model, adapter = fitted(Arrow(experts=(str(tmp_path / "lora"),)))
    with adapter.route(torch.tensor([2, 0])):
        assert (logits(model) - expected).abs().max() < 1e-9


def test_arrow_weighs_folders_by_the_directions_of_their_updates(two: tuple[str, str]) -> None:
    """One layer by hand; a folder without a LoRA of the layer takes no part in it."""
    _, adapter = fitted(Arrow(experts=two, top_k=None, temperature=0.5))
    one, other = updates(two)
    x = torch.randn(1, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    name = "model.layers.0.self_attn.q_proj"
    deltas = [one[name], other[name]]
    directions = [torch.linalg.svd(d)[2][0] for d in deltas]
    weights = torch.stack([(x @ v).abs() / 0.5 for v in directions], -1).softmax(-1)
    expected = sum(weights[..., i, None] * (x @ d.T) for i, d in enumerate(deltas))
    layer = adapter.layers[name]
    with adapter.route(torch.tensor([1])):
        found = layer.delta(torch.zeros(5, deltas[0].shape[0], dtype=torch.float64), x)
    assert (found - expected[0]).abs().max() < 1e-9
    up = adapter.layers["model.layers.0.mlp.up_proj"]
    with adapter.route(torch.tensor([1])):
        assert torch.equal(up.token_weights(x), torch.tensor([0.0, 1.0], dtype=torch.float64).expand(1, 5, 2))


@pytest.mark.parametrize("weight", [None, 0.7])
def test_folders_are_merged_to_the_nearest_lora_of_the_mean_or_sum_of_their_updates(
    two: tuple[str, str], weight: float | None
) -> None:
    method = Merge(experts=two, how="uniform" if weight is None else "task_arithmetic", weight=weight)
    _, adapter = fitted(method)
    one, other = updates(two)
    assert set(adapter.layers) == {name for name in one if bool(one[name].any() or other[name].any())}
    for name in adapter.layers:
        u, s, v = torch.linalg.svd((0.5 if weight is None else weight) * (one[name] + other[name]), full_matrices=False)
        fold = adapter.fold(TASKS[1])[name]
        nearest = u[:, :4] @ torch.diag(s[:4]) @ v[:4]
        assert (fold.b @ fold.a - nearest).abs().max() < 1e-9, name
    assert method.ranks(3) == Ranks(stored=12, active=4)
    assert method.stage_key(TASKS[0], TASKS) is None
    assert method.kept_stages(TASKS) == ()


def test_factors_of_unequal_ranks_are_not_summed(two: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=r"method\.on=factor needs LoRAs of one rank: for .*one has 2, and .*two has"):
        Merge(experts=two, on="factor").attach(small_model(), list(TASKS), seed=0)
    _, adapter = fitted(Merge(experts=(two[0], two[0]), on="factor"))
    (one,) = updates(two[:1])
    fold = adapter.fold(TASKS[0])["model.layers.1.self_attn.v_proj"]
    assert (fold.b @ fold.a - one["model.layers.1.self_attn.v_proj"]).abs().max() < 1e-9  # the mean of equal LoRAs


@pytest.mark.parametrize("method", [LoRAHub, Arrow, Merge])
def test_a_budget_is_kept_by_loras_whose_rank_is_as_it_is(two: tuple[str, str], method: Any) -> None:
    made = method(experts=two)
    used = made.ranks(3).active
    assert made.within(Budget(kind="active", rank=used), 3) == made
    assert made.within(Budget(kind="active", rank=100), 3) == made
    with pytest.raises(BudgetError, match=f"active:{used}"):
        made.within(Budget(kind="active", rank=used - 1), 3)


@pytest.mark.long
@pytest.mark.parametrize("method", [LoRAHub, MoA, Merge, Arrow])
def test_methods_with_experts_keep_the_contract(two: tuple[str, str], method: Any) -> None:
    made = MoA(rank=4, experts=(f"{TASKS[1]}={two[1]}",)) if method is MoA else method(experts=two)
    for check in (
        promises.fields_survive_json,
        promises.off_is_the_base_and_detach_gives_it_back,
        promises.adapters_are_saved_and_loaded,
        promises.a_sequence_does_not_depend_on_the_others_in_its_batch,
        promises.routing_tokens_equals_routing_sequences,
        *((promises.a_fold_is_its_route,) if Trait.FOLDS in made.traits else ()),
        *((promises.fit_learns_the_same_twice_and_leaves_the_base_alone,) if method in (LoRAHub, MoA) else ()),
    ):
        check(Subject(made, small_model))


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_weights_that_must_be_unpickled_are_not_read(two: tuple[str, str]) -> None:
    file = Path(two[0]) / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    for method in (LoRAHub, Arrow, Merge):
        with pytest.raises(UsageError, match=r"has no adapter_model\.safetensors\. Give folders with"):
            fingerprints(method(experts=two))


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"r": 5}, "has rank 2, but adapter_config.json states 5"),
    ],
    ids=str,
)
def test_what_is_more_than_a_plain_lora_is_refused(two: tuple[str, str], changes: Any, said: str) -> None:
    rewrite(Path(two[0]), **changes)
    methods = [made(experts=two) for made in (LoRAHub, Arrow, Merge)]
    for method in (*methods, MoA(rank=8, experts=(f"{TASKS[0]}={two[0]}",))):
        with pytest.raises(ModelError, match=said):
            method.attach(small_model(), list(TASKS), seed=0)


def test_tensors_that_do_not_fit_are_named(two: tuple[str, str]) -> None:
    file = Path(two[0]) / "adapter_model.safetensors"
    state = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for changed, said in (
        ({**state, "base_model.model.lm_head.weight": torch.ones(2)}, "lm_head.weight, which is not a LoRA"),
        ({**state, name: torch.ones(2, 17)}, "was trained on another base model: model.layers.0.self_attn.q_proj"),
        ({n: v for n, v in state.items() if n != name}, "not A"),
        ({n.replace("q_proj", "query"): v for n, v in state.items()}, "adapts model.layers.0.self_attn.query"),
    ):
        save_file(changed, file)
        for method in (LoRAHub, Arrow, Merge):
            with pytest.raises(ModelError, match=said):
                method(experts=two).attach(small_model(), list(TASKS), seed=0)
    file.write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        LoRAHub(experts=two).attach(small_model(), list(TASKS), seed=0)


def test_moa_must_know_whose_experts_they_are(two: tuple[str, str]) -> None:
    one, other = two
    for experts, said in (
        (two, "2 folders for 3 tasks"),
        ((f"first={one}", other), "each task once"),
        ((f"first={one}", f"first={other}"), "each task once"),
        ((f"frist={one}",), "Did you mean 'first'"),
        ((f"first={other}",), "set method.rank=4"),
    ):
        with pytest.raises(UsageError, match=said):
            MoA(rank=3 if "rank" in said else 4, experts=experts).attach(small_model(), list(TASKS), seed=0)


def test_folders_are_known_by_their_content_and_not_by_their_path(two: tuple[str, str], tmp_path: Path) -> None:
    before = fingerprints(LoRAHub(experts=two))
    shutil.copytree(two[0], tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("says nothing")
    assert fingerprints(LoRAHub(experts=(str(tmp_path / "moved"), two[1]))) == before
    assert fingerprints(LoRAHub(experts=(two[1], two[0]))) == {"experts": before["experts"][::-1]}
    assert fingerprints(MoA(experts=(f"first={two[0]}",))) == {"experts": (f"first={before['experts'][0]}",)}
    assert fingerprints(LoRAHub()) == {}
    rewrite(tmp_path / "moved", lora_alpha=9)
    assert fingerprints(LoRAHub(experts=(str(tmp_path / "moved"), two[1]))) != before
    assert named_folder("a=/x/y") == NamedFolder(name="a", path=Path("/x/y"))
    assert named_folder("/x=1/y") == NamedFolder(name=None, path=Path("/x=1/y"))


@pytest.mark.long
def test_a_run_reads_experts_and_is_the_same_run_wherever_they_are(
    toy_run: Command, harness: Command, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    for i, name in enumerate(("one", "two")):
        lora(tmp_path / name, MIXED, seed=i, make=lambda: AutoModelForCausalLM.from_pretrained(toy_model))
    monkeypatch.chdir(tmp_path)
    hub = ("--method", "lorahub", "--set", "method.steps=4", "--set", "method.shots=2", "--json")
    done = toy_run(*hub, "--set", "method.experts=one,two")
    assert done.status == 0, done.err
    record, run = done.json["record"], Path(done.json["directory"])
    assert record["training"]["steps"] == 0
    assert sorted(json.loads((run / "artefacts" / "gates.json").read_text())["hub"]) == ["colour", "first", "last"]
    assert json.loads((run / "artefacts" / "experts.json").read_text()) == [str(tmp_path / n) for n in ("one", "two")]
    monkeypatch.chdir("/")
    again = harness("evaluate", run, "--split", "dev", "--json")
    assert again.status == 0, again.err

    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere")
    same = toy_run(*hub, "--set", f"method.experts={tmp_path / 'elsewhere'},{tmp_path / 'two'}")
    assert same.json["directory"] == str(run)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    rewrite(tmp_path / "elsewhere", lora_alpha=1)
    other = toy_run(*hub, "--set", f"method.experts={tmp_path / 'elsewhere'},{tmp_path / 'two'}")
    assert other.json["record"]["run_id"] != record["run_id"]
    rewrite(tmp_path / "one", lora_alpha=1)
    changed = harness("evaluate", run)
    assert (changed.status, "has changed (experts)" in changed.err) == (1, True), changed.err
    shutil.rmtree(tmp_path / "one")
    gone = harness("evaluate", run)
    assert (gone.status, "method.experts" in gone.err, "is not a folder" in gone.err) == (2, True, True)


@pytest.mark.long
@pytest.mark.parametrize("method", ["arrow", "merge"])
def test_a_run_makes_one_adapter_of_folders_without_training(
    toy_run: Command, harness: Command, toy_model: Path, tmp_path: Path, method: str
) -> None:
    from transformers import AutoModelForCausalLM

    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        lora(folder, PLAIN, seed=seed, make=lambda: AutoModelForCausalLM.from_pretrained(toy_model))
    keys = ("--set", f"method.experts={folders[0]},{folders[1]}", "--budget", "active:16", "--json")
    done = toy_run("--method", method, *keys)
    assert done.status == 0, done.err
    run = Path(done.json["directory"])
    assert done.json["record"]["training"]["steps"] == 0
    assert json.loads((run / "artefacts" / "experts.json").read_text()) == list(map(str, folders))
    assert toy_run("--method", method, *keys).json["directory"] == str(run)
    exported = harness("export", run, "--task", "last", "--out", tmp_path / "merged")
    assert (exported.status == 0) == (method == "merge"), exported.err


@pytest.mark.long
def test_an_export_of_one_run_is_an_expert_of_another(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    first = Path(toy_run("--method", "cgc_lora", "--set", "train.lr=0.05", "--json").json["directory"])
    assert harness("export", first, "--task", "colour", "--out", tmp_path / "lora").status == 0
    keys = ("--set", f"method.experts=colour={tmp_path / 'lora'}", "--set", "method.joint=false")
    done = toy_run("--method", "moa", *keys, "--set", "method.routing=label", "--tasks", "colour,last", "--json")
    assert done.status == 0, done.err
    texts = [(Path(r) / "predictions" / "colour.jsonl").read_text() for r in (first, done.json["directory"])]
    assert texts[0] == texts[1]
