"""What a campaign says at its end."""

from __future__ import annotations

import json
from collections import Counter

from tests.chaos.shapes.campaign import Campaign
from tests.chaos.shapes.checks import violations
from tests.chaos.shapes.witnesses import ShapeAccount

__all__ = ["counted", "found_in", "story", "table"]


def found_in(campaign: Campaign) -> list[tuple[ShapeAccount, list[str]]]:
    """The tasks that break a promise, and which."""
    found = [(account, violations(account)) for account in campaign.accounts]
    return [(account, wrong) for account, wrong in found if wrong]


def table(campaign: Campaign) -> str:
    """The figures, for people."""
    options = campaign.options
    ends = Counter(account.last.state for account in campaign.accounts)
    states = Counter(item.state.value for account in campaign.accounts for item in account.items)
    kinds = Counter(
        item.failure.kind for account in campaign.accounts for item in account.items if item.failure
    )
    acts = Counter(
        f"{name} {reply.partition(':')[0]}"
        for account in campaign.accounts
        for name, reply in account.replies
    )
    lines = [
        ("seeds, ledger, caches", f"{options.seed} and on, {options.ledger}, {tuple(options.caches)}"),
        ("took", f"{campaign.seconds:.0f} s"),
        ("tasks", counted(ends)),
        ("  continued as new", str(sum(len(account.runs) > 1 for account in campaign.accounts))),
        ("  reset", str(sum(account.is_reset for account in campaign.accounts))),
        ("work items", counted(states)),
        ("  failed", counted(kinds)),
        ("requests", str(sum(len(account.requests) for account in campaign.accounts))),
        ("queries answered", str(campaign.looks)),
        ("acts", counted(acts)),
        ("worker deaths", str(campaign.deaths)),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def story(account: ShapeAccount, wrong: list[str]) -> str:
    """All that is known of one task, and its program."""
    lines = [account.task_id, *(f"  ! {one}" for one in wrong), f"  {json.dumps(account.program.as_json())}"]
    lines += [f"  run {run.run_id}: {run.state} {run.error_type} {run.message}" for run in account.runs]
    happened = [
        (
            step.at,
            f"{item.lineage}#{item.attempt} {step.next_state} by {step.actor}, {step.reason}, {item.id[:8]}",
        )
        for item in account.items
        for step in account.transitions[item.id]
    ]
    happened += [
        (one.at, f"  request {one.lineage}#{one.attempt} {one.key[:8]} {one.came}")
        for one in account.requests
    ]
    happened += [(at, "  ~~ a worker died") for at in account.deaths]
    calls = {call for run in account.runs for call in run.scheduled}
    happened += [(at, f"  history: call of {key[:8]}") for key, at in calls]
    begin = min((at for at, _ in happened), default=None)
    if begin is not None:
        end = account.last.closed_at
        for at, text in sorted(happened):
            if end is None or at <= end or "~~" not in text:
                lines.append(f"  {(at - begin).total_seconds():8.3f}  {text}")
        if end is not None:
            lines.append(f"  {(end - begin).total_seconds():8.3f}  the task ends")
    lines += [f"  {name}: {reply}" for name, reply in account.replies]
    return "\n".join(lines)


def counted(counter: Counter[str]) -> str:
    """The numbers, for people."""
    return ", ".join(f"{number} {name}" for name, number in counter.most_common()) or "none"
