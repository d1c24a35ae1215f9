"""Interprets Temporal's answer "not found": a workflow or schedule is missing, or the whole namespace."""

from __future__ import annotations

from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.service import RPCError, RPCStatusCode

__all__ = ["is_missing", "is_missing_namespace"]

_MISSING_NAMESPACE = f"/{NamespaceNotFoundFailure.DESCRIPTOR.full_name}"


def is_missing_namespace(error: RPCError) -> bool:
    """Return whether the client's namespace does not exist. That is a wrong setting, not a missing task."""
    return error.status is RPCStatusCode.NOT_FOUND and any(
        detail.type_url.endswith(_MISSING_NAMESPACE) for detail in error.grpc_status.details
    )


def is_missing(error: RPCError) -> bool:
    """Return whether the namespace exists, but the requested workflow or schedule does not."""
    return error.status is RPCStatusCode.NOT_FOUND and not is_missing_namespace(error)
