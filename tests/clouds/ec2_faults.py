"""Faults of the strict EC2 server: a test adds rules, which are matched by action.

An action is written as IAM writes it, `ebs:PutSnapshotBlock`, `ec2:RegisterImage`, and may have
wildcards, `ebs:*`. For S3, a rule may name the operation (`s3:UploadPart`) or the right that it
needs (`s3:PutObject`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from ec2_protocol import ServiceError

Cut = Literal["before", "after", "hang"]
_THROTTLED = {
    "ebs": ("RequestThrottledException", 400, "ACCOUNT_THROTTLED"),
    "ec2": ("RequestLimitExceeded", 503, None),
    "sts": ("Throttling", 400, None),
    "s3": ("SlowDown", 503, None),
}
_FAILED = {"ebs": "InternalServerException", "ec2": "InternalError", "s3": "InternalError"}


@dataclass(kw_only=True)
class Rule:
    """One fault. It lets `skip` matching requests pass, then applies to the next `times`."""

    action: str
    region: str | None = None
    skip: int = 0
    times: int | None = None
    """None: without end."""
    error: ServiceError | None = None
    denies: bool = False
    cut: Cut | None = None
    seconds: float = 0
    call: Callable[[], object] | None = None
    taken: int = 0

    @property
    def ends(self) -> bool:
        """Whether a request that this rule applies to reaches no later rule."""
        return self.denies or self.error is not None or self.cut in ("before", "hang")

    def matches(self, names: Sequence[str], region: str) -> bool:
        return self.region in (None, region) and any(
            fnmatchcase(name, self.action) for name in names
        )


class Faults:
    """The rules, in the order in which the test added them. Safe to use from any thread.

    In every method, `skip` is the number of matching requests that pass first, and `times=None`
    means without end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self.released = threading.Event()
        """Set when hanging requests should end."""
        self._reset()

    def _reset(self) -> None:
        self.hidden_seconds = 0.0
        self.hidden_times = 0
        self.describes_until_completed = 1
        self.seconds_until_completed = 0.0
        self.completions_to_fail = 0
        self.checksums_to_refuse = 0
        self.blocks_to_damage = 0
        self.imports_to_fail = 0

    def add(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Removes every rule and setting, and ends hanging requests."""
        with self._lock:
            self._rules.clear()
            self._reset()
        self.released.set()
        self.released = threading.Event()

    def take(self, names: Sequence[str], region: str) -> list[Rule]:
        """Takes the rules that apply to this request, up to the first that ends it."""
        taken = []
        with self._lock:
            for rule in self._rules:
                if _count(rule, names, region):
                    taken.append(rule)
                    if rule.ends:
                        break
        return taken

    def is_denied(self, action: str, region: str) -> bool:
        with self._lock:
            return any(rule.denies and rule.matches([action], region) for rule in self._rules)

    # ---- rights

    def deny(self, action: str, region: str | None = None, *, skip: int = 0) -> Rule:
        """Denies with the service's own error code, in dry runs too."""
        return self.add(Rule(action=action, region=region, skip=skip, denies=True))

    # ---- answers

    def refuse(
        self,
        action: str,
        code: str,
        message: str = "Refused by a rule of the test",
        *,
        status: int = 400,
        reason: str | None = None,
        times: int | None = 1,
        skip: int = 0,
        region: str | None = None,
    ) -> Rule:
        """Refuses with any error."""
        error = ServiceError(code, message, status=status, reason=reason)
        return self.add(Rule(action=action, region=region, skip=skip, times=times, error=error))

    def throttle(
        self,
        action: str,
        times: int | None = 1,
        *,
        code: str | None = None,
        reason: str | None = None,
        skip: int = 0,
    ) -> Rule:
        """Throttles with the service's own error code; services also use ThrottlingException."""
        own_code, status, own_reason = _THROTTLED[action.partition(":")[0]]
        return self.refuse(
            action,
            code or own_code,
            "Rate exceeded",
            status=status if code is None else 400,
            reason=reason or (own_reason if code in (None, own_code) else None),
            times=times,
            skip=skip,
        )

    def fail(self, action: str, times: int | None = 1, *, status: int = 500, skip: int = 0) -> Rule:
        """Fails with an internal error, status 500 or 503."""
        code = "ServiceUnavailable" if status == 503 else None
        service = action.partition(":")[0]
        return self.refuse(
            action,
            code or _FAILED.get(service, "InternalFailure"),
            "An internal error occurred",
            status=status,
            times=times,
            skip=skip,
        )

    def quota(
        self, action: str, code: str | None = None, *, times: int | None = None, skip: int = 0
    ) -> Rule:
        """Refuses because the account reached a quota."""
        if action.startswith("ebs:"):
            return self.refuse(
                action,
                code or "ServiceQuotaExceededException",
                "Your account has reached its quota",
                status=402,
                reason="DEPENDENCY_SERVICE_QUOTA_EXCEEDED",
                times=times,
                skip=skip,
            )
        message = "You have reached your quota for this resource"
        return self.refuse(action, code or "ResourceLimitExceeded", message, times=times, skip=skip)

    # ---- the network

    def reset(
        self, action: str, times: int | None = 1, *, after: bool = False, skip: int = 0
    ) -> Rule:
        """Resets the connection; with `after`, once the request has taken effect."""
        cut: Cut = "after" if after else "before"
        return self.add(Rule(action=action, skip=skip, times=times, cut=cut))

    def hang(self, action: str, times: int | None = 1, *, skip: int = 0) -> Rule:
        """Gives no answer until `clear` or the server's end; the request takes no effect."""
        return self.add(Rule(action=action, skip=skip, times=times, cut="hang"))

    def slow(self, action: str, seconds: float, times: int | None = None, *, skip: int = 0) -> Rule:
        """Delays the answer by this many real seconds."""
        return self.add(Rule(action=action, skip=skip, times=times, seconds=seconds))

    def on(
        self,
        action: str,
        call: Callable[[], object],
        *,
        times: int | None = 1,
        skip: int = 0,
    ) -> Rule:
        """Calls a function of the test, such as one that kills, before the request takes effect."""
        return self.add(Rule(action=action, skip=skip, times=times, call=call))

    # ---- snapshots

    def not_found_for(self, *, seconds: float = 0, times: int = 0) -> None:
        """Hides each snapshot ("not found") for a time, or some calls, after StartSnapshot."""
        self.hidden_seconds, self.hidden_times = seconds, times

    def complete_after(self, describes: int = 0, *, seconds: float = 0) -> None:
        """Keeps a snapshot `pending` after CompleteSnapshot for this many describe calls, or
        seconds of the clock (initially one call). Copies and imports likewise."""
        self.describes_until_completed, self.seconds_until_completed = describes, seconds

    def complete_error(self, times: int = 1) -> None:
        """Makes this many snapshots end in `error` instead of `completed`."""
        self.completions_to_fail = times

    def wrong_checksum(self, times: int = 1) -> None:
        """Refuses this many puts as if their bytes had changed on the way."""
        self.checksums_to_refuse = times

    def damage(self, times: int = 1) -> None:
        """Stores this many puts with a changed byte, without an error."""
        self.blocks_to_damage = times

    def import_error(self, times: int = 1) -> None:
        """Makes this many ImportSnapshot tasks end in `deleted`."""
        self.imports_to_fail = times

    def take_one(self, counter: str) -> bool:
        """Counts down one of the attributes above; returns whether it was above zero."""
        with self._lock:
            left = int(getattr(self, counter))
            setattr(self, counter, max(0, left - 1))
            return left > 0


def _count(rule: Rule, names: Sequence[str], region: str) -> bool:
    if not rule.matches(names, region):
        return False
    if rule.skip > 0:
        rule.skip -= 1
        return False
    if rule.times is not None and rule.taken >= rule.times:
        return False
    rule.taken += 1
    return True
