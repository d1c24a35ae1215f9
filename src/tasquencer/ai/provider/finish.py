"""The meaning of providers' finish reasons."""

from __future__ import annotations

import re
from enum import Enum

__all__ = ["Finish", "finish_of"]


class Finish(Enum):
    """Why an answer ends."""

    GOOD = "good"
    CUT_OFF = "cut off"
    BROKEN = "broken by the provider"
    FILTERED = "filtered"
    UNKNOWN = "unknown"
    """No finish reason, or an unknown one. The answer counts, and the reason is recorded."""


_WORDS: dict[Finish, str] = {
    Finish.GOOD: """
        stop end_turn stop_sequence stop_token eos eos_token complete completed finish finished done end
        success tool_calls tool_call tool_use function_call
        """,
    Finish.CUT_OFF: """
        length max_tokens max_output_tokens max_length max_new_tokens model_length token_limit incomplete
        context_length context_length_exceeded context_window_exceeded model_context_window_exceeded
        """,
    Finish.BROKEN: """
        error network_error connection_error insufficient_system_resource insufficient_system_resources
        server_error internal_error internal_server_error provider_error upstream_error engine_error
        model_error unexpected_error abort aborted cancel cancelled canceled user_cancel timeout time_out
        timed_out failed failure fail overloaded engine_overloaded interrupted malformed_response
        disconnected
        """,
    Finish.FILTERED: """
        content_filter content_filtered contentfilter filter filtered safety safety_block recitation
        blocklist prohibited_content spii image_safety sensitive refusal refused guardrail guardrails
        guardrail_intervened moderation moderated error_toxic toxic blocked flagged prompt_blocked
        content_policy content_policy_violation content_blocked risk model_armor language_policy
        data_inspection_failed
        """,
}
_MEANINGS = {word: finish for finish, words in _WORDS.items() for word in words.split()}


def finish_of(word: object) -> Finish:
    """Return the meaning of a finish reason in any spelling: `MAX_TOKENS`, `content_filter: SAFETY`."""
    if not isinstance(word, str):
        return Finish.UNKNOWN
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word[:200])
    plain = re.sub(r"[^a-z]+", "_", snake.lower()).strip("_").removeprefix("finish_reason_")
    if plain.startswith("content_filter"):
        return Finish.FILTERED
    return _MEANINGS.get(plain, Finish.UNKNOWN)
