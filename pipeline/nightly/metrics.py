"""A night as metrics of Prometheus, for the textfile collector of its node exporter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.nightly.night import Night, NightState, Outcome, State
from pipeline.terminal import escape

_PREFIX = "phantom_image_"
_NUMBERS: Mapping[str, tuple[str, str]] = {
    "seconds": ("duration_seconds", "How long it took, from its first stage to its publication."),
    "last_success": (
        "last_success_timestamp_seconds",
        "When it last neither failed nor was skipped.",
    ),
    "bytes_built": ("built_bytes", "Artifacts that were made."),
    "bytes_sent": ("sent_bytes", "What was sent to the site."),
    "bytes_saved": ("saved_bytes", "What was reused, or at the site already."),
    "image_bytes": ("image_bytes", "The file that the site boots."),
    "root_bytes": ("root_bytes", "The root file system."),
    "boot_seconds": ("boot_seconds", "From power-on to the guest's report."),
}
"""A member of an outcome: the metric's name, and what it says."""


def to_metrics(night: Night, missing: Sequence[Outcome] = ()) -> str:
    """The text of a night's metrics. `missing` are outcomes of an earlier night where this one
    could not run: only when they last succeeded is told, so that an alarm on that goes off."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, text, labels, registry=registry)

    for name, text, value in _of_all(night):
        gauge(name, text).set(value)
    state = gauge("nightly_state", "1 for what became of the night.", "state")
    for each in NightState:
        state.labels(each).set(night.state is each)
    counts = Counter(outcome.state for outcome in night.outcomes)
    by_state = gauge("nightly_outcomes", "Appliances at sites, by what became of them.", "state")
    for kind in State:
        by_state.labels(kind).set(counts[kind])
    place = ("appliance", "site", "cloud")
    states = gauge("nightly_outcome", "1 for what became of it.", *place, "state")
    for outcome in night.outcomes:
        for kind in State:
            states.labels(*_place(outcome), kind).set(outcome.state is kind)
    for member, (name, text) in _NUMBERS.items():
        of_each = gauge(f"nightly_{name}", text, *place)
        for outcome in (*night.outcomes, *(missing if member == "last_success" else ())):
            value = getattr(outcome, member)
            if value is not None:
                of_each.labels(*_place(outcome)).set(value)
    return generate_latest(registry).decode()


def _of_all(night: Night) -> list[tuple[str, str, float]]:
    limits = [] if night.store_limit is None else [night.store_limit]
    return [
        ("nightly_start_timestamp_seconds", "When the night began.", night.started),
        ("nightly_end_timestamp_seconds", "When it ended.", night.ended),
        ("nightly_run_duration_seconds", "How long it took.", night.seconds),
        ("nightly_forecast_bytes", "What it was expected to need.", night.forecast_bytes),
        ("store_bytes", "The store.", night.store_bytes),
        *(("store_limit_bytes", "What the store may have.", limit) for limit in limits),
        ("store_free_bytes", "Free on the store's file system.", night.free_bytes),
    ]


def _place(outcome: Outcome) -> tuple[str, str, str]:
    return escape(outcome.appliance), escape(outcome.site), escape(outcome.cloud)
