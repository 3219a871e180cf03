"""Move an alias to a version that passed its policy or was approved by override; roll it back.

Every move adds an entry to the alias's history (`models/registry/aliases.py`) with user, time and reason: `passed`,
`overridden` with the reasons against it, `rolled back`. For the first two, the entry stores the whole report and the
policy, so the verdict can be checked and repeated after the report's files are gone.
"""

from typing import TYPE_CHECKING

from safelight.errors import InvalidRequest
from safelight.lifecycle.evaluation.gate import Policy
from safelight.models.registry.registry import Registry
from safelight.models.registry.version import Pointing, Version

if TYPE_CHECKING:
    from safelight.lifecycle.promotion.report import Report  # imports Jinja and torch, which a rollback does not need

ROLLED_BACK = "rolled back from "


def promote(
    registry: Registry, version: Version, alias: str, report: "Report", policy: Policy, *, override: str = ""
) -> Pointing:
    """Point `NAME@alias` to the version.

    Args:
        override: the reason for promoting a version that did not pass; empty: refuse it.

    Raises:
        InvalidRequest: it did not pass; the message has the reasons.
    """
    verdict, report_id = report.verdict(policy), report.digest[:16]
    if verdict.passed:
        reason = f"passed; report {report_id}"
    elif override:
        reason = f"overridden: {override} (against: {'; '.join(verdict.reasons)}); report {report_id}"
    else:
        raise InvalidRequest(
            f"{version.reference} was not promoted to {version.name}@{alias}: {'; '.join(verdict.reasons)}. "
            '--override "WHY" promotes it anyway and records the reason'
        )
    return registry.point(version.name, alias, version, reason=reason, gate=report.as_dict(policy))


def roll_back(registry: Registry, name: str, alias: str, *, why: str = "") -> Pointing:
    """Point the alias to its previous version; repeated, to the one before that.

    Raises:
        InvalidRequest: there is no previous version.
    """
    before: list[str] = []
    for turn in reversed(registry.history(name, alias)):
        if turn.reason.startswith(ROLLED_BACK) and before:
            before.pop()
        elif turn.to is not None and (not before or before[-1] != turn.to):
            before.append(turn.to)
    if len(before) < 2:
        now = f"; it points to {before[0]} and has no earlier version" if before else "; there is no such alias"
        raise InvalidRequest(f"{name}@{alias} cannot be rolled back{now}")
    reason = f"{ROLLED_BACK}{before[-1]}" + (f": {why}" if why else "")
    return registry.point(name, alias, before[-2], reason=reason)
