"""AI calls: requests, answers, records, and the call itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasquencer._exports import lazy

if TYPE_CHECKING:
    from tasquencer.ai.answer import AiAgentResult as AiAgentResult, AiAnswer as AiAnswer
    from tasquencer.ai.fan_out import AiFanOutRequest as AiFanOutRequest, AiFanOutResult as AiFanOutResult
    from tasquencer.ai.job import AiJob as AiJob, ChatMessage as ChatMessage
    from tasquencer.ai.mcp import McpSettings as McpSettings
    from tasquencer.ai.record import ai_job_record as ai_job_record
    from tasquencer.ai.request import (
        AiAgentRequest as AiAgentRequest,
        CallOptions as CallOptions,
        RetryOptions as RetryOptions,
        parse_request as parse_request,
    )
    from tasquencer.ai.tool_calls import OnToolFailure as OnToolFailure
    from tasquencer.ai.tools import ToolContext as ToolContext, ToolError as ToolError, tool as tool
    from tasquencer.temporal.ai_calls import AiCalls as AiCalls

__getattr__, __dir__, __all__ = lazy(__name__)
