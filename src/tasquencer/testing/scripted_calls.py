"""AI calls that follow a script, for tests of workflows that need no model and no server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pydantic import BaseModel, JsonValue
from temporalio import activity

from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob
from tasquencer.ai.ladder import provider_of
from tasquencer.ai.provider.client import make_client
from tasquencer.ai.provider.directory import Endpoint
from tasquencer.ai.provider.reply import Reply
from tasquencer.ai.tools import ToolSource
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.temporal.ai_calls import AiCalls

__all__ = ["ScriptedCalls", "Step"]

Step = str | dict[str, JsonValue] | BaseModel | AiAnswer | Failure | FailureKind
"""What one call comes to: a text, JSON (an object or a model), an `AiAnswer` with its tokens and cost, or a
failure."""


class ScriptedCalls(AiCalls):
    """Stands in for `AiCalls` in tests: `TasquencerPlugin(ledger, calls=ScriptedCalls(["no json", "{}"]))`.

    Nothing is sent. What the script answers is judged as a provider's answer is, the JSON Schema of the
    output included.

    Args:
        script: What each call comes to, in order; a call beyond it fails as `unexpected`. Or a function of
            the job, for calls that run side by side.

    Attributes:
        jobs: What was asked so far, in order.
    """

    def __init__(self, script: Iterable[Step] | Callable[[AiJob], Step]) -> None:
        super().__init__(
            make_client(api_key="scripted", base_url="http://127.0.0.1:9/v1"),
            default_model="scripted",
            price=lambda *_: None,
        )
        self._choose = script if callable(script) else None
        self._steps = iter(()) if callable(script) else iter(list(script))
        self.jobs: list[AiJob] = []

    def _endpoint(self, model: str | None) -> tuple[Endpoint, str | None]:
        """Every name before a colon is that of a provider, as if a file named them all."""
        default, name = super()._endpoint(model)
        prefix = provider_of(model)
        return (default, name) if prefix is None else (replace(default, name=prefix), name)

    async def _exchange(
        self,
        job: AiJob,
        endpoint: Endpoint,
        model: str,
        work_item_id: str,
        limit_seconds: float | None,
        tools: Sequence[ToolSource],
    ) -> Reply | Failure:
        """What the script says, as the provider's reply."""
        self.jobs.append(job)
        step = self._choose(job) if self._choose is not None else next(self._steps, None)
        if step is None:
            problem = f"the script has no more than {len(self.jobs) - 1} steps"
            return Failure.of(FailureKind.UNEXPECTED, problem)
        if isinstance(step, FailureKind):
            return Failure.of(step, f"{step} by the script")
        return step if isinstance(step, Failure) else _reply(step, model)


def _reply(step: str | dict[str, JsonValue] | BaseModel | AiAnswer, model: str) -> Reply:
    """The reply of a provider that answers so."""
    given = step if isinstance(step, AiAnswer) else AiAnswer(text=_text(step))
    usage = {"prompt_tokens": given.input_tokens, "completion_tokens": given.output_tokens}
    details = {"cached_tokens": given.cached_tokens}
    completion = {
        "id": given.provider_request_id or activity.info().activity_id,
        "object": "chat.completion",
        "model": given.model or model,
        "choices": [
            {
                "index": 0,
                "finish_reason": given.finish_reason or "stop",
                "message": {"role": "assistant", "content": given.text},
            }
        ],
        "usage": {
            **{name: count for name, count in usage.items() if count is not None},
            "prompt_tokens_details": {} if given.cached_tokens is None else details,
            "cost": given.cost_usd,
        },
    }
    return Reply(200, {"content-type": "application/json"}, json.dumps(completion).encode())


def _text(step: str | dict[str, JsonValue] | BaseModel) -> str:
    if isinstance(step, str):
        return step
    return step.model_dump_json() if isinstance(step, BaseModel) else json.dumps(step)
