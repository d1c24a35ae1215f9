"""Reads what the activities of agent frameworks were given, answered and raised.

Nothing here imports a framework. Arguments and results are read as JSON, as the client's payload converter
writes them, and exceptions by their shape. So the same code serves a worker's activity side and a workflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasquencer._exports import lazy

if TYPE_CHECKING:
    from tasquencer.ai.agents.failures import (
        facts_of_failure as facts_of_failure,
        failure_of_agent as failure_of_agent,
    )
    from tasquencer.ai.agents.reading import AgentStep as AgentStep, Answered as Answered, Asked as Asked
    from tasquencer.ai.agents.steps import (
        agent_job_record as agent_job_record,
        answer_facts as answer_facts,
        step_of as step_of,
    )

__getattr__, __dir__, __all__ = lazy(__name__)
