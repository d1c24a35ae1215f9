"""Workflow code on a busy machine: a stall is no deadlock."""

from __future__ import annotations

import temporalio.worker._workflow

__all__ = ["allow_stalls"]

_STALL_SECONDS = 60


def allow_stalls() -> None:
    """Let workflow code of this process stall for a minute instead of two seconds.

    After that the SDK calls it a deadlock and interrupts the code. Sometimes it can no longer evict the
    workflow then, and the worker never ends. Code that is really stuck makes its task stand still.
    """
    kind = temporalio.worker._workflow._WorkflowWorker
    create = kind.__init__

    def create_patiently(self: object, *args: object, **options: object) -> None:
        create(self, *args, **options)  # type: ignore[arg-type]
        self._deadlock_timeout_seconds = _STALL_SECONDS  # type: ignore[attr-defined]

    kind.__init__ = create_patiently  # type: ignore[method-assign]
