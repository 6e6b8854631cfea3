"""Methods, suites, models, inference back ends and balancers by name, from entry points of every distribution."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from harness.errors import HarnessError, UsageError, unknown

if TYPE_CHECKING:
    from harness.balancing import Balancer
    from harness.inference import InferenceBackend
    from harness.method import Method
    from harness.task import Suite

METHODS = "harness.methods"
SUITES = "harness.suites"
MODELS = "harness.models"
BACKENDS = "harness.backends"
BALANCERS = "harness.balancers"
GROUPS = (METHODS, SUITES, MODELS, BACKENDS, BALANCERS)
_WORD = {METHODS: "method", SUITES: "suite", MODELS: "model", BACKENDS: "back end", BALANCERS: "balancer"}


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One registered name. ``clashes`` names the distributions if several of them register it."""

    name: str
    target: str
    distribution: str
    clashes: tuple[str, ...] = ()


def plugins(group: str) -> Mapping[str, Plugin]:
    """Every name of a group, from metadata (nothing is imported).

    The metadata are read once for each ``sys.path``: a distribution that is installed into one of its folders while
    the process runs is not found before the next process.
    """
    return _plugins(group, tuple(sys.path))


# Reading the metadata of all distributions takes 20 ms, and a leaderboard asks for a method thousands of times.
@lru_cache(maxsize=32)
def _plugins(group: str, path: tuple[str, ...]) -> Mapping[str, Plugin]:
    """``plugins`` on one ``sys.path``, which ``entry_points`` reads itself: the argument is the key of the cache."""
    claims: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=group):
        claims.setdefault(point.name, {})[_distribution(point)] = point
    found: dict[str, Plugin] = {}
    for name, by_distribution in sorted(claims.items()):
        owners = sorted(by_distribution)
        found[name] = Plugin(
            name=name,
            target=by_distribution[owners[0]].value,
            distribution=owners[0],
            clashes=tuple(owners) if len(owners) > 1 else (),
        )
    return MappingProxyType(found)


def method_class(name: str) -> type[Method]:
    """The method of that name; UsageError for an unknown name or a clash, HarnessError when it cannot be imported."""
    return cast("type[Method]", _load(METHODS, name))


def suite_class(name: str) -> type[Suite]:
    """The suite of that name; errors as ``method_class``."""
    return cast("type[Suite]", _load(SUITES, name))


def list_command(suite: str) -> str:
    """The command that lists the tasks of an installed suite; "" for one from a file, which may have another name."""
    return f"harness list {suite}" if suite in plugins(SUITES) else ""


def model_folder(name: str) -> Path | None:
    """The folder of a model that a distribution includes (``tiny``), None if the name is not registered."""
    return cast("Path", _load(MODELS, name)) if name in plugins(MODELS) else None


def backend_class(name: str) -> type[InferenceBackend]:
    """The inference back end of that name; errors as ``method_class``."""
    return cast("type[InferenceBackend]", _load(BACKENDS, name))


def balancer_class(name: str) -> type[Balancer]:
    """The balancer of that name; errors as ``method_class``."""
    return cast("type[Balancer]", _load(BALANCERS, name))


def broken(group: str) -> dict[str, str]:
    """The error of each plug-in that cannot be used, by name, for `harness list --check`. Imports everything."""
    reasons = {}
    for name in plugins(group):
        try:
            _load(group, name)
        except HarnessError as error:
            reasons[name] = str(error)
    return reasons


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _load(group: str, name: str) -> object:
    word = _WORD[group]
    known = plugins(group)
    if name not in known:
        raise unknown(word, name, known, see="harness list")
    plugin = known[name]
    if plugin.clashes:
        raise UsageError(
            f"{word} {name!r} is registered by {' and '.join(plugin.clashes)}: uninstall one, or rename an entry point."
        )
    point = EntryPoint(name=name, value=plugin.target, group=group)
    try:
        loaded = point.load()
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise HarnessError(
            f"{word} {name!r} of {plugin.distribution} cannot be imported from {plugin.target}: "
            f"{type(error).__name__}: {error}"
        ) from error
    _check(group, name, loaded)
    return loaded


def _check(group: str, name: str, loaded: object) -> None:
    from harness.balancing import GradientBalancer, LossBalancer
    from harness.inference import InferenceBackend
    from harness.method import AdapterMethod, Baseline
    from harness.task import Suite

    if group == MODELS:
        if not isinstance(loaded, Path):
            raise HarnessError(f"model {name!r} is {loaded!r}, not the path of a folder: correct its entry point")
        return
    bases: dict[str, tuple[type, ...]] = {
        METHODS: (AdapterMethod, Baseline),
        SUITES: (Suite,),
        BACKENDS: (InferenceBackend,),
        BALANCERS: (LossBalancer, GradientBalancer),
    }
    if not (isinstance(loaded, type) and issubclass(loaded, bases[group])):
        names = " or ".join(base.__name__ for base in bases[group])
        raise HarnessError(f"{_WORD[group]} {name!r} is {loaded!r}, not a subclass of harness's {names}")
    if group in (METHODS, SUITES, BALANCERS) and not isinstance(getattr(loaded, "version", None), int):
        raise HarnessError(
            f"{_WORD[group]} {name!r} has no version: give the class {loaded.__name__} the line "
            "`version: ClassVar[int] = 1`, and raise it whenever results change"
        )
