"""Mixture-of-LoRAs (MoA, arXiv 2403.03432): a LoRA for each domain (task), and routers that choose one from the prompt.

The routers read the hidden states of the base model. From states that the label's LoRA has changed, a router would
learn which LoRA is active and nothing about the prompt.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import ModelError, UsageError, unknown
from harness.masks import causal_mask
from harness.method import Adapter, Method, Ranks, Start, Trainer, Trait, named_folder
from harness.transfer import to_device
from methods.base import (
    AdaptedLinear,
    LoRAAdapter,
    LoRAMethod,
    Parts,
    TargetModule,
    TaskLinear,
    alone_stage,
    require_choice,
    require_target_layers,
    train_alone,
)
from methods.layers.peft_io import FILES, peft_rank, read_peft
from methods.layers.prompt_routers import PromptScores, RouterGate, Routers, prepare_routers
from methods.lora_single import LoRASingle

LOG = logging.getLogger(__name__)

ROUTERS = "routers.weight"
LOAD = "load"  # The stage that loads what another run has trained.
PASS_TOKENS = 8192  # Tokens in one pass that reads prompts, including padding.


class MoAAdapter(LoRAAdapter):
    """LoRAs chosen by label, or by the routers from a pass of the base model over the prompt."""

    def __init__(self, parts: Parts, method: MoA) -> None:
        config = getattr(parts.model, "config", None)
        if config is None or not hasattr(config, "get_text_config"):
            raise ModelError(
                f"moa reads the hidden states of a transformers model, and {type(parts.model).__name__} is not one"
            )
        config = config.get_text_config()
        first = next(iter(parts.layers.values()))
        routers = Routers(config.num_hidden_layers, config.hidden_size, parts.tasks, parts.seed)
        # The routers are a submodule of an adapted layer, so that whatever moves or wraps the model includes them.
        first.routers = routers.to(first.weight.device, next(iter(first.factors().values())).dtype)
        super().__init__(replace(parts, modules={**parts.modules, "routers": first.routers}))
        self.method = method
        self.routers = routers
        self.prompt_scores = PromptScores()
        self.reads_prompts = True
        for module in self.modules.values():
            if isinstance(module, RouterGate):
                module.prompt_scores = self.prompt_scores

    @contextmanager
    def route(self, labels: Tensor, examples: Tensor | None = None) -> Iterator[None]:
        with super().route(labels, examples):
            try:
                yield
            finally:
                self.prompt_scores.scores = self.prompt_scores.owner = None

    def load_start(self, start: Start) -> None:
        """Load the LoRAs and the router weights of the tasks that another run has in common with this one."""
        both = [task for task in self.tasks if task in start.tasks]
        names = [name for task in both for name in self.task_parameters(task)]
        state = dict(start.state)
        if ROUTERS in state:
            weight = self.routers.weight.detach().clone()
            here, there = ([tasks.index(task) for task in both] for tasks in (self.tasks, start.tasks))
            weight[:, here] = state[ROUTERS][:, there].to(weight)
            state[ROUTERS] = weight
            names.append(ROUTERS)
        self.load_partial(state, names)

    @contextmanager
    def ignore_prompts(self) -> Iterator[None]:
        """While open, prompts are not read and each sequence uses the LoRA of its label: only LoRAs are trained."""
        self.reads_prompts = False
        try:
            with self.without_mixture():
                yield
        finally:
            self.reads_prompts = True

    def read(self, prompts: Sequence[Tensor], owner: Tensor) -> None:
        if self.reads_prompts:
            owner = owner.reshape(-1).to(self.device)
            labels = self._labels(owner, len(prompts)) if self.method.router_input == "adapted" else None
            with torch.set_grad_enabled(self.method.router_grad == "adapter" and torch.is_grad_enabled()):
                states = self.pooled(prompts, labels)
            self.prompt_scores.scores = self.routers(states)
            self.prompt_scores.owner = owner
            if torch.is_grad_enabled():
                uses = Counter(gate for layer in self.layers.values() for gate in layer.gates())
                prepare_routers(
                    {gate: n for gate, n in uses.items() if isinstance(gate, RouterGate)}, self.prompt_scores
                )

    def _labels(self, owner: Tensor, n: int) -> Tensor:
        """The label of each of n prompts, from the sequences or tokens that belong to it."""
        labels = self.current_route.labels
        if labels is None:
            raise RuntimeError("prompts are read inside a route: enter adapter.route(labels) first")
        # Filling has no prompt and writes to a place of its own: to leave it out, the host would wait for its number.
        place = torch.where(owner < 0, n, owner)
        return labels.new_zeros(n + 1).scatter(0, place, labels)[:n]

    def penalty(self) -> Tensor:
        """eta times the cross-entropy of the prompts' labels: the mean over routers, summed over the prompts."""
        scores, owner = self.prompt_scores.scores, self.prompt_scores.owner
        if scores is None or owner is None or self.method.soft or not self.method.eta:
            return super().penalty()
        targets = self._labels(owner, scores.shape[1])
        losses = functional.cross_entropy(scores.flatten(0, 1), targets.repeat(len(scores)), reduction="sum")
        return self.method.eta * losses / len(scores)

    @torch.no_grad()
    def assign(self, prompts: Sequence[Tensor]) -> Sequence[int] | None:
        """The choice of the last router, or the majority of all but the first block's (ties: the likelier task)."""
        if self.method.soft or self.method.routing == "label":
            return None
        scores = self.routers(self.pooled(prompts))
        if self.method.routing == "last" or len(scores) == 1:
            return cast("list[int]", scores[-1].argmax(-1).tolist())
        voters = scores[1:]
        votes = functional.one_hot(voters.argmax(-1), len(self.tasks)).sum(0)
        return cast("list[int]", (votes + voters.softmax(-1).mean(0) / 2).argmax(-1).tolist())

    def pooled(self, prompts: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """Hidden states before each block, pooled over the tokens of each prompt: (L, P, width).

        labels: (P,), the LoRA that is active in the pass over each prompt; None: the base model without a LoRA.
        """
        training = self.model.training
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        parts, first = [], 0
        self.model.eval()
        try:
            while first < len(order):
                size = max(1, PASS_TOKENS // len(prompts[order[first]]))
                chosen = order[first : first + size]
                with self.current_route.nested(None if labels is None else labels[chosen]):
                    parts.append(self._pass([prompts[i].cpu() for i in chosen]))
                first += size
        finally:
            self.model.train(training)
        return torch.cat(parts, 1)[:, to_device(torch.argsort(torch.tensor(order)), self.device)]

    def _pass(self, prompts: Sequence[Tensor]) -> Tensor:
        """The pooled states (L, P, width) of prompts in one padded batch."""
        model = cast("Any", self.model)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        tokens = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        tokens, mask, lengths = (to_device(part, self.device) for part in (tokens, mask, lengths))
        inputs = {"input_ids": tokens, "attention_mask": mask.long(), "output_hidden_states": True}
        if model.config.is_encoder_decoder:
            states = model.get_encoder()(**inputs).hidden_states[:-1]
        else:
            inputs["attention_mask"] = causal_mask(model, mask, self.dtype)
            states = model.base_model(**inputs, use_cache=False).hidden_states[:-1]
        if self.method.pooling == "last":
            index = torch.arange(len(prompts), device=self.device)
            return torch.stack([state[index, lengths - 1] for state in states])
        share = (mask / lengths[:, None])[:, :, None]
        return torch.stack([(state * share.to(state.dtype)).sum(1) for state in states])


@dataclass(frozen=True, kw_only=True)
class MoA(LoRAMethod):
    """h = W0 x + alpha / rank B_t A_t x with t the label in training, and the routers' choice at inference.

    Stage 1 trains one LoRA for each domain, alone. Stage 2 trains all of them and the routers with
    L = L_LM + eta L_cls, where L_cls is the routers' cross-entropy with the label.

    rank: of each LoRA. eta: the weight of the routers' classification loss.
    stage1_share: the share of the run's steps in stage 1; the rest is stage 2.
    joint: stage 2 trains the LoRAs further, together with the routers. If not, stage 1 trains them for all of the run's
        steps, and stage 2 trains the routers alone, which costs no training of the LoRAs.
    stage2: if not, training ends after stage 1, and each task uses its own LoRA (``routing`` "label").
    router_input: the states of the "base" model; or, in training, those that the label's LoRA has changed ("adapted").
        Without labels these do not exist, so inference uses the states of the base model.
    router_grad: whether L_cls trains the routers alone ("none") or, through the states that they read, the LoRAs too
        ("adapter", which needs the router input "adapted").
    pooling: of a prompt's states, "mean" or "last" token.
    soft: a mixture weighted by the routers, without labels and without L_cls.
    routing: at inference by "label", by the "last" router, or by "vote" of all routers but the first block's.
    further: with ``--from`` a run of moa or lora_single, the tasks of that run whose LoRAs are trained further. The
        LoRAs of its other tasks stay bit for bit the same. LoRAs of new tasks are trained, then the routers learn all
        domains; if nothing is new, nothing is trained.
    experts: folders of PEFT LoRAs instead of stage 1, as task=DIR for some of the tasks, or as a DIR for each task in
        order; smaller ranks are padded with zeros. Stage 2 trains them as any others (unless ``joint`` is false).
    """

    version: ClassVar[int] = 2
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ROUTED, Trait.LABEL_FREE, Trait.FOLDS})
    summary: ClassVar[str] = "a LoRA for each domain, chosen from the prompt by routers"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_label": {"soft": True},
        "no_stage1": {"stage1_share": 0.0},
        "classifier": {"joint": False},
        "adapted_router": {"router_input": "adapted"},
        "joint_loss": {"router_input": "adapted", "router_grad": "adapter"},
        "label": {"routing": "label"},
        "vote": {"routing": "vote"},
        "stage1": {"stage2": False, "routing": "label"},
    }
    inference_fields: ClassVar[frozenset[str]] = frozenset({"routing"})
    folders: ClassVar[Mapping[str, Sequence[str]]] = {"experts": FILES}
    continues: ClassVar[bool] = True

    rank: int = 16
    eta: float = 0.1
    stage1_share: float = 0.5
    joint: bool = True
    stage2: bool = True
    router_input: str = "base"
    router_grad: str = "none"
    pooling: str = "mean"
    soft: bool = False
    routing: str = "last"
    further: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_choice("method.pooling", self.pooling, ["mean", "last"])
        require_choice("method.routing", self.routing, ["label", "last", "vote"])
        require_choice("method.router_input", self.router_input, ["base", "adapted"])
        require_choice("method.router_grad", self.router_grad, ["none", "adapter"])
        if self.router_grad == "adapter" and self.router_input != "adapted":
            raise UsageError(
                "method.router_grad=adapter: the states of the base model have no gradient; set "
                "method.router_input=adapted too"
            )
        if not self.stage2 and (self.routing != "label" or self.soft):
            raise UsageError("method.stage2=false trains no routers: set method.routing=label and method.soft=false")
        if not 0 <= self.stage1_share <= 1:
            raise UsageError(f"method.stage1_share={self.stage1_share} is not a share of the steps: use 0 to 1")
        if not self.joint and not self.stage1_share:
            raise UsageError(
                "method.joint=false needs a method.stage1_share above 0: otherwise no stage trains the LoRAs"
            )
        if not self.joint and not self.eta and not self.soft:
            raise UsageError(
                "method.joint=false trains only the routers, and method.eta=0 gives them no loss: set method.eta > 0"
            )
        if self.soft and self.router_input == "adapted":
            raise UsageError(
                "method.soft=true uses no labels, so no LoRA can change states: use method.router_input=base"
            )

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=n_tasks * self.rank, active=self.rank * (n_tasks if self.soft else 1))

    def layer(self, target: TargetModule) -> AdaptedLinear:
        mixture = target.shared(f"{target.block}.mixture", lambda: RouterGate(target.block)) if self.soft else None
        return TaskLinear(
            target, expert_names=target.tasks, rank=self.rank, scale=self.alpha / self.rank, mixture=mixture
        )

    def target_layers(self, model: nn.Module) -> Mapping[str, nn.Linear]:
        layers = super().target_layers(model)
        for entry in self.experts:
            folder = named_folder(entry).path
            require_target_layers(folder, layers)
            if (rank := peft_rank(folder)) > self.rank:
                raise UsageError(f"method.experts: {folder} has rank {rank}: set method.rank={rank}, or more")
        return layers

    def adapter(self, parts: Parts) -> LoRAAdapter:
        adapter = MoAAdapter(parts, self)
        for task, folder in self.expert_folders(parts.tasks).items():
            adapter.load_expert(parts.tasks.index(task), read_peft(folder))
        return adapter

    def expert_folders(self, tasks: Sequence[str]) -> dict[str, Path]:
        """The folder of each task whose LoRA is read from one. Raises: UsageError."""
        named = [named_folder(entry) for entry in self.experts]
        names = [entry.name for entry in named if entry.name is not None]
        if not names:
            if named and len(named) != len(tasks):
                raise UsageError(
                    f"method.experts: {len(named)} folders for {len(tasks)} tasks ({', '.join(tasks)}): name the "
                    "task of each, as task=DIR"
                )
            return dict(zip(tasks, (entry.path for entry in named), strict=bool(named)))
        if len(set(names)) < len(named):
            raise UsageError("method.experts: give every folder as task=DIR, each task once")
        for name in names:
            if name not in tasks:
                raise unknown("task of method.experts", name, tasks)
        return {entry.name: entry.path for entry in named if entry.name is not None}

    @property
    def alone_share(self) -> float:
        """The share of the run's steps in which each LoRA is trained alone."""
        return self.stage1_share if self.joint else 1.0

    def stage_key(self, stage: str, tasks: Sequence[str]) -> str | None:
        folders = self.expert_folders(tasks)
        own = {alone_stage(t, self.alone_share): t for t in tasks if t not in self.further and t not in folders}
        return self.alone_key(own[stage], self.rank, self.alone_share) if stage in own else None

    def kept_stages(self, tasks: Sequence[str]) -> Sequence[str]:
        # If stage 2 trains the LoRAs, the finished adapter no longer has those of stage 1.
        if self.stage2 and self.joint:
            return []
        return [alone_stage(task, self.alone_share) for task in tasks]

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """Both stages; with ``--from``, only what is new is trained."""
        own, start = cast("MoAAdapter", adapter), trainer.start
        if self.further and start is None:
            raise UsageError("method.further names LoRAs of a finished run: give --from RUN too")
        if start is not None and not trainer.done(LOAD):
            own.load_start(start)
            trainer.finish(LOAD)
        kept = [] if start is None else [t for t in tasks if t in start.tasks and t not in self.further]
        fresh = [t for t in tasks if t not in kept]
        if self.stage1_share:
            with own.ignore_prompts():
                folders = self.expert_folders(tasks)
                alone = [t for t in fresh if t not in folders]
                if folders and not alone and self.joint:
                    LOG.warning(
                        "method.experts has the LoRA of every task, so stage 1 trains nothing and its share of "
                        "train.steps (%g %%) is not used: set method.stage1_share=0 to use all steps in stage 2",
                        100 * self.stage1_share,
                    )
                train_alone(own, trainer, alone, share=self.alone_share)
        routed = start is not None and ROUTERS in start.state
        if self.stage2 and self.stage1_share < 1 and (fresh or not routed):
            names = [ROUTERS, *(name for task in fresh for name in own.task_parameters(task) if self.joint)]
            # If the routers have no loss, examples of tasks whose LoRAs stay as they are would change nothing.
            used = fresh if kept and not (self.eta or self.soft) else None
            trainer.train("together", names if kept or not self.joint else None, used, share=1.0 - self.stage1_share)

    def check_start(self, method: Method, start: Sequence[str], tasks: Sequence[str]) -> None:
        """LoRAs may come from runs of moa and lora_single, and routers from runs of moa."""
        if not isinstance(method, (MoA, LoRASingle)):
            raise UsageError(
                f"moa can be initialised from runs of moa or lora_single, which {type(method).__name__} is not"
            )
        names = ["targets", "rank", "alpha"]
        names += ["pooling", "router_input", "soft"] if isinstance(method, MoA) else []
        for name in names:
            here, there = getattr(self, name), getattr(method, name)
            if here != there:
                raise UsageError(
                    f"method.{name} is {here}, and {there} in the run of --from: set method.{name}={there}"
                )
        both = [task for task in tasks if task in start]
        if not both:
            raise UsageError(f"--from has none of these tasks: it has {', '.join(start)}. Add one of them to --tasks")
        for task in self.further:
            if task not in both:
                raise unknown("task of method.further", task, both)
        if twice := [task for task in self.expert_folders(tasks) if task in both]:
            raise UsageError(f"the LoRA of {', '.join(twice)} comes from --from and from method.experts: leave one out")
