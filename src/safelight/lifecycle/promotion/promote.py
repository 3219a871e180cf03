"""An alias moves to a version that passed, or that somebody answers for; and back again.

Every move is a turn in the alias's history (`models/registry/aliases.py`) with who, when and why: `passed`,
`overridden` with the reasons against it, `rolled back`. With the first two, the turn keeps the whole report and the
policy: the verdict can be looked up and repeated after the report's files are gone.
"""

from typing import TYPE_CHECKING

from safelight.errors import InvalidRequest
from safelight.lifecycle.evaluation.gate import Policy
from safelight.models.registry.registry import Registry
from safelight.models.registry.version import Pointing, Version

if TYPE_CHECKING:
    from safelight.lifecycle.promotion.report import Report  # its pictures need more than a rollback does

ROLLED_BACK = "rolled back from "


def promote(
    registry: Registry, version: Version, alias: str, report: "Report", policy: Policy, *, override: str = ""
) -> Pointing:
    """Let `NAME@alias` point to the version.

    Args:
        override: why it may go there although it did not pass; empty: it may not.

    Raises:
        InvalidRequest: it did not pass; the message says why.
    """
    verdict, named = report.verdict(policy), report.digest[:16]
    if verdict.passed:
        reason = f"passed; report {named}"
    elif override:
        reason = f"overridden: {override} (against: {'; '.join(verdict.reasons)}); report {named}"
    else:
        raise InvalidRequest(
            f"{version.reference} does not become {version.name}@{alias}: {'; '.join(verdict.reasons)}. "
            '--override "WHY" moves it all the same, and is recorded'
        )
    return registry.point(version.name, alias, version, reason=reason, gate=report.as_dict(policy))


def roll_back(registry: Registry, name: str, alias: str, *, why: str = "") -> Pointing:
    """Let the alias point to the version that it pointed to before; again, to the one before that.

    Raises:
        InvalidRequest: there is none before.
    """
    before: list[str] = []
    for turn in reversed(registry.history(name, alias)):
        if turn.reason.startswith(ROLLED_BACK) and before:
            before.pop()
        elif turn.to is not None and (not before or before[-1] != turn.to):
            before.append(turn.to)
    if len(before) < 2:
        now = f"; it points to {before[0]} and never pointed elsewhere" if before else "; there is no such alias"
        raise InvalidRequest(f"{name}@{alias} cannot be rolled back{now}")
    reason = f"{ROLLED_BACK}{before[-1]}" + (f": {why}" if why else "")
    return registry.point(name, alias, before[-2], reason=reason)
