"""Our own headers, encoded by the client's codec like any other payload.

By default (`header_codec_behavior`) the SDK does not encode headers, and we must not change the headers of
others. So a workflow passes its header to the worker's event loop, where the codec runs, and waits for the
answer. This adds nothing to the history.
"""

from __future__ import annotations

import asyncio
import re
import threading
import zlib
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.common import HeaderCodecBehavior
from temporalio.converter import (
    DataConverter,
    PayloadCodec,
    WithSerializationContext,
    WorkflowSerializationContext,
)

from tasquencer.temporal.wire import JSON

__all__ = ["MOST_UNPACKED", "RUN_HEADER", "HeaderCodec", "pack", "unpack"]

RUN_HEADER = "tasquencer-run"
"""The header of a work item's call: the run that has recorded its start."""

_FUNCTION = "tasquencer.headers"
"""Name of the function by which a workflow in the sandbox reaches the codec."""

_PACKED = b"tasquencer/zlib"

MOST_UNPACKED = 16 * 1024 * 1024
"""Maximum bytes of a carried task. Ours have up to about 4 MiB: 2,000 work items with results."""

_MOST_VALUES = 500_000
"""Values of a carried task, about. Reading JSON takes up to 500 bytes of memory for each."""

_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"')

_PLAIN = (JSON, _PACKED)

_SECONDS = 1.5
"""How long the codec may take. To the SDK, a workflow that is busy for two seconds is deadlocked."""


def pack(payload: Payload) -> Payload:
    """Compress the payload. Thousands of work items are similar, and Temporal accepts 2 MiB."""
    return Payload(
        metadata={"encoding": _PACKED, "packed": payload.metadata["encoding"]},
        data=zlib.compress(payload.data, 1),
    )


def unpack(payload: Payload) -> Payload:
    """Return the payload as it was before packing. Earlier releases did not pack theirs."""
    if payload.metadata["encoding"] != _PACKED:
        return payload
    decompressor = zlib.decompressobj()
    data = decompressor.decompress(payload.data, MOST_UNPACKED)
    if not decompressor.eof:
        raise ValueError(f"a carried task has more than {MOST_UNPACKED:,} bytes, or is not complete")
    if _separators(data) > _MOST_VALUES and _separators(_TEXTS.sub(b"", data)) > _MOST_VALUES:
        raise ValueError(f"a carried task has more than {_MOST_VALUES:,} values")
    return Payload(metadata={"encoding": payload.metadata["packed"]}, data=data)


def _separators(data: bytes) -> int:
    return sum(map(data.count, (b",", b"[", b"{")))


class HeaderCodec:
    """The client's codec for our headers. One per worker.

    Args:
        converter: The client's.
        behavior: The client's `header_codec_behavior`.
    """

    def __init__(
        self,
        converter: DataConverter = DataConverter.default,
        behavior: HeaderCodecBehavior = HeaderCodecBehavior.NO_CODEC,
    ) -> None:
        self._codec = converter.payload_codec
        self._sdk_encodes = behavior is not HeaderCodecBehavior.NO_CODEC
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    @classmethod
    def of(cls, client: Client) -> HeaderCodec:
        """The codec of the worker's client."""
        config = client.config(active_config=True)
        return cls(config["data_converter"], config["header_codec_behavior"])

    def run_here(self) -> None:
        """Make the codec run in the current event loop, which is the worker's."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.get_running_loop()
            self._thread = threading.get_ident()

    def offer(self, functions: MutableMapping[str, Callable[..., Any]]) -> None:
        """Offer it to the worker's workflows."""
        functions[_FUNCTION] = self._from_a_workflow

    @staticmethod
    def encoded(payload: Payload) -> Payload:
        """In a workflow: encode a payload for a header."""
        return _ask("encode", payload)

    @staticmethod
    def decoded(payload: Payload) -> Payload:
        """In a workflow: decode the payload of a header."""
        return payload if _is_plain(payload) else _ask("decode", payload)

    async def received(self, payload: Payload, namespace: str, workflow_id: str) -> Payload:
        """In an activity: decode the payload that its workflow put into the header."""
        codec = self._codec_for(namespace, workflow_id)
        if codec is None or _is_plain(payload):
            return payload
        return _one(await codec.decode([payload]))

    def _from_a_workflow(self, what: str, payload: Payload, namespace: str, workflow_id: str) -> Payload:
        codec = self._codec_for(namespace, workflow_id)
        if codec is None or (what == "encode" and self._sdk_encodes):
            return payload
        return _one(self._run(_worked(codec, what, payload)))

    def _run(self, working: Coroutine[None, None, list[Payload]]) -> list[Payload]:
        try:
            if self._loop is None or self._thread == threading.get_ident():
                # In the SDK's debug mode workflows run in the thread of the event loop, which cannot wait.
                with ThreadPoolExecutor(1) as beside:
                    return beside.submit(asyncio.run, working).result()
            doing = asyncio.run_coroutine_threadsafe(working, self._loop)
            try:
                return doing.result(_SECONDS)
            finally:
                doing.cancel()
        except Exception as error:
            # Some exceptions fail a workflow for good. This one makes Temporal try the workflow task again.
            problem = str(error) or type(error).__name__
            raise RuntimeError(
                f"the payload codec failed for a header of TasquencerPlugin: {problem}"
            ) from error

    def _codec_for(self, namespace: str, workflow_id: str) -> PayloadCodec | None:
        codec: Any = self._codec
        if isinstance(codec, WithSerializationContext):
            codec = codec.with_context(WorkflowSerializationContext(namespace, workflow_id))
        return cast("PayloadCodec | None", codec)


async def _worked(codec: PayloadCodec, what: str, payload: Payload) -> list[Payload]:
    return await (codec.encode if what == "encode" else codec.decode)([payload])


def _ask(what: str, payload: Payload) -> Payload:
    function = workflow.extern_functions().get(_FUNCTION)
    if function is None:
        return payload
    info = workflow.info()
    answer: Payload = function(what, payload, info.namespace, info.workflow_id)
    return answer


def _one(payloads: Sequence[Payload]) -> Payload:
    if len(payloads) != 1:
        raise RuntimeError(f"expected one payload from the payload codec, found {len(payloads)}")
    return payloads[0]


def _is_plain(payload: Payload) -> bool:
    return payload.metadata.get("encoding") in _PLAIN
