"""Arrivals and departures by a trace's own times: how full the cluster was and how long pods waited.

Pods that find no room wait in the product's queue (`fabric.placement.queue`), whatever the policy, so that only the
placement differs. Simulated time: nothing sleeps.
"""

import heapq
import statistics
from dataclasses import dataclass, field

from benchmarks.alibaba import Pod, TraceError, TraceNode
from benchmarks.packers import Packer
from fabric.placement.queue import Waiting, next_up


@dataclass
class _Cluster:
    packer: Packer
    pods: list[Pod]
    held_milli: int = 0
    leaving: list[tuple[int, int]] = field(default_factory=list)
    waiting: dict[int, int] = field(default_factory=dict)
    waits_s: list[int] = field(default_factory=list)

    def try_place(self, index: int, now_s: int, since_s: int) -> bool:
        pod = self.pods[index]
        if not self.packer.arrive(f"pod-{index}", pod):
            return False
        self.held_milli += pod.gpu_milli
        self.waits_s.append(now_s - since_s)
        heapq.heappush(self.leaving, (now_s + _stay_s(pod), index))
        return True

    def leave(self, index: int) -> None:
        self.packer.depart(f"pod-{index}")
        self.held_milli -= self.pods[index].gpu_milli

    def retry(self, now_s: int) -> None:
        """Let those who wait try again in the queue's order; like demands that have just failed are not tried twice."""
        ordered = next_up([self._entry(index) for index in self.waiting], now_s * 1000)
        failed: set[tuple[int, int, int, int, tuple[str, ...]]] = set()
        for entry in ordered:
            index = int(entry.name)
            pod = self.pods[index]
            shape = (pod.cpu_milli, pod.memory_mib, pod.gpus, pod.milli, pod.models)
            if shape in failed:
                continue
            if self.try_place(index, now_s, self.waiting[index]):
                del self.waiting[index]
            else:
                failed.add(shape)

    def _entry(self, index: int) -> Waiting:
        return Waiting(str(index), self.waiting[index] * 1000)


def replay(nodes: list[TraceNode], pods: list[Pod], packer: Packer, speedup: float) -> dict[str, float]:
    """Waiting times of the trace, played `speedup` times as densely, and allocation on average while pods arrive.

    Raises:
        TraceError: pods without times, or none at all.
        ValueError: a speed-up that is not positive.
    """
    if speedup <= 0:
        raise ValueError(f"--speedup is {speedup}; above 0")
    if any(pod.created_s is None or pod.deleted_s is None for pod in pods):
        raise TraceError("a pod has no creation_time or deletion_time: this file has no times to replay")
    capacity = sum(node.gpus for node in nodes) * 1000
    arrivals = sorted((int((pod.created_s or 0) / speedup), index) for index, pod in enumerate(pods))
    cluster, position, area, start_s = _Cluster(packer, pods), 0, 0, arrivals[0][0]
    now_s = until_s = start_s
    while position < len(arrivals) or cluster.leaving:
        coming_s = arrivals[position][0] if position < len(arrivals) else None
        ends = bool(cluster.leaving) and (coming_s is None or cluster.leaving[0][0] <= coming_s)
        then_s = cluster.leaving[0][0] if ends or coming_s is None else coming_s
        if coming_s is not None:
            area, until_s = area + cluster.held_milli * (then_s - now_s), then_s
        now_s = then_s
        if ends:
            cluster.leave(heapq.heappop(cluster.leaving)[1])
            if cluster.waiting:
                cluster.retry(now_s)
            continue
        index = arrivals[position][1]
        position += 1
        cluster.waiting[index] = now_s
        cluster.retry(now_s)
    waits = sorted(cluster.waits_s)
    return {
        "mean_alloc_pct": 100 * area / max(until_s - start_s, 1) / capacity,
        "wait_mean_s": statistics.mean(waits),
        "wait_p99_s": float(waits[len(waits) * 99 // 100]),
        "waited_pct": 100 * sum(wait > 0 for wait in waits) / len(waits),
        "never_placed": float(len(cluster.waiting)),
    }


def _stay_s(pod: Pod) -> int:
    return max((pod.deleted_s or 0) - (pod.created_s or 0), 1)
