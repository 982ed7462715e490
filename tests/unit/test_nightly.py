"""Nights of a build server: what changed is built, and whatever happens, the next night goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from nights import DAY, EPOCH, RUNS, SITES, Look, Server, find, states
from soak import SOAKING

from pipeline.build.executor import Built
from pipeline.build.plan import Plan
from pipeline.clouds.nimbus.cumulus_server import CumulusServer
from pipeline.clouds.nimbus.cumulus_store import read_index
from pipeline.clouds.nimbus.settings import CumulusUser
from pipeline.errors import NoSpaceError
from pipeline.model import MIB, Appliance, NoProgress, Site
from pipeline.nightly.memory import Memory
from pipeline.nightly.places import Places
from pipeline.nightly.run import run_night
from pipeline.stages.base import HERE_ONLY, Context
from pipeline.store import RESERVE, Artifact
from pipeline.tools import run
from pipeline.tools.snapshot import Snapshot

_KILLS = 20 if SOAKING else 3


def draw_counts() -> list[int]:
    """How many artifacts there are when a night is killed."""
    drawn = random.Random(13)
    return [drawn.randrange(30) for _ in range(_KILLS)]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    RUNS.clear()
    return Server(tmp_path).set_up(web="1", mail="1")


def test_only_what_changed_is_built(server: Server) -> None:
    server.define("one")
    server.define("two", "packages: [web]\n")
    night = server.night()
    assert states(night) == {"one": "built", "two": "built"}
    assert night.could_not_run is None and night.warnings == ()
    outcome = find(night, "one")
    assert outcome.reasons == ("hotel has no build of it",)
    assert (outcome.before, outcome.build) == (None, find(night, "one", "sierra").build)
    assert outcome.image_id == f"one-1-{outcome.build}-bare.gz"
    assert outcome.bytes_sent > 0 and outcome.bytes_built > 0 and outcome.boot_seconds == 0.5
    assert outcome.warnings == (
        "Phantom never gets to sierra: hotel comes before and has no limit, and Phantom leaves no "
        "site before its limit, even if every machine there fails; set "
        "`phantom: sites: hotel: max_vms:` of the definition",
    )
    assert len(RUNS) == 4

    again = server.night()
    assert states(again) == {"one": "unchanged", "two": "unchanged"}
    assert find(again, "one").because == f"unchanged since build {outcome.build}"
    assert len(RUNS) == 4

    server.release(web="2")
    changed = server.night()
    assert states(changed) == {"one": "unchanged", "two": "built"}
    two = find(changed, "two")
    assert two.reasons == ("package web 1 -> 2",)
    assert two.changes == ("package web 1 -> 2",)
    assert two.before == find(night, "two").build != two.build


def test_what_the_gate_finds_is_told(server: Server) -> None:
    """A warning; what stops the publication, with a warning beside it; and many of them."""
    old = "the gate: warning old-configuration: /etc/{}: a package manager left it beside the file"
    server.define("odd", **{"a.dpkg-old": "x\n"})
    server.define("bad", key=f"AKIA{'A' * 16}\n", **{"b.dpkg-old": "x\n"})
    server.define("many", **{f"{number:02}.dpkg-old": "x\n" for number in range(12)})
    night = server.night(sites=["hotel"])
    assert states(night) == {"odd": "built", "bad": "failed", "many": "built"}
    odd, bad, many = (find(night, name) for name in ("odd", "bad", "many"))
    assert odd.warnings == (f"{old.format('a.dpkg-old')} in use",)
    assert (bad.message, bad.error, bad.warnings) == (
        "site hotel: the image must not be published: token: /etc/key: an access key of AWS",
        "GateError",
        (f"{old.format('b.dpkg-old')} in use",),
    )
    assert many.warnings[0] == f"{old.format('00.dpkg-old')} in use"
    assert many.warnings[10:] == ("the gate: and 2 more, which the manifest has",)


@dataclass(frozen=True, kw_only=True)
class _Interrupting(Look):
    """Ends the night, as a control-c does, once another site has its image."""

    published: Event = field(metadata=HERE_ONLY, compare=False)

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        assert self.published.wait(60)
        os.kill(os.getpid(), signal.SIGINT)
        run.run(["sleep", "1000"], log=context.log)
        return {}


class _Listener(NoProgress):
    def __init__(self, event: Event | None) -> None:
        self._event = event

    def finish(self, text: str) -> None:
        if self._event is not None:
            self._event.set()


def test_an_interrupted_night_tells_of_the_site_that_has_its_image(server: Server) -> None:
    published = Event()

    def make_plan(appliance: Appliance, sites: Sequence[Site], snapshot: Snapshot) -> Plan:
        plan = server.plan(appliance, sites, snapshot)
        hotel, sierra = plan.targets
        values = {each.name: getattr(sierra.boots[0], each.name) for each in fields(Look)}
        boot = _Interrupting(**values | {"seconds": 7}, published=published)
        return replace(plan, targets=(hotel, replace(sierra, boots=(boot,))))

    server.define("one")
    server.workspace = replace(
        server.workspace,
        progress=lambda title: _Listener(published if title == "one publish hotel" else None),
    )
    night = run_night(replace(server.order(), make_plan=make_plan), server.workspace)
    assert night.interrupted == 130
    hotel, sierra = (find(night, "one", site) for site in ("hotel", "sierra"))
    assert (hotel.state, hotel.image_id) == ("built", f"one-1-{hotel.build}-bare.gz")
    assert (sierra.state, sierra.because) == ("skipped", "the night was interrupted")
    again = server.night()
    assert find(again, "one").because == f"unchanged since build {hotel.build}"
    assert find(again, "one", "sierra").build == hotel.build


def test_one_failure_does_not_stop_the_others(server: Server) -> None:
    """A script that fails, a definition with a mistake, a package that is not there, and what is
    made of the build of one of them."""
    server.define("good")
    server.define("bad", script="break\n")
    server.define("wrong", "disk_size: much\n")
    server.define("lacking", "packages: [gone]\n")
    server.define("child", "source: {base_image: {location: {appliance: bad}}}\n")
    night = server.night()
    assert states(night) == {
        "good": "built",
        "bad": "failed",
        "wrong": "failed",
        "lacking": "failed",
        "child": "skipped",
    }
    bad = find(night, "bad")
    assert (bad.stage, bad.error, bad.exit_status) == ("root", "StageFailedError", 18)
    assert bad.message == "stage root: a script failed"
    assert bad.tries == 1 and bad.build is None
    lacking = find(night, "lacking")
    assert (lacking.message, lacking.exit_status) == ("lacking: there is no package gone", 10)
    wrong = find(night, "wrong").message
    assert wrong is not None and "appliance.yaml:6:12: " in wrong
    assert find(night, "child").because == "bad failed, and it is made of that"

    server.define("bad", script="better\n")
    mended = server.night()
    assert states(mended)["bad"] == "built" and states(mended)["child"] == "built"
    assert find(mended, "bad", "sierra").reasons == ("sierra has no build of it",)


def test_what_is_made_of_another_build_waits_for_it(server: Server) -> None:
    server.define("parent")
    server.define("child", "source: {base_image: {location: {appliance: parent}}}\n")
    server.define("grandchild", "source: {base_image: {location: {appliance: child}}}\n")
    first = server.night()
    assert {*states(first).values()} == {"built"}
    assert {*states(server.night()).values()} == {"unchanged"}

    server.define("parent", own="edited\n")
    second = server.night()
    assert {*states(second).values()} == {"built"}
    assert find(second, "parent").reasons == ("files: own changed",) or find(
        second, "parent"
    ).reasons == ("own changed",)
    before, now = (find(night, "parent").build for night in (first, second))
    assert find(second, "child").reasons == (f"base {before} -> {now}",)


def test_appliances_that_are_made_of_each_other_fail(server: Server) -> None:
    server.define("hen", "source: {base_image: {location: {appliance: egg}}}\n")
    server.define("egg", "source: {base_image: {location: {appliance: hen}}}\n")
    server.define("one")
    night = server.night()
    assert states(night) == {"hen": "failed", "egg": "failed", "one": "built"}
    assert find(night, "hen").message == "hen: it is made of itself: hen of egg of hen"


def test_the_network_is_tried_again_and_nothing_else(server: Server) -> None:
    server.define("one")
    (server.archive / "away").touch()
    night = server.night()
    assert states(night) == {"one": "failed"}
    assert {each.tries for each in night.outcomes} == {2}
    assert find(night, "one").message == "stage packages: the archive does not answer"
    assert len(RUNS) == 2
    (server.archive / "away").unlink()
    assert states(server.night()) == {"one": "built"}


def test_a_stage_that_hangs_is_ended(server: Server) -> None:
    server.define("one")
    server.define("stuck", script="hang\n")
    night = server.night(stage_seconds=2.0)
    assert states(night) == {"one": "built", "stuck": "failed"}
    stuck = find(night, "stuck")
    assert stuck.error == "StageLimitError"
    assert stuck.message == "stage root: it had not ended after 2 s, and was stopped"
    assert stuck.log is not None and Path(stuck.log).read_text() == "$ sleep 1000\n# status -9\n"


def test_a_night_can_be_forced_and_kept_to_what_is_old(server: Server) -> None:
    server.define("one")
    first = server.night()
    forced = server.night(force=True)
    assert states(forced) == {"one": "unchanged"}
    outcome = find(forced, "one")
    assert outcome.because == f"unchanged since build {outcome.build}; made and checked again"
    assert outcome.reasons == ("--force builds what is unchanged",)
    assert outcome.build == find(first, "one").build
    left = server.night(force=True, since=1.0)
    assert left.outcomes == () and left.warnings == ("one is left alone: it was built lately",)


def test_an_evicted_store_builds_nothing_that_is_unchanged(server: Server) -> None:
    server.define("one")
    server.night(store_bytes=0)
    assert not [*server.workspace.store.path("artifacts").iterdir()]
    RUNS.clear()
    assert states(server.night(store_bytes=0)) == {"one": "unchanged"}
    assert RUNS == []


def test_two_nights_do_not_run_at_once(server: Server) -> None:
    server.define("one")
    with Places(server.workspace).alone():
        night = server.night()
    assert night.could_not_run == (f"{server.workspace.build}/nightly: another nightly runs here")
    assert night.outcomes == ()
    assert states(server.night()) == {"one": "built"}


def test_two_servers_share_a_store(server: Server, tmp_path: Path) -> None:
    """At the same time: each gets all of its builds, and what is alike lies in the store once."""
    store = server.workspace.store.folder
    other, alone = Server(tmp_path / "other", store).set_up(), Server(tmp_path / "alone").set_up()
    for each in (server, other, alone):
        for name in ("one", "two", "three"):
            each.define(name)
    running = [each.start() for each in (server, other)]
    for process in running:
        printed, _ = process.communicate(timeout=300)
        told = json.loads(printed)
        assert set(told) == {"one", "two", "three"} and set(told.values()) <= {"built", "reused"}
    assert set(states(alone.night()).values()) == {"built"}
    assert server.contents() == other.contents() == alone.contents()
    kept, of_one = (
        sorted(path.name for path in each.workspace.store.folder.glob("artifacts/*"))
        for each in (server, alone)
    )
    assert kept == of_one
    assert not [*store.glob("work/*")]


def test_too_little_space_is_seen_before_anything_is_built(server: Server) -> None:
    server.define("one")
    server.night()
    memory = Memory(server.workspace.build / "nightly")
    stage = server.plan(server.order().load("one"), server.order().sites, Snapshot()).source.root
    artifact = server.workspace.store.find("root", stage.key)
    assert artifact is not None
    built = Built(artifact=artifact, reused=False, seconds=1.0)
    memory.note("one", stage, built)
    memory._stages["one/root"]["bytes"] = 1 << 60
    memory.save()
    server.define("one", own="edited\n")
    night = server.night()
    assert night.outcomes == () and night.could_not_run is not None
    free, _, needed = night.could_not_run.partition(" are free, and about ")
    assert free.startswith(f"{server.workspace.store.folder}: ")
    assert needed == "1048576 TiB are needed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small file system")
def test_a_disk_that_fills_up_in_the_middle(server: Server, tmp_path: Path) -> None:
    """What did not fit failed and says so; the next night finishes it, as if nothing had been."""
    store = server.workspace.store.folder
    alone = Server(tmp_path / "alone").set_up()
    for each in (server, alone):
        for name in ("one", "two"):
            each.define(name)
    server.define("two", script="flood\n")
    store.mkdir(exist_ok=True)
    small = f"size={RESERVE + 32 * MIB}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", small, "tests", str(store)], check=True)
    try:
        first = server.night()
        assert states(first)["two"] == "failed"
        full = find(first, "two")
        assert (full.stage, full.error) == ("root", "NoSpaceError")
        assert full.exit_status == NoSpaceError.exit_code
        assert not [*store.glob("work/*")]
        server.define("two")
        assert {*states(server.night()).values()} <= {"built", "reused", "unchanged"}
        assert {*states(alone.night()).values()} == {"built"}
        assert server.contents() == alone.contents()
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


def test_a_site_that_was_away_gets_the_newest_build_only(server: Server, tmp_path: Path) -> None:
    server.define("one")
    user = CumulusUser(s3id="i", secret="s", canonical_id="c")
    environ = {"S3ID": "i", "S3KEY": "s", "CANONICAL_ID": "c"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(f"PHANTOM_FAR_{name}", value)
        patch.setattr("pipeline.clouds.nimbus.repository.PAUSES", (0.0, 0.0))

        def point(url: str) -> None:
            text = (
                SITES + f"  far: {{cloud: nimbus, repository: '{url}', https: false, root: sda1}}\n"
            )
            (server.folder / "sites.yaml").write_text(text)

        point("127.0.0.1:9")
        builds = []
        for number in range(3):
            server.define("one", own=f"night {number}\n")
            night = server.night()
            assert states(night) == {
                "one hotel": "built",
                "one sierra": "built",
                "one far": "failed",
            }
            builds.append(find(night, "one").build)
        with CumulusServer(tmp_path / "far", [user], bucket="Repo") as far:
            point(far.url.removeprefix("http://"))
            night = server.night()
            assert states(night) == {
                "one hotel": "unchanged",
                "one sierra": "unchanged",
                "one far": "reused",
            }
            outcome = find(night, "one", "far")
            assert (outcome.before, outcome.build) == (None, builds[-1])
            names = [each.key for each in read_index(tmp_path / "far")]
    assert [name for name in names if "one-" in name and "description" not in name] == [
        f"VMS/c/one-1-{builds[-1]}-bare.gz"
    ]


def test_names_of_nights_stay_in_order_when_the_clock_is_set_back(server: Server) -> None:
    server.define("one")
    first = server.night()
    (server.workspace.build / "nightly" / first.name).mkdir()
    server.clock -= 90 * DAY
    second = server.night()
    (server.workspace.build / "nightly" / second.name).mkdir()
    assert second.warnings == ("the host's clock was set back since the last night",)
    third = server.night()
    assert first.name < second.name < third.name
    server.clock += 365 * DAY
    assert server.night().warnings == ()


def test_old_builds_go_as_their_definitions_say(server: Server) -> None:
    server.define("one")
    gone = []
    for number in range(5):
        server.define("one", own=f"night {number}\n")
        night = server.night()
        build = server.workspace.folder("one") / str(find(night, "one").build)
        moment = EPOCH + number * DAY
        os.utime(build / "stages.json", (moment, moment))
        gone += [each.build for each in night.kept if each.action == "removed"]
    left = [path.name for path in server.workspace.folder("one").iterdir() if path.is_dir()]
    assert len(gone) + len({*left} - {"latest"}) == 5
    assert gone and not {*gone} & {*left}


def test_what_sites_yaml_says_anew_of_a_site_is_done(server: Server) -> None:
    server.define("one")
    first = server.night()
    text = SITES.replace("sierra: {", "sierra: {visibility: common, ")
    (server.folder / "sites.yaml").write_text(text)
    night = server.night()
    assert states(night) == {"one": "unchanged"}
    assert find(night, "one", "sierra").reasons == ("sites.yaml says something else of sierra",)
    assert find(night, "one", "sierra").bytes_sent > 0
    assert find(night, "one").build == find(first, "one").build
    assert find(server.night(), "one", "sierra").bytes_sent == 0


@pytest.mark.slow
@pytest.mark.parametrize("count", draw_counts())
def test_a_killed_night_is_finished_by_the_next(server: Server, tmp_path: Path, count: int) -> None:
    """To the byte as one that was not disturbed."""
    twin = Server(tmp_path / "twin").set_up(web="1")
    for each in (server, twin):
        for number in range(4):
            each.define(f"app{number}", "packages: [web]\n" if number % 2 else "")
    undisturbed = twin.night()
    process, artifacts = server.start(), server.workspace.store.folder / "artifacts"
    while process.poll() is None and len([*artifacts.glob("*")]) < count:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    server.clock = time.time()
    night = server.night()
    assert {*states(night).values()} <= {"built", "reused", "unchanged"}
    assert server.contents() == twin.contents()
    assert [each.build for each in night.outcomes] == [each.build for each in undisturbed.outcomes]
    assert not [*server.workspace.store.path("work").iterdir()]
    assert not (server.workspace.build / "nightly/state.json").exists()
