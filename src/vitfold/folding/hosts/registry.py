"""The registered hosts, by the classes of the models that they describe."""

from typing import TypeVar

from torch import nn

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.names import full_name
from vitfold.folding.families.base import named
from vitfold.folding.hosts.base import Host

HostT = TypeVar("HostT", bound=type[Host])

HOSTS: dict[str, type[Host]] = {}
"""Hosts by the full names of the classes that they describe."""


def register_host(host: HostT) -> HostT:
    """Let visual tokens of models of a kind be handed out reduced; refused where one of its classes
    has a host already. A decorator of a subclass of `Host`."""
    for name in named(host.models):
        before = HOSTS.get(name, host)
        if full_name(before) != full_name(host):
            raise UnsupportedModel(f"{name} is described by {full_name(before)} already")
    HOSTS.update(dict.fromkeys(named(host.models), host))
    return host


def host_of(model: nn.Module) -> Host | None:
    """The host that describes a model itself."""
    names = (full_name(base) for base in type(model).__mro__)
    kind = next((HOSTS[name] for name in names if name in HOSTS), None)
    return None if kind is None else kind(model)
