"""The placement policies that are compared: the product's own, and the published baselines.

The baselines (random, best fit, FGD) are written from their descriptions in Weng et al., "Beware of Fragmentation",
USENIX ATC '23, and what those leave open from its simulator (github.com/hkust-adsl/kubernetes-scheduler-simulator), so
that their published figures can be reproduced beside ours. FGD knows the whole workload in advance, as in the paper;
ours has seen only what has arrived.
"""

from collections import Counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.alibaba import WHOLE_MILLI, Pod, TraceNode
from fabric.placement.answer import Placement
from fabric.placement.fleet import Fleet, Gpu, Node
from fabric.placement.grammar import NO_GPU, GpuRequest, GpuSpec
from fabric.placement.place import as_held, place
from fabric.placement.request import Request

_MIB = 2**20
_TYPICAL = 0.95

Ints = npt.NDArray[np.int64]


class Packer(Protocol):
    """Places pods one by one and takes them back."""

    def arrive(self, name: str, pod: Pod) -> bool:
        """Place the pod if it fits; whether it did."""
        ...

    def depart(self, name: str) -> None:
        """Free what the pod held."""
        ...


class FabricPacker:
    """The product's own path: note the arrival, `place()` with the default policy, book the lease.

    Every GPU costs the same and belongs to one operator, so that only packing decides, as in the paper.
    """

    def __init__(self, nodes: list[TraceNode], pods: list[Pod]) -> None:
        self.fleet = Fleet()
        for node in nodes:
            self.fleet.upsert_node(fleet_node(node))
        self._requests = {pod: request_of(pod) for pod in pods}  # made by customers, so not part of a decision

    def arrive(self, name: str, pod: Pod) -> bool:
        return self.ask(name, self._requests[pod])

    def ask(self, name: str, request: Request) -> bool:
        """Note the arrival, decide, book; whether it was placed. Spot leases that have to go are ended."""
        self.fleet.saw(request)
        placement = place(self.fleet, request)
        if not isinstance(placement, Placement):
            return False
        for lease in placement.evicts:
            self.fleet.release(lease)
        self.fleet.take(as_held(placement, name))
        return True

    def depart(self, name: str) -> None:
        self.fleet.release(name)


def fleet_node(node: TraceNode, operator: str = "one", price_dc_per_gpu_hour: int = 100_000) -> Node:
    """The trace's node as the fleet is told of it; the trace gives no memory per GPU: a nominal 16 GB."""
    gpus = tuple(
        Gpu(
            uuid=f"{node.name}/{index}",
            model=node.model,
            memory_bytes=16 * 10**9,
            prices_dc_per_gpu_hour={"on_demand": price_dc_per_gpu_hour},
            share_step_milli=10,
        )
        for index in range(node.gpus)
    )
    return Node(
        name=node.name,
        operator=operator,
        cluster=operator,
        gpus=gpus,
        cpu_milli=node.cpu_milli,
        memory_bytes=node.memory_mib * _MIB,
    )


def request_of(pod: Pod) -> Request:
    """The pod as a customer's request."""
    gpu = NO_GPU
    if pod.gpus:
        count = pod.gpus if pod.milli == WHOLE_MILLI else 1
        gpu = GpuRequest((GpuSpec(names=pod.models, count_min=count, count_max=count, milli=pod.milli),))
    return Request(gpu=gpu, cpu_milli=pod.cpu_milli, memory_bytes=pod.memory_mib * _MIB)


class _Columns:
    """What is free on every node, for the baselines."""

    def __init__(self, nodes: list[TraceNode]) -> None:
        width = max(node.gpus for node in nodes)
        self.free = np.zeros((len(nodes), width), np.int64)
        for index, node in enumerate(nodes):
            self.free[index, : node.gpus] = WHOLE_MILLI
        self.gpus = np.array([node.gpus for node in nodes])
        self.cpu = np.array([node.cpu_milli for node in nodes])
        self.memory = np.array([node.memory_mib for node in nodes])
        self.models = [node.model for node in nodes]
        self._held: dict[str, tuple[int, list[int], Pod]] = {}

    def fitting(self, pod: Pod) -> npt.NDArray[np.bool_]:
        able = (self.cpu >= pod.cpu_milli) & (self.memory >= pod.memory_mib)
        if pod.gpus:
            able &= (self.free >= pod.milli).sum(axis=1) >= pod.gpus
        if pod.models:
            able &= np.isin(self.models, pod.models)
        return able

    def take(self, name: str, node: int, columns: list[int], pod: Pod) -> None:
        self._held[name] = (node, columns, pod)
        self._move(node, columns, pod, -1)

    def depart(self, name: str) -> None:
        self._move(*self._held.pop(name), 1)

    def _move(self, node: int, columns: list[int], pod: Pod, sign: int) -> None:
        self.free[node, columns] += sign * pod.milli
        self.cpu[node] += sign * pod.cpu_milli
        self.memory[node] += sign * pod.memory_mib


class RandomPacker(_Columns):
    """Any node that fits, any GPU of it."""

    def __init__(self, nodes: list[TraceNode], seed: int) -> None:
        super().__init__(nodes)
        self._draw = np.random.default_rng(seed)

    def arrive(self, name: str, pod: Pod) -> bool:
        able = np.flatnonzero(self.fitting(pod))
        if not able.size:
            return False
        node = int(self._draw.choice(able))
        columns = self._draw.permutation(np.flatnonzero(self.free[node] >= max(pod.milli, 1)))[: pod.gpus].tolist()
        self.take(name, node, columns, pod)
        return True


class BestFitPacker(_Columns):
    """The node with the least left of CPU and GPU together, each as a part of the largest node's; the tightest GPU."""

    def arrive(self, name: str, pod: Pod) -> bool:
        able = np.flatnonzero(self.fitting(pod))
        if not able.size:
            return False
        left = (self.free[able].sum(axis=1) - pod.gpu_milli) / (self.free.shape[1] * WHOLE_MILLI)
        left += (self.cpu[able] - pod.cpu_milli) / 128_000
        node = int(able[left.argmin()])
        self.take(name, node, _tightest(self.free[node], pod), pod)
        return True


class FgdPacker(_Columns):
    """Fragmentation gradient descent: the node and GPU where the expected unusable GPU share grows least.

    As published: the score is `floor(100 · sigmoid(-growth / 1000))`, of the GPUs of a node that score alike the first
    is taken, of nodes the first in one random order that lasts for the whole run; kinds of pods and fragments are
    without memory, which only decides what fits. Scores are kept per kind and worked out again only for nodes that
    changed.
    """

    def __init__(self, nodes: list[TraceNode], seed: int, workload: list[Pod]) -> None:
        super().__init__(nodes)
        self._rank = np.random.default_rng(seed).permutation(len(nodes))
        self._typical(workload)
        self._version = np.zeros(len(nodes), np.int64)
        self._known: dict[Pod, tuple[Ints, npt.NDArray[np.float64], Ints]] = {}

    def arrive(self, name: str, pod: Pod) -> bool:
        score, column = self._scores(_kind_of(pod))
        able = np.flatnonzero(self.fitting(pod))
        if not able.size:
            return False
        best = able[score[able] == score[able].max()]
        node = int(best[self._rank[best].argmin()])
        columns = [int(column[node])] if pod.gpus == 1 else _tightest(self.free[node], pod)
        self.take(name, node, columns, pod)
        return True

    def _move(self, node: int, columns: list[int], pod: Pod, sign: int) -> None:
        super()._move(node, columns, pod, sign)
        self._version[node] += 1

    def _typical(self, workload: list[Pod]) -> None:
        """The most frequent kinds of pods that make up 95 % of the workload; of equally frequent ones the largest."""
        counts = Counter(map(_kind_of, workload))
        ranked = sorted(counts.items(), key=lambda item: (item[1], _size(item[0])), reverse=True)
        cut = int(np.searchsorted(np.cumsum([count for _, count in ranked]), _TYPICAL * len(workload))) + 1
        kinds = [kind for kind, _ in ranked[:cut]]
        kept = np.array([count for _, count in ranked[:cut]])
        self._share = kept / kept.sum()
        self._asks = np.array([(kind.cpu_milli, kind.gpus, kind.milli) for kind in kinds]).T
        self._accepts = np.array([[not kind.models or model in kind.models for kind in kinds] for model in self.models])

    def _scores(self, kind: Pod) -> tuple[npt.NDArray[np.float64], Ints]:
        size = len(self.models)
        known = self._known.get(kind)
        if known is None:
            known = (np.full(size, -1, np.int64), np.full(size, -1.0), np.zeros(size, np.int64))
            self._known[kind] = known
        version, score, column = known
        stale = np.flatnonzero(version != self._version)
        version[stale] = self._version[stale]
        score[stale] = -1.0
        able = stale[self.fitting(kind)[stale]]
        if able.size:
            score[able], column[able] = self._rate(kind, able)
        return score, column

    def _rate(self, kind: Pod, nodes: Ints) -> tuple[npt.NDArray[np.float64], Ints]:
        free, cpu = self.free[nodes], self.cpu[nodes] - kind.cpu_milli
        before = self._fragments(free, self.cpu[nodes], nodes)
        if kind.gpus != 1:
            after = free.copy()
            for row in range(len(after)):
                after[row, _tightest(after[row], kind)] -= kind.milli
            return _published(self._fragments(after, cpu, nodes) - before), np.zeros(nodes.size, np.int64)
        best, column = np.full(nodes.size, -1.0), np.zeros(nodes.size, np.int64)
        for gpu in range(free.shape[1]):
            able = free[:, gpu] >= kind.milli
            after = free.copy()
            after[:, gpu] -= kind.milli
            score = np.where(able, _published(self._fragments(after, cpu, nodes) - before), -1.0)
            better = score > best
            best[better], column[better] = score[better], gpu
        return best, column

    def _fragments(self, free: Ints, cpu: Ints, nodes: Ints) -> npt.NDArray[np.float64]:
        """Expected milli-GPU per node that a typical pod cannot use."""
        asks_cpu, asks_gpus, asks_milli = self._asks
        able = (cpu[:, None] >= asks_cpu) & self._accepts[nodes] & (asks_gpus > 0)
        large = free[:, :, None] >= asks_milli
        able &= large.sum(axis=1) >= asks_gpus
        useless = np.where(able, (free[:, :, None] * ~large).sum(axis=1), free.sum(axis=1)[:, None])
        return useless @ self._share


def _kind_of(pod: Pod) -> Pod:
    return Pod(pod.cpu_milli, 0, pod.gpus, pod.milli, pod.models)


def _size(kind: Pod) -> tuple[int, int, int, str]:
    return kind.cpu_milli, kind.milli, kind.gpus, "|".join(kind.models)


def _tightest(free: Ints, pod: Pod) -> list[int]:
    able = np.flatnonzero(free >= max(pod.milli, 1))
    return able[np.argsort(free[able], kind="stable")][: pod.gpus].tolist()


def _published(growth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.floor(100 / (1 + np.exp(growth / 1000)))
