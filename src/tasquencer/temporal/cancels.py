"""How a cancel reaches an activity: pushed to the worker by the server, or in the answer to a heartbeat."""

from __future__ import annotations

from datetime import timedelta

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

__all__ = ["are_pushed", "described", "heartbeat_interval"]

_TIMEOUT = timedelta(seconds=10)

_WITHOUT_A_TIMEOUT = timedelta(seconds=60)


async def are_pushed(client: Client) -> bool:
    """Return whether the server pushes cancels to the workers of the client's namespace.

    False also where the namespace cannot be asked, and with an SDK that does not know of it.
    """
    request = DescribeNamespaceRequest(namespace=client.namespace)
    try:
        told = await client.workflow_service.describe_namespace(request, timeout=_TIMEOUT)
    except RPCError:
        return False
    return bool(getattr(told.namespace_info.capabilities, "worker_commands", False))


def heartbeat_interval(asked: timedelta, heartbeat_timeout: timedelta | None, *, pushed: bool) -> timedelta:
    """Return the time between two heartbeats of a call.

    Args:
        asked: What suits a cancel that comes in the answer to a heartbeat.
        heartbeat_timeout: How long the worker may be silent; None: for any time.
        pushed: Cancels are pushed. Then heartbeats only show that the worker lives.
    """
    third = heartbeat_timeout / 3 if heartbeat_timeout else _WITHOUT_A_TIMEOUT
    return third if pushed else min(asked, third)


def described(*, pushed: bool, interval: timedelta) -> str:
    """Return how a cancel reaches a call, for the worker's first line."""
    if pushed:
        return "cancels are pushed"
    return f"cancels come with heartbeats, every {interval.total_seconds():g} s"
