"""Finds the kind of failure of a provider's error.

The provider's words count more than the status, because the same error comes with a 4xx, with a 5xx and
inside a 200. The first matching rule decides. Codes are compared in lower case without punctuation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tasquencer.ai.provider.reported import Report
from tasquencer.core.failure import FailureKind

__all__ = ["kind_of_error"]

_K = FailureKind


@dataclass(frozen=True)
class _Rule:
    kind: FailureKind
    codes: re.Pattern[str]
    """Found in a code."""
    texts: re.Pattern[str] | None = None
    """Found in the messages, in lower case."""

    def fits(self, report: Report, *, texts_count: bool = True) -> bool:
        if any(self.codes.search(code) for code in report.codes):
            return True
        return bool(texts_count and self.texts and report.text and self.texts.search(report.text))


def _rule(kind: FailureKind, codes: str, *texts: str) -> _Rule:
    """Return a rule. Blanks separate the patterns for codes."""
    return _Rule(kind, _any(*codes.split()), _any(*texts) if texts else None)


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


_REFUSED = _rule(
    _K.REFUSED,
    """
    contentfilter contentpolic contentmoderation contentblocked moderation responsibleai datainspection
    sensitive safety prohibitedcontent blocklist guardrail flagged usagepolic policyviolation ^1301$
    ^102[67]$
    """,
    "content management policy",
    "content (?:filter|polic|moderation|exists risk)",
    "(?:was|were|been|is) flagged",
    "flagged (?:by|as|for)",
    "usage (?:guidelines|polic)",
    "violat.{0,60}(?:policy|policies|guidelines)",
    "safety (?:system|filter|polic|reasons|check)",
    "blocked by .{0,40}(?:filter|polic|guardrail|safety)",
    "(?:inappropriate|prohibited|sensitive) content",
    "sensitive (?:information|words?)|new_sensitive",
    r"requires moderation|by (?:\w{1,20} ){0,2}moderation",
    "moderation (?:block|fail|error|filter|system|check|polic)",
    "responsible ai",
    "敏感|违规|不安全",
)
_UNFIT_OUTPUT = _rule(
    _K.INVALID_OUTPUT, "jsonvalidatefailed toolusefailed outputparse", "failed to (?:generate|validate) json"
)
_TOO_LONG = _rule(
    _K.INVALID_REQUEST,
    """
    contextlength contextwindow contextsize contextlimit prompttoolong inputtoolong stringabovemax
    requesttoolarge ^1261$
    """,
    "maximum context length|context length of",
    "context (?:length|window|size) (?:is |was |has been )?(?:exceeded|too)",
    r"exceed\w{0,6} .{0,60}context (?:length|window|size)",
    "(?:prompt|input|request|conversation) (?:is |was )?too (?:long|large)",
    "reduce the length of",
    "token count .{0,60}exceeds",
)
_NO_SUCH_MODEL = _rule(_K.INVALID_REQUEST, "modelnotfound modelnotsupported modelnotexist deploymentnotfound")
_SPENT = _rule(
    _K.QUOTA_EXCEEDED,
    """
    insufficient(?:user)?(?:quota|balance|credit|fund) currentquota (?:outof|nomore|no)(?:credit|fund|balance)
    (?:balance|credits?|funds?|quota)(?:is)?(?:not|insufficient|exhausted|depleted|toolow|usedup) billing
    arrear overdue budget(?:has)?(?:been)?exceed exceededbudget budgetlimit creditlimit creditserror
    spend(?:ing)?limit paymentrequired preconsumetokenquota freetieronly freequota hardlimit planexpired
    setlimitexceeded accessterminated ^1113$ ^1309$ ^131[01]$ ^1008$ ^30001$
    """,
    "credit balance|credit limit|api usage limits|key limit exceeded|insufficient_quota",
    r"insufficient (?:\w{1,20} )?(?:credits?|balance|funds?|quota)",
    r"(?:out of|no|enough|any|more|remaining|available|included|all) (?:\w{1,20} )?credits\b",
    "(?:balance|credits?) (?:is |are |have been )?(?:too low|insufficient|not enough)",
    "(?:balance|credits?) (?:is |are |have been )?(?:exhausted|depleted|used up)",
    "billing (?:hard )?limit|billing (?:is )?(?:not active|inactive)",
    "spend(?:ing)? (?:limit|cap)",
    "budget (?:has been |is )?(?:exceeded|exhausted)|exceeded .{0,30}budget",
    "payment (?:is )?(?:required|past due|overdue|failed)|failure to pay|past due|unpaid|in arrears",
    "quota is not enough|not enough quota|recharge|top[ -]up|api calls / month",
    "subscription .{0,30}(?:expired|past due)",
    "余额不足|欠费|充值|额度(?:不足|已用尽|已耗尽|已用完)",
)
"""Waiting does not help, because the money or the plan is used up."""

_MAYBE_SPENT = _rule(
    _K.QUOTA_EXCEEDED,
    """
    (?<!token)(?<!request)(?<!rate)(?<!minute)quota(?:limit)?(?:exceed|exhaust|reached)
    (?:usage|plan|monthly|daily|weekly)limit
    """,
    r"exceeded your (?:\w{1,20} ){0,2}quota",
    "quota (?:has been |is )?(?:exceeded|exhausted|reached|used up)",
    r"out of (?:\w{1,20} ){0,2}quota",
    "check your plan and billing",
    "usage limit",
)
"""Some providers mean spent money, others a limit per minute. The latter name the limit or ask to wait."""

_LIMIT_OF_A_TIME = _any("per[ _-]?(?:sec|min|hour|day)")

_UNAUTHORIZED = _rule(
    _K.UNAUTHORIZED,
    """
    apikey invalidkey invalidtoken expiredtoken expiredkey tokenexpired autherror authentication
    unauthenticated unauthorized permissiondenied permissionerror accessdenied notauthorized
    accountdeactivated
    """,
)
_LIMITED_CODES = re.compile("^ratelimit")
_LIMITED = _rule(
    _K.RATE_LIMITED,
    """
    ratelimit toomanyrequest throttl ratequota resourceexhausted limitrequests limitburst requestburst
    concurrency toomanytokens tokenquota requestquota queueexceeded capacityexceeded nocapacity slowdown
    ^130[023458]$ ^1015$
    """,
    "rate[ -]?limit(?:s|ed|ing)? ?(?:exceeded|reached|hit|error)",
    "exceeded .{0,60}rate[ -]?limit|rate[ -]limited|too many requests",
    "(?:tokens?|requests?) per (?:min|sec|day)",
    "quota exceeded for",
    "频率|速率|并发",
)
_TOOK_TOO_LONG = _rule(_K.TIMED_OUT, "timeout timedout deadlineexceeded")
_BROKEN = _rule(
    _K.PROVIDER_ERROR,
    """
    overload unavailable servererror internalerror internalfailure serverbusy enginebusy toobusy
    modelloading ^generation$ incompletegeneration badgateway modelerror modelstreamerror notready
    queuefull apiconnection
    """,
    "overloaded|temporarily unavailable|too busy|failed during generation|generation failed",
)
_WRONG = _rule(
    _K.INVALID_REQUEST,
    """
    invalidrequest invalidargument badrequest validation invalidparam invalidvalue notfound notsupported
    unsupported unprocessable missing
    """,
)

_STATUSES = {
    401: _K.UNAUTHORIZED,
    402: _K.QUOTA_EXCEEDED,
    403: _K.UNAUTHORIZED,
    407: _K.UNAUTHORIZED,
    408: _K.TIMED_OUT,
    409: _K.PROVIDER_ERROR,
    420: _K.RATE_LIMITED,
    421: _K.PROVIDER_ERROR,
    423: _K.PROVIDER_ERROR,
    424: _K.PROVIDER_ERROR,
    425: _K.PROVIDER_ERROR,
    429: _K.RATE_LIMITED,
    430: _K.RATE_LIMITED,
    444: _K.PROVIDER_ERROR,
    449: _K.PROVIDER_ERROR,
    498: _K.RATE_LIMITED,
    499: _K.PROVIDER_ERROR,
    504: _K.TIMED_OUT,
    524: _K.TIMED_OUT,
    598: _K.TIMED_OUT,
}
"""Any other 4xx is `invalid_request`, anything else `provider_error`."""

_CLEAR_STATUSES = frozenset({401, 402, 403, 404, 407, 408, 413, 422, 429})
"""Statuses that a number in a sentence does not change."""

_SETTLED_STATUSES = frozenset({401, 402, 403, 407, 408, 429})
"""Statuses that a code for a broken or slow server does not change."""


def kind_of_error(status_code: int, report: Report, *, has_retry_after: bool = False) -> FailureKind:
    """Return the kind of an error that came with this status, which may be a good one.

    Args:
        status_code: The status of the answer.
        report: The contents of its body.
        has_retry_after: True if its headers ask to wait.
    """
    for rule in (_REFUSED, _UNFIT_OUTPUT, _TOO_LONG):
        if rule.fits(report):
            return rule.kind
    decisive = _decisive_status(status_code, report)
    asks_to_wait = report.wait_seconds is not None or any(map(_LIMITED_CODES.search, report.codes))
    if _SPENT.fits(report, texts_count=not asks_to_wait):
        return _K.QUOTA_EXCEEDED
    if _MAYBE_SPENT.fits(report):
        is_limit = asks_to_wait or has_retry_after or _LIMIT_OF_A_TIME.search(report.text)
        return _K.RATE_LIMITED if is_limit and decisive != 402 else _K.QUOTA_EXCEEDED
    if status_code != 429 and _UNAUTHORIZED.fits(report):
        return _K.UNAUTHORIZED
    if decisive != 402 and _LIMITED.fits(report):
        return _K.RATE_LIMITED
    if status_code != 429 and _NO_SUCH_MODEL.fits(report):
        return _K.INVALID_REQUEST
    if decisive not in _SETTLED_STATUSES and decisive < 500:
        for rule in (_TOOK_TOO_LONG, _BROKEN):
            if rule.fits(report):
                return rule.kind
    if decisive < 300:
        return _K.INVALID_REQUEST if _WRONG.fits(report) else _K.PROVIDER_ERROR
    if decisive in _STATUSES:
        return _STATUSES[decisive]
    return _K.INVALID_REQUEST if 400 <= decisive < 500 else _K.PROVIDER_ERROR


def _decisive_status(status_code: int, report: Report) -> int:
    """Return the status that counts: the innermost one in the body, else that of the answer."""
    if report.numbers:
        inner = report.numbers[-1]
        return status_code if status_code == 429 and (inner == 400 or inner >= 500) else inner
    if report.numbers_in_text and status_code not in _CLEAR_STATUSES:
        return report.numbers_in_text[-1]
    return status_code
