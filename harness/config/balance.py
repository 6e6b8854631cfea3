"""The balancer of a run: ``train.balance`` names it, and ``balance.*`` keys are its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from harness.balancing import Balancer, GradientBalancer
from harness.config.keys import build_from_keys, changed, section_config
from harness.config.spec import BalanceSpec, TrainConfig
from harness.errors import StoreError, UsageError
from harness.method import AdapterMethod, Method
from harness.registry import balancer_class


def train_config(train: Mapping[str, Any], balance: Mapping[str, Any]) -> TrainConfig:
    """``train.*`` and ``balance.*`` keys. Raises: UsageError for an unknown key, balancer or value."""
    name = train.get("balance")
    if name is None:
        for key, value in balance.items():
            raise UsageError(
                f"balance.{key}={value!r} is a setting of a balancer, and none is chosen: set train.balance too. "
                "See: harness list"
            )
        return section_config(TrainConfig, "train", train)
    if not isinstance(name, str):
        raise UsageError(f"train.balance={name!r} is not the name of a balancer. See: harness list")
    cls = balancer_class(name)
    built = build_from_keys(cls, balance, "balance")
    spec = BalanceSpec(name=name, version=cls.version, fields=changed(built, cls()))
    return section_config(TrainConfig, "train", {**train, "balance": spec})


def balancer_of(config: TrainConfig) -> Balancer | None:
    """The balancer of a run; None without one. Raises: StoreError if another version is installed."""
    spec = config.balance
    if spec is None:
        return None
    cls = balancer_class(spec.name)
    if cls.version != spec.version:
        raise StoreError(
            f"the run used version {spec.version} of {spec.name}, but version {cls.version} is installed: repeat the "
            "run with `harness run`"
        )
    return cls(**spec.fields)


def require_balance(train: TrainConfig, name: str, method: Method, sizes: Sequence[int]) -> None:
    """Raises: UsageError if no stage of a method trains several tasks together, or a package is missing.

    Args: name: of the method. sizes: the number of tasks of each cluster.
    """
    if train.balance is None or not method.trains:
        return
    given = f"train.balance={train.balance.name} weighs tasks that are trained together"
    for package, command in balancer_class(train.balance.name).needs.items():
        if find_spec(package) is None:
            raise UsageError(f"train.balance={train.balance.name} needs {package}, which is not installed: {command}")
    if train.shard_base and issubclass(balancer_class(train.balance.name), GradientBalancer):
        raise UsageError(
            f"train.balance={train.balance.name} combines gradients, which train.shard_base=true does not support: "
            "leave one of the two out, or choose a balancer that weighs losses. See: harness list"
        )
    if isinstance(method, AdapterMethod) and not method.mixes_tasks:
        raise UsageError(
            f"{given}, but {name} trains each task in a stage of its own: leave train.balance out, or choose a method "
            "that trains all tasks in one stage. See: harness list"
        )
    if max(sizes) < 2:
        raise UsageError(f"{given}, but every adapter of this run has one task: leave train.balance out")
