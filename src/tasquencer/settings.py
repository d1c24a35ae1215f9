"""Settings from the environment, read once by whoever composes a program.

The Temporal connection is not here: it comes from `temporalio.envconfig`, as for the `temporal` CLI.
The OpenAI client reads `OPENAI_API_KEY` and `OPENAI_BASE_URL` by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasquencer.core.errors import WrongSetting

__all__ = ["DATA_CONVERTER", "DEFAULT_MODEL", "DEFAULT_TASK_QUEUE", "Settings", "named_setting"]

DATA_CONVERTER = "TASQ_DATA_CONVERTER"
"""Names the data converter of the connection to Temporal, see `tasquencer.temporal.converter.configured`."""

DEFAULT_TASK_QUEUE = "ai-agent"
DEFAULT_MODEL = "gpt-5-mini"


@dataclass(frozen=True)
class Settings:
    """What the worker and the command line share.

    Attributes:
        database_url: SQLAlchemy URL of the ledger (`TASQ_DATABASE_URL`); by default a SQLite file
            under the user's data folder.
        model: The model that answers when a request names none (`TASQ_MODEL`).
        task_queue: The task queue (`TASQ_TASK_QUEUE`).

    The AI call itself reads the file of prices that `TASQ_PRICES` names, see `tasquencer.ai.provider.prices`.
    """

    database_url: str
    model: str = DEFAULT_MODEL
    task_queue: str = DEFAULT_TASK_QUEUE

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """The settings; an empty variable counts as unset."""
        return cls(
            database_url=environment.get("TASQ_DATABASE_URL") or _default_database_url(),
            model=environment.get("TASQ_MODEL") or DEFAULT_MODEL,
            task_queue=environment.get("TASQ_TASK_QUEUE") or DEFAULT_TASK_QUEUE,
        )


@contextmanager
def named_setting(name: str) -> Iterator[None]:
    """Turn a `ValueError` of the block into a `WrongSetting` that names the setting."""
    try:
        yield
    except ValueError as error:
        raise WrongSetting(name, str(error)) from error


def _default_database_url() -> str:
    import platformdirs

    folder = Path(platformdirs.user_data_dir("tasquencer", appauthor=False))
    return f"sqlite:///{folder / 'ledger.db'}"
