"""What a campaign of foreign workflows says at its end."""

from __future__ import annotations

from collections import Counter

from tasquencer.core.observed import is_observed
from tests.chaos.foreign.application import SEEN, TAKEN
from tests.chaos.foreign.campaign import ForeignAccount, ForeignCampaign
from tests.chaos.foreign.checks import gaps, is_forgotten, violations
from tests.chaos.shapes.report import counted, story

__all__ = ["found_in", "stories", "table"]


def found_in(campaign: ForeignCampaign) -> list[tuple[ForeignAccount, list[str]]]:
    """The tasks that break a promise, and which."""
    found = [(account, violations(account)) for account in campaign.accounts]
    return [(account, wrong) for account, wrong in found if wrong]


def stories(found: list[tuple[ForeignAccount, list[str]]]) -> str:
    """All that is known of these tasks."""
    return "\n\n".join(
        "\n".join([story(account.known, wrong), *(f"  {one}" for one in account.executions)])
        for account, wrong in found
    )


def table(campaign: ForeignCampaign) -> str:
    """The figures, for people."""
    options, accounts = campaign.options, campaign.accounts
    kinds = {"observed": Counter[str](), "adopted": Counter[str](), "of agents": Counter[str]()}
    failures = {name: Counter[str]() for name in kinds}
    for account in accounts:
        for item in account.known.items:
            name = "of agents" if account.task.script is None else "adopted"
            name = "observed" if is_observed(item.id) else name
            kinds[name][item.state.value] += 1
            if item.failure is not None:
                failures[name][item.failure.kind] += 1
    ends = Counter(
        f"{'agents' if account.task.script is None else 'foreign'} {account.known.last.state}"
        for account in accounts
    )
    executed = Counter(one.what for account in accounts for one in account.executions)
    tools = sum(number for what, number in executed.items() if what not in (SEEN, TAKEN, "model"))
    left = Counter(
        "observed"
        if is_observed(item.id)
        else "adopted by a lost workflow task"
        if is_forgotten(account, item)
        else "others"
        for account in accounts
        for item in account.left_open
    )
    lines = [
        ("seeds, ledger, caches", f"{options.seed} and on, {options.ledger}, {tuple(options.caches)}"),
        ("took", f"{campaign.seconds:.0f} s"),
        ("tasks", counted(ends)),
    ]
    for name, states in kinds.items():
        lines += [(f"work items, {name}", counted(states)), ("  failed as", counted(failures[name]))]
    lines += [
        ("executions", f"{executed[SEEN]} observed, {executed[TAKEN]} adopted, {tools} of tools"),
        ("requests of the model", str(executed["model"])),
        ("observed attempts without a record", str(sum(len(gaps(account)) for account in accounts))),
        ("open before the reconciler", counted(left)),
        ("workflow tasks lost", str(sum(run.lost for account in accounts for run in account.known.runs))),
        ("worker deaths", str(campaign.deaths)),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
