"""AI calls that follow a script, for tests of workflows that need no model and no server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial

from pydantic import BaseModel, JsonValue

from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob
from tasquencer.ai.ladder import provider_of
from tasquencer.ai.provider.client import make_client
from tasquencer.ai.provider.directory import Endpoint
from tasquencer.ai.provider.exchange import Providers, Question
from tasquencer.ai.provider.reply import Reply
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
            the job, async or not, for calls that run side by side.

    Attributes:
        jobs: What was asked so far, in order.
    """

    def __init__(self, script: Iterable[Step] | Callable[[AiJob], Step | Awaitable[Step]]) -> None:
        self.jobs: list[AiJob] = []
        super().__init__(
            make_client(api_key="scripted", base_url="http://127.0.0.1:9/v1"),
            default_model="scripted",
            price=lambda *_: None,
            providers=partial(_ScriptedProviders, script=script, jobs=self.jobs),
        )


class _ScriptedProviders(Providers):
    def __init__(
        self,
        default: Endpoint,
        *,
        script: Iterable[Step] | Callable[[AiJob], Step | Awaitable[Step]],
        jobs: list[AiJob],
    ) -> None:
        super().__init__(default)
        self._choose = script if callable(script) else None
        self._steps = iter(()) if callable(script) else iter(list(script))
        self._jobs = jobs

    def find(self, model: str | None) -> tuple[Endpoint, str | None]:
        """Every name before a colon is that of a provider, as if a file named them all."""
        default, name = super().find(model)
        prefix = provider_of(model)
        return (default, name) if prefix is None else (replace(default, name=prefix), name)

    async def exchange(self, question: Question) -> Reply | Failure:
        """What the script says, as the provider's reply."""
        self._jobs.append(question.job)
        step = self._choose(question.job) if self._choose is not None else next(self._steps, None)
        if isinstance(step, Awaitable):
            step = await step
        if step is None:
            problem = f"the script has no more than {len(self._jobs) - 1} steps"
            return Failure.of(FailureKind.UNEXPECTED, problem)
        if isinstance(step, FailureKind):
            return Failure.of(step, f"{step} by the script")
        return step if isinstance(step, Failure) else _reply(step, question)


def _reply(step: str | dict[str, JsonValue] | BaseModel | AiAnswer, question: Question) -> Reply:
    """The reply of a provider that answers so."""
    given = step if isinstance(step, AiAnswer) else AiAnswer(text=_text(step))
    usage = {"prompt_tokens": given.input_tokens, "completion_tokens": given.output_tokens}
    details = {"cached_tokens": given.cached_tokens}
    completion = {
        "id": given.provider_request_id or question.work_item_id,
        "object": "chat.completion",
        "model": given.model or question.model,
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
