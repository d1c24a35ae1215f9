"""Tasks on Temporal: `Task` for workflows, `TasquencerPlugin` for workers, `connect` for both."""

from tasquencer.temporal.agent import Agent, Turn
from tasquencer.temporal.asking import ask
from tasquencer.temporal.attempts import ActiveWorkItem, Attempts
from tasquencer.temporal.connection import connect
from tasquencer.temporal.converter import data_converter
from tasquencer.temporal.failures import as_application_error, failure_of
from tasquencer.temporal.model_call import answer, job_of
from tasquencer.temporal.only_once import NEVER_RETRY
from tasquencer.temporal.plugin import TasquencerPlugin
from tasquencer.temporal.task import Task, accept

__all__ = [
    "NEVER_RETRY",
    "ActiveWorkItem",
    "Agent",
    "Attempts",
    "Task",
    "TasquencerPlugin",
    "Turn",
    "accept",
    "answer",
    "as_application_error",
    "ask",
    "connect",
    "data_converter",
    "failure_of",
    "job_of",
]
