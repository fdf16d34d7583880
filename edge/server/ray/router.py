"""Which replica a call goes to: Ray Serve's own interface over the rule of `runtime/rendezvous.py`.

In: calls with keys, and the replicas that Serve knows. Out: those replicas in the order in which they are tried. Knows
nothing about what a call asks.

A conversation stays with the replica that has it unless that one has more than its share of all that this front has
sent. Samples of one request stay together. A call without a key goes to the replica to which this front has sent the
least. Serve tries the others in turn where one is full or does not answer.
"""

from __future__ import annotations

from collections import Counter
from random import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from edge.runtime.rendezvous import Homes, bound, digest, ranked
from edge.server.ray.call import Call


class PrefixRouter(RequestRouter):
    """One front's router."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: Serve's own
        super().__init__(*args, **kwargs)
        self._running: Counter[ReplicaID] = Counter()  # calls that this front has there
        self._homes: Homes[str] = Homes()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas one by one, the best first."""
        if pending_request is None:
            return [[replica] for replica in candidate_replicas]
        pending_request.routing_context.should_backoff = True
        call = pending_request.args[0] if pending_request.args else None
        if not isinstance(call, Call):
            return [candidate_replicas]
        names = [replica.replica_id.unique_id for replica in candidate_replicas]
        loads = [self._running[replica.replica_id] for replica in candidate_replicas]
        order = in_order(call, names, loads, self._homes)
        return [[candidate_replicas[index]] for index in order]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a call that was sent."""
        super().on_send_request(replica_id)
        self._running[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count a call that ended, however it did."""
        super().on_request_completed(replica_id, internal_request_id)
        self._running[replica_id] -= 1
        if self._running[replica_id] <= 0:
            del self._running[replica_id]


def in_order(call: Call, names: list[str], loads: list[int], homes: Homes[str]) -> list[int]:
    """Return indices of replicas in the order in which they should be tried, those to avoid last."""
    if call.key is None:
        order = sorted(range(len(names)), key=lambda index: (loads[index], random()))
    else:
        order = _of_conversation(call.key, call.avoid, names, loads, homes)
    return sorted(order, key=lambda index: (names[index] in call.avoid, names[index] != call.at))


def _of_conversation(
    key: int, avoid: frozenset[str], names: list[str], loads: list[int], homes: Homes[str]
) -> list[int]:
    """Return indices of replicas, the one that has the conversation, or is to have it, first."""
    most = bound(sum(loads), max(len(names), 1))
    ranks = ranked(key, [digest(name.encode()) for name in names])
    load = dict(zip(names, loads, strict=True))

    def has_room(name: str) -> bool:
        return name in load and load[name] < most and name not in avoid

    order = sorted(ranks, key=lambda index: not has_room(names[index]))
    if any(map(has_room, names)):
        home = homes.choose(key, [names[index] for index in ranks], load.__getitem__, has_room)
        order.sort(key=lambda index: names[index] != home)
    return order
