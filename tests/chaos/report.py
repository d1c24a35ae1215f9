"""What a run says at its end: its figures, and the smallest story of what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from statistics import median, quantiles

from tests.chaos.accounts import Account
from tests.chaos.checks import batch_violations, violations
from tests.chaos.events import BUSY
from tests.chaos.plan import BY_WILL, FAULTS, RECOVERY_SECONDS
from tests.chaos.run import Outcome
from tests.stories.telling import told

__all__ = ["found_in", "missed_aims", "recoveries", "slowest_stories", "smallest_story", "table"]


def found_in(outcome: Outcome) -> list[tuple[Account, list[str]]]:
    """The tasks that break a promise, and which."""
    found = [(account, violations(account)) for account in outcome.accounts]
    return [(account, wrong) for account, wrong in found if wrong]


def smallest_story(found: Sequence[tuple[Account, list[str]]]) -> str:
    """The violation whose story is the quickest to read, with the events of its time."""
    return min((_story(account, wrong) for account, wrong in found), key=len)


def _story(account: Account, wrong: Sequence[str]) -> str:
    start = account.story.ending.started_at
    lines = [(float(line.split()[0]), line) for line in told(account.story).splitlines()]
    history = account.history
    besides = [
        *((event.at, f"~~ {event}") for event in account.events),
        *((when, f"history: call of {key[:8]} scheduled") for key, when in history.scheduled),
        *((when, "history: a workflow task begins that is lost") for when in history.lost_at),
    ]
    for when, text in besides:
        at = (when - start).total_seconds()
        lines.append((at, f"  {at:8.3f}  {text}"))
    head = [
        f"{account.story.task_id}, runs {', '.join(account.history.runs)}",
        *(f"  ! {one}" for one in wrong),
    ]
    return "\n".join([*head, *(line for _, line in sorted(lines, key=lambda line: line[0]))])


def table(outcome: Outcome) -> str:
    """The figures, for people."""
    lines: list[tuple[str, str]] = []
    options = outcome.options
    lines.append(("seed, ledger", f"{options.seed}, {options.ledger}"))
    lines.append(("took", f"{outcome.seconds:.0f} s"))
    ends = Counter(account.history.state for account in outcome.accounts)
    lines.append(("tasks", _counted(ends)))
    if outcome.batch is not None:
        lines.append(("  rows of the batch", _counted(Counter(outcome.batch.recorded.values()))))
    chains = sum(len(account.history.runs) > 1 for account in outcome.accounts)
    lines.append(("  that continued as new", f"{chains}"))
    states = Counter(item.state.value for account in outcome.accounts for item in account.story.items)
    lines.append(("work items", _counted(states)))
    kinds = Counter(
        item.failure.kind for account in outcome.accounts for item in account.story.items if item.failure
    )
    lines.append(("  failed", _counted(kinds)))
    requests = sum(len(account.story.calls) for account in outcome.accounts)
    lines.append(
        ("requests", f"{requests}; the ledger was looked at on the arrival of {requests - outcome.unlooked}")
    )
    acts = Counter(f"{act.name} {act.reply}" for account in outcome.accounts for act in account.story.acts)
    lines.append(("operators' actions", _counted(acts)))
    settled = Counter({cause.value: count for cause, count in outcome.reconciled.settled.items()})
    lines.append(("settled by the reconciler", _counted(settled)))
    faults = Counter(event.kind for event in outcome.events if event.kind in FAULTS)
    lines.append(("faults", _counted(faults)))
    lines.extend((f"  {kind}", _moments(outcome, kind)) for kind in BY_WILL)
    others = Counter(event.kind for event in outcome.events if event.kind not in FAULTS)
    lines.append(("  others", _counted(others)))
    lost = sum(len(account.history.lost_at) for account in outcome.accounts)
    lines.append(("workflow tasks lost", str(lost)))
    lines.append(("snapshots of ended work items", str(outcome.sightings)))
    lines.append(("last end after the last fault", f"{_last_end(outcome):.1f} s"))
    for name, seconds in recoveries(outcome).items():
        lines.append((name, _spread(seconds)))
    for name, samples in outcome.rss.items():
        lines.append((f"memory of {name}", memory(samples)))
    if outcome.cached:
        size = max(1, len(outcome.cached) // 5)
        fifths = [f"{median(outcome.cached[n : n + size]):.0f}" for n in range(0, 5 * size, size)]
        lines.append(("  workflows that it keeps there", " ".join(fifths)))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


_ENOUGH_KILLS = 5
"""After which a recovery has been measured: at one of them some call was under way."""


def missed_aims(outcome: Outcome) -> list[str]:
    """What a worker did by itself, and what is slower or larger than it must be."""
    missed = [
        str(event) for event in outcome.events.of_kinds(["worker ended by itself", "worker does not end"])
    ]
    if outcome.batch is not None:
        missed += batch_violations(outcome.batch, outcome.events)
    if outcome.reconciled.undecided:
        missed.append(f"the reconciler could not decide about {outcome.reconciled.undecided} work items")
    measured, kills = recoveries(outcome)[_QUIET], [event for event in outcome.events if event.quiet]
    slowest = max(measured, default=0.0)
    if len(kills) >= _ENOUGH_KILLS and not measured:
        missed.append(f"no call was under way at any of {len(kills)} kills: the recovery was not measured")
    elif slowest > RECOVERY_SECONDS:
        missed.append(
            f"a call went on {slowest:.1f} s after a SIGKILL, at most {RECOVERY_SECONDS:g} s are allowed"
        )
    for name, samples in outcome.rss.items():
        grown = growth(samples)
        if grown is not None and not 0.9 <= grown <= 1.1:
            missed.append(f"the memory of {name} went to {grown:.0%} of what it was early in the run")
    return missed


def _moments(outcome: Outcome, kind: str) -> str:
    return _counted(Counter(event.note for event in outcome.events.of_kinds([kind])))


def _last_end(outcome: Outcome) -> float:
    ends = [account.history.closed_at for account in outcome.accounts if account.history.closed_at]
    fault = outcome.events.end_of_faults()
    return (max(ends) - fault).total_seconds() if ends and fault is not None else 0.0


_WORKFLOW_TASK_TIMEOUT = timedelta(seconds=10)

_CALLING, _QUIET, _DECIDING = "recovery of calls after SIGKILL", "  nothing else disturbed", "  of decisions"


def recoveries(outcome: Outcome) -> dict[str, list[float]]:
    """Return the seconds from the SIGKILL of a worker until another worker continued its task.

    A task with a running call continues when its heartbeats have been missing for long enough. A task that
    was being decided continues when Temporal gives up its workflow task (10 s). The same holds if its call
    had just ended, or another call of it was running.
    """
    found: dict[str, list[float]] = {_CALLING: [], _QUIET: [], _DECIDING: []}
    for name, seconds, _ in _recovered(outcome):
        found[name].append(seconds)
    return found


def slowest_stories(outcome: Outcome, number: int = 2) -> str:
    """The tasks whose calls went on last after a SIGKILL, first those of which nothing else was disturbed."""
    stories: list[str] = []
    for name in (_QUIET, _CALLING):
        slow = sorted((row for row in _recovered(outcome) if row[0] == name), key=lambda row: -row[1])
        stories += [_story(account, [f"went on after {s:.1f} s"]) for _, s, account in slow[:number]]
    return "\n\n".join(stories)


def _recovered(outcome: Outcome) -> Iterator[tuple[str, float, Account]]:
    by_pid = {event.pid: event for event in outcome.events.of_kinds(["kill worker", "die at"])}
    for account in outcome.accounts:
        if account.is_cut_off:
            continue
        scheduled = dict(account.history.scheduled)
        for item in account.story.items:
            pid = (item.worker or "").partition("@")[0]
            kill = by_pid.get(int(pid)) if pid.isdigit() else None
            if kill is None or item.started_at is None or item.ended_at is None:
                continue
            if not item.started_at < kill.at < item.ended_at:
                continue
            call_at = scheduled.get(item.id)
            if call_at is not None and call_at > kill.at:
                yield _DECIDING, (call_at - kill.at).total_seconds(), account
                continue
            answered = any(
                call.key == item.id
                and call.complete
                and call.ended_at is not None
                and call.ended_at < kill.at
                for call in account.story.calls
            )
            was_decided = any(
                kill.at - _WORKFLOW_TASK_TIMEOUT <= begun <= kill.at for begun in account.history.lost_at
            )
            seconds = (item.ended_at - kill.at).total_seconds()
            if call_at is None or answered or was_decided:
                yield _DECIDING, seconds, account
                continue
            yield _CALLING, seconds, account
            if kill.quiet and not account.events_between([BUSY], kill.at, item.ended_at):
                yield _QUIET, seconds, account


def memory(samples: Sequence[tuple[datetime, int, float]]) -> str:
    """MB over the run, in fifths; a process that was started anew begins small."""
    if len(samples) < 10:
        return "too few samples"
    size = len(samples) // 5
    fifths = [median(mb for _, _, mb in samples[n * size : (n + 1) * size]) for n in range(5)]
    processes = len({pid for _, pid, _ in samples})
    told_fifths = " ".join(f"{mb:.0f}" for mb in fifths)
    return f"{told_fifths} MB ({processes} processes)"


def growth(samples: Sequence[tuple[datetime, int, float]]) -> float | None:
    """Memory in the last fifth over that in the second fifth, of one process; None: too few samples."""
    if len(samples) < 25 or len({pid for _, pid, _ in samples}) > 1:
        return None
    size = len(samples) // 5
    early, late = samples[size : 2 * size], samples[-size:]
    return median(mb for _, _, mb in late) / median(mb for _, _, mb in early)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ", ".join(f"{value:.1f} s" for value in values) or "none"
    ninth = quantiles(values, n=10, method="inclusive")[-1]
    return f"p50 {median(values):.1f} s, p90 {ninth:.1f} s, max {max(values):.1f} s ({len(values)} calls)"


def _counted(counts: Counter[str]) -> str:
    parts = [f"{count} {name}" for name, count in counts.most_common()]
    return f"{counts.total()}: {', '.join(parts)}" if parts else "0"
