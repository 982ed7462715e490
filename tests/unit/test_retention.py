"""Which builds stay: rules that hold for any history of builds, with clocks that jump."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st
from soak import examples

from pipeline.build.retention import KnownBuild, decide
from pipeline.model import Keep

DAY = 86_400.0
RULES = st.builds(
    Keep,
    last=st.integers(0, 4),
    daily=st.integers(0, 8),
    weekly=st.integers(0, 5),
    monthly=st.integers(0, 6),
)


@st.composite
def histories(draw: st.DrawFn) -> list[KnownBuild]:
    """Builds in the order in which they were made. Between two, the clock goes on by hours or days,
    jumps by years, back too, or stands still."""
    now = 1.7e9
    builds = []
    for number in range(draw(st.integers(1, 40))):
        now += draw(
            st.one_of(
                st.floats(0, 3 * DAY),
                st.sampled_from([0.0, -DAY, -40 * DAY, 400 * DAY, -3000 * DAY, 31 * DAY]),
            )
        )
        protected = ("tagged",) if draw(st.integers(0, 9)) == 0 else ()
        builds.append(KnownBuild(build=f"{number:012x}", made=max(0.0, now), protected=protected))
    return builds


def kept(builds: list[KnownBuild], rule: Keep | None) -> set[str]:
    return {each.build for each in decide(builds, rule) if each.keep}


@settings(max_examples=examples(150), deadline=None)
@given(histories(), RULES)
def test_what_always_holds(builds: list[KnownBuild], rule: Keep) -> None:
    decisions = decide(builds, rule)
    assert sorted(each.build for each in decisions) == sorted(each.build for each in builds)
    assert all(each.reason for each in decisions)
    stay = kept(builds, rule)
    assert {each.build for each in builds if each.protected} <= stay
    newest = sorted(builds, key=lambda each: (each.made, each.build))[-max(1, rule.last) :]
    assert {each.build for each in newest} <= stay
    # As many days, weeks and months are there afterwards as the rule asks for, or as there were.
    for count, form in ((rule.daily, "%Y-%m-%d"), (rule.weekly, "%G-%V"), (rule.monthly, "%Y-%m")):
        periods = [f"{datetime.fromtimestamp(each.made, UTC):{form}}" for each in builds]
        left = {period for period, each in zip(periods, builds, strict=True) if each.build in stay}
        assert set(sorted(set(periods))[-count:] if count else []) <= left
    # What stays, stays when the same is asked again, and a rule that asks for more keeps no less.
    rest = [each for each in builds if each.build in stay]
    assert kept(rest, rule) == stay
    more = Keep(last=rule.last + 1, daily=rule.daily + 1, weekly=rule.weekly, monthly=rule.monthly)
    assert stay <= kept(builds, more)
    assert kept(builds, None) == {each.build for each in builds}


@settings(max_examples=examples(40), deadline=None)
@given(histories(), RULES)
def test_pruning_every_night_keeps_what_one_pruning_would(
    builds: list[KnownBuild], rule: Keep
) -> None:
    """However often it is run in between. Where the clock only goes forward, the sets are equal;
    where it jumped back, a nightly run has more builds to choose from than days that follow, and
    never fewer than the rule asks for."""
    left: list[KnownBuild] = []
    for build in builds:
        left.append(build)
        stay = kept(left, rule)
        left = [each for each in left if each.build in stay]
        newest = max(left, key=lambda each: (each.made, each.build))
        assert newest.made >= build.made
    times = [each.made for each in builds]
    if times == sorted(times):
        assert {each.build for each in left} == kept(builds, rule)


def test_reasons() -> None:
    noon = datetime(2026, 3, 4, 12, tzinfo=UTC).timestamp()
    days = [0, 1, 2, 9, 40, 41]
    builds = [
        KnownBuild(build=str(number), made=noon - DAY * day) for number, day in enumerate(days)
    ]
    builds[5] = KnownBuild(build="5", made=builds[5].made, protected=("tagged",))
    told = decide(builds, Keep(last=1, daily=2, monthly=2))
    assert [(each.build, each.keep, each.reason) for each in told] == [
        ("0", True, "the newest; the newest of its day; the newest of its month"),
        ("1", True, "the newest of its day"),
        ("2", False, "no rule of `keep` asks for it"),
        ("3", True, "the newest of its month"),
        ("4", False, "no rule of `keep` asks for it"),
        ("5", True, "tagged"),
    ]
