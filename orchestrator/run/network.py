"""The network that the workers of a group use. A separate module because Ray Train's torch backend loads torch."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


def use_the_clusters_network() -> None:
    """Point gloo and nccl to the interface of this machine's Ray address, unless the environment names another one.

    By default gloo uses the address of the host name, which is 127.0.1.1 on many machines.
    """
    here = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.address == here for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Start the process group. On a failure, shut the worker group down here.

        Ray Train 2.60 does not. It counts the group as started and keeps its slots. The next try would wait for them
        for ever.
        """
        try:
            worker_group.execute(use_the_clusters_network)
            super().on_start(worker_group, backend_config)
        except BaseException:
            with contextlib.suppress(Exception):  # a worker may be dead already
                worker_group.shutdown()
            raise


@dataclass
class OnTheClustersNetwork(TorchConfig):
    """Ray Train's torch backend that sets the network interface before it makes the process group."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """The backend that Ray Train starts on each worker."""
        return _Backend
