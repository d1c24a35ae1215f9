"""The settings of this process, read and checked in one place before anything starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tasquencer.core.errors import WrongSetting, WrongSettings
from tasquencer.settings import Settings, clean, problems_in

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["checked_settings"]


def checked_settings(*, provider: bool = False) -> Settings:
    """Return the settings from the environment of this process.

    Removes empty settings and white space around values in the environment itself, also for other packages.

    Args:
        provider: True if this process calls a model, so that the provider's settings are checked too.

    Raises:
        WrongSettings: names every setting that cannot be used.
    """
    from tasquencer.temporal.settings import problems_in as problems_with_temporal

    clean(os.environ)
    problems = [
        *problems_in(os.environ),
        *_database_problems(os.environ),
        *problems_with_temporal(os.environ),
    ]
    if provider:
        from tasquencer.ai.provider.directory import provider_problems
        from tasquencer.ai.provider.settings import problems_in as problems_with_provider

        problems += [*problems_with_provider(os.environ), *provider_problems(os.environ)]
    if problems:
        raise WrongSettings(problems)
    return Settings.from_environment(os.environ)


def _database_problems(environment: Mapping[str, str]) -> list[WrongSetting]:
    url = environment.get("TASQ_DATABASE_URL")
    if url is None:
        return []
    try:
        from tasquencer.sql.databases import database_at

        database_at(url)
    except ModuleNotFoundError:  # the optional part `sql` is not installed
        return []
    except ValueError as error:
        return [WrongSetting("TASQ_DATABASE_URL", str(error))]
    return []
