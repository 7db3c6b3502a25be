"""Over which network the workers of a group talk. A module of its own because Ray Train's torch backend loads torch."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


def speak_on_the_clusters_network() -> None:
    """Gloo and nccl talk over the interface by which Ray knows this machine, unless the environment names another.

    Left alone gloo takes the one that the host's name resolves to, which on many a machine is 127.0.1.1.
    """
    here = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.address == here for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Ray Train keeps the slots of a group that fails here (2.60: to it the group has started, and is no longer its own), and
        the next try would wait for them for ever."""
        try:
            worker_group.execute(speak_on_the_clusters_network)
            super().on_start(worker_group, backend_config)
        except BaseException:
            with contextlib.suppress(Exception):  # a worker that has died already
                worker_group.shutdown()
            raise


@dataclass
class OnTheClustersNetwork(TorchConfig):
    """Ray Train's torch backend, told of the interface before it makes the process group."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """What Ray Train starts on each worker."""
        return _Backend
