"""Which replica Ray asks first: see `affinity.py`."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from .affinity import ranked
from .exchange import Exchange


class AffinityRouter(RequestRouter):  # type: ignore[misc]  # Ray is not checked
    """Sends a conversation to the replica that has its beginning, while that is not too busy."""

    def initialize_state(self, **options: Any) -> None:
        """`slots` is how many requests a replica runs at once."""
        self._slots: int = options["slots"]

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All of them, each a rank of its own; those to be shunned only where there are no others.

        How much a replica has to do is what it said last, and what was sent to it since.
        """
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        exchange: Exchange = pending_request.args[0]
        known = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {
            name: self.replica_queue_len_cache.get(known[name].replica_id) or 0
            for name in known.keys() - exchange.shunned or known
        }
        return [[known[name]] for name in ranked(exchange.key, loads, self._slots)]
