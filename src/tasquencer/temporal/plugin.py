"""`TasquencerPlugin`: all that a worker needs to run tasks, in one object.

    client = await connect(plugins=[TasquencerPlugin(ledger, calls=AiCalls())])
    async with Worker(client, task_queue="…", workflows=[…], activities=[…]):
        …

Give it to the client or to the worker, together with other plugins and in any order. The client keeps its
data converter and its interceptors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import temporalio.client
import temporalio.worker
from temporalio.client import ClientConfig
from temporalio.converter import DataConverter
from temporalio.plugin import SimplePlugin
from temporalio.worker import ReplayerConfig, UnsandboxedWorkflowRunner, WorkerConfig, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from tasquencer.batch.store import BatchStore
from tasquencer.core.errors import PluginGivenTwice
from tasquencer.ledger.contract import Ledger
from tasquencer.temporal.adopting import Adopting, AdoptingInterceptor
from tasquencer.temporal.adopting_header import AttemptInterceptor
from tasquencer.temporal.batch_calls import BATCH_WORKFLOW
from tasquencer.temporal.batches import BatchActivities
from tasquencer.temporal.bookkeeping import Bookkeeping
from tasquencer.temporal.cancels import are_pushed
from tasquencer.temporal.converter import data_converter, is_default
from tasquencer.temporal.guard import guarded
from tasquencer.temporal.headers import HeaderCodec
from tasquencer.temporal.local_activities import LocalActivities
from tasquencer.temporal.observing import ActivityObserver, Observing, OnOutage
from tasquencer.temporal.only_once import OnlyOnce
from tasquencer.temporal.reconciling import ReconciliationActivity
from tasquencer.temporal.run_status import StatusOfRuns
from tasquencer.temporal.schedules import RECONCILE_WORKFLOW
from tasquencer.temporal.scope import TaskInterceptor
from tasquencer.temporal.wire import WireInterceptor, activity_name, wired

if TYPE_CHECKING:
    from tasquencer.temporal.ai_calls import AiCalls

__all__ = ["TasquencerPlugin"]

_PASSED_THROUGH = (
    # Otherwise the sandbox imports a second copy of each class and `isinstance` fails across the border.
    "tasquencer",
    # Imported while the first payload is converted; re-importing them for each workflow costs milliseconds.
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_inspection",
    # The price list, for model requests of adopted agents.
    "genai_prices",
)

_NEEDS_REMOTE_ACTIVITIES = {RECONCILE_WORKFLOW, BATCH_WORKFLOW}
"""Workflows whose bookkeeping also uses activities that are not local."""


class TasquencerPlugin(SimplePlugin):
    """Adds the bookkeeping activities, the task scope and the sandbox passthrough to a worker.

    It works on the client or on the worker. If both have it, making the worker raises `PluginGivenTwice`.
    On a client whose data converter is the SDK's default in every part it installs our Pydantic converter,
    unless another plugin brings one. Otherwise the converter stays as it is.

    Args:
        ledger: It is opened when the first worker starts to run, and closed after the last one has stopped.
        batches: The store of batches, for a worker that runs `AiBatchTask`. None: the ledger's own
        (`SqlLedger.batches`), if it has one.
        calls: The AI call, registered as the activity `generate`. None: this worker makes no AI calls.
        observe_activities: Patterns (as in `fnmatch`) of activity types. Temporal retries these activities as
            before, and each attempt leaves a work item.
        adopt_activities: Patterns (as in `fnmatch`) of activity types. In every workflow of the worker each
            attempt of these activities is an activity and a work item of its own.
        observe_on_outage: What observed activities do while the ledger cannot be written: `"continue"`
            without a work item, or `"wait"` for it.
        record_payloads: Keep arguments and results of observed and adopted activities in the ledger; None:
            only if the client has no payload codec.
    """

    def __init__(
        self,
        ledger: Ledger,
        batches: BatchStore | None = None,
        *,
        calls: AiCalls | None = None,
        observe_activities: Sequence[str] = (),
        adopt_activities: Sequence[str] = (),
        observe_on_outage: OnOutage = "continue",
        record_payloads: bool | None = None,
    ) -> None:
        self._observing = Observing(tuple(observe_activities), observe_on_outage, record_payloads)
        self._adopt_activities = tuple(adopt_activities)
        self._record_payloads = record_payloads
        self._ledger = ledger
        self._calls = calls
        self._headers: list[HeaderCodec] = []
        self._status: list[StatusOfRuns] = []
        self._running = 0
        self._client: temporalio.client.Client | None = None
        self._closing = AsyncExitStack()
        self._changing = asyncio.Lock()
        """Held while the ledger is opened or closed, because another worker may start or stop meanwhile."""
        if batches is None:
            batches = getattr(ledger, "batches", None)
        activities: list[Callable[..., Awaitable[Any]]] = [
            Bookkeeping(ledger).record,
            ReconciliationActivity(ledger).reconcile,
        ]
        if calls is not None:
            calls.check_in(ledger)
            activities += calls.activities
        if batches is not None:
            of_batches = BatchActivities(batches, ledger)
            activities += [
                of_batches.begin,
                of_batches.load,
                of_batches.save,
                of_batches.cancel,
                of_batches.follow,
                of_batches.end,
            ]
        registered = [wired(activity) for activity in activities]
        self._own_activities = {activity_name(one) or "" for one in registered}
        super().__init__(
            "tasquencer.TasquencerPlugin",
            activities=registered,
            workflow_runner=_passing_through,
            run_context=self._open,
        )

    def configure_client(self, config: ClientConfig) -> ClientConfig:
        """See the base class. Installs our converter if the client has the SDK's default."""
        plugins = list(config["plugins"])
        later = plugins[plugins.index(self) + 1 :] if self in plugins else []
        if is_default(config["data_converter"]) and not any(map(_may_bring_a_converter, later)):
            config["data_converter"] = data_converter
        return config

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        """See the base class."""
        interceptors = list(config.get("interceptors") or ())
        if any(isinstance(known, TaskInterceptor) for known in interceptors):
            raise PluginGivenTwice
        is_without_activities = not config.get("activities") and not self._may_bring_activities(config)
        config = super().configure_worker(config)
        config["unsandboxed_workflow_runner"] = _unsandboxed(config.get("unsandboxed_workflow_runner"))
        headers = HeaderCodec.of(config["client"])
        status = StatusOfRuns(config["client"])
        self._headers.append(headers)
        self._status.append(status)
        converter = config["client"].config(active_config=True)["data_converter"]
        config["interceptors"] = [
            *interceptors,
            LocalActivities(),
            OnlyOnce(),  # before the attempt learns its number
            AttemptInterceptor(headers, converter.payload_converter),
            TaskInterceptor(headers, status, makes_calls=self._calls is not None),
            WireInterceptor(),
            AdoptingInterceptor(self._adopting(converter)),
        ]
        self._client = config["client"]
        if self._calls is not None:
            self._calls.stops_within(config.get("graceful_shutdown_timeout") or timedelta(0))
        if self._observing.patterns:
            observer = ActivityObserver(self._ledger, config["client"], self._observing, self._own_activities)
            config["interceptors"] = [observer, *config["interceptors"]]
        if is_without_activities and self._calls is None and not _needs_remote_activities(config):
            # A worker that only runs workflows must not take activities from the queue.
            config["no_remote_activities"] = True
        return config

    def _may_bring_activities(self, config: WorkerConfig) -> bool:
        """Return whether a plugin whose turn comes after this one may add activities to the worker."""
        of_client = config["client"].config()["plugins"]
        plugins: list[object] = [*of_client, *(config.get("plugins") or ())]
        later = plugins[plugins.index(self) + 1 :] if self in plugins else plugins
        return any(map(_may_bring_activities, later))

    def configure_replayer(self, config: ReplayerConfig) -> ReplayerConfig:
        """See the base class."""
        config = super().configure_replayer(config)
        config["unsandboxed_workflow_runner"] = _unsandboxed(config.get("unsandboxed_workflow_runner"))
        converter = config.get("data_converter")
        if converter is None or is_default(converter):
            converter = config["data_converter"] = data_converter
        headers = HeaderCodec(converter)
        self._headers.append(headers)
        interceptors = list(config.get("interceptors") or ())
        config["interceptors"] = [
            *interceptors,
            TaskInterceptor(headers),
            WireInterceptor(),
            AdoptingInterceptor(self._adopting(converter)),
        ]
        return config

    def _adopting(self, converter: DataConverter) -> Adopting:
        return Adopting.on(converter, self._adopt_activities, self._record_payloads, self._own_activities)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        for headers in self._headers:
            headers.run_here()
        for status in self._status:
            status.run_here()
        async with self._changing:
            if not self._running:
                await self._open_parts()
            self._running += 1
        try:
            yield
        finally:
            async with self._changing:
                self._running -= 1
                if not self._running:
                    await self._closing.aclose()

    async def _open_parts(self) -> None:
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(self._ledger)
            if self._calls is not None:
                await opened.enter_async_context(self._calls)
                self._calls.cancels_are_pushed(self._client is not None and await are_pushed(self._client))
            self._closing = opened.pop_all()


def _may_bring_a_converter(plugin: temporalio.client.Plugin) -> bool:
    if isinstance(plugin, SimplePlugin) and type(plugin).configure_client is SimplePlugin.configure_client:
        return plugin.data_converter is not None
    return type(plugin).configure_client is not temporalio.client.Plugin.configure_client


def _may_bring_activities(plugin: object) -> bool:
    if not isinstance(plugin, temporalio.worker.Plugin):
        return False
    if isinstance(plugin, SimplePlugin) and type(plugin).configure_worker is SimplePlugin.configure_worker:
        return plugin.activities is not None
    return True


def _needs_remote_activities(config: WorkerConfig) -> bool:
    kinds: Sequence[type] = config.get("workflows") or ()
    names = {getattr(getattr(kind, "__temporal_workflow_definition", None), "name", None) for kind in kinds}
    return not names.isdisjoint(_NEEDS_REMOTE_ACTIVITIES)


def _passing_through(runner: WorkflowRunner | None) -> WorkflowRunner:
    if runner is None:
        raise ValueError("expected the worker's workflow runner, found none")
    if isinstance(runner, SandboxedWorkflowRunner):
        runner = replace(runner, restrictions=runner.restrictions.with_passthrough_modules(*_PASSED_THROUGH))
    return guarded(runner)


def _unsandboxed(runner: WorkflowRunner | None) -> WorkflowRunner:
    return guarded(runner or UnsandboxedWorkflowRunner())
