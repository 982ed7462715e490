"""The errors: each has an exit status of its own, and a message says what, where and what to do."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import pipeline
from pipeline.errors import HostError, PhantomError, located
from pipeline.tools.run import ToolError

OWN_TO_THE_COMMAND_LINE = {0, 1, 2, 130}


def all_errors() -> list[type[PhantomError]]:
    """Every error class of the product, in `errors.py` or beside what raises it."""
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        importlib.import_module(module.name)
    found, queue = [], [PhantomError]
    while queue:
        kind = queue.pop()
        below = kind.__subclasses__()
        found += below
        queue += below
    return sorted(set(found), key=lambda kind: kind.__qualname__)


def test_exit_statuses_are_unique() -> None:
    statuses = {kind: kind.exit_code for kind in all_errors() if "exit_code" in vars(kind)}
    assert len(set(statuses.values())) == len(statuses), statuses


def test_exit_statuses_can_be_told_from_others() -> None:
    """They are not those of the command line itself, nor those that shells use (126 and above)."""
    for kind in all_errors():
        if "exit_code" in vars(kind):
            assert kind.exit_code not in OWN_TO_THE_COMMAND_LINE
            assert 0 < kind.exit_code < 126, kind


def test_every_error_that_people_see_has_a_status() -> None:
    """An error has its own status or its base class's. Private errors never leave the product."""
    without = [kind for kind in all_errors() if kind.exit_code == PhantomError.exit_code]
    assert [kind for kind in without if not kind.__name__.startswith("_")] == []


def test_every_error_says_what_it_means() -> None:
    assert [kind for kind in all_errors() if not inspect.getdoc(kind)] == []
    inherited = [k for k in all_errors() if vars(k).get("__doc__") is None]
    assert inherited == []


def test_a_message_of_one_line() -> None:
    assert str(HostError("mke2fs is not installed")) == "mke2fs is not installed"


def test_a_whole_message() -> None:
    error = HostError(
        "mke2fs is not installed",
        where="stage root",
        todo="`make setup` installs it",
        log=Path("/store/logs/root.log"),
        detail="first\nsecond\n",
    )
    assert str(error) == (
        "stage root: mke2fs is not installed\n"
        "  | first\n"
        "  | second\n"
        "  do: `make setup` installs it\n"
        "  log: /store/logs/root.log"
    )


@pytest.mark.parametrize(
    ("raised", "told"), [(None, "stage root"), ("images/web/appliance.yaml:3", None)]
)
def test_where_is_filled_in_unless_it_is_known(raised: str | None, told: str | None) -> None:
    error = HostError("no", where=raised)
    with pytest.raises(HostError) as caught, located("stage root"):
        raise error
    assert caught.value is error
    assert error.where == (told or raised)
    assert error.__cause__ is None


def test_a_failed_program_is_named_with_its_status_and_last_lines() -> None:
    output = "".join(f"line {number}\n" for number in range(100))
    error = ToolError(["sudo", "-n", "mke2fs", "-q", "a file"], 3, output, None)
    assert str(error).splitlines()[0] == "mke2fs ended with status 3"
    assert "  | line 99" in str(error)
    assert "line 80" not in str(error)
    assert str(error).splitlines()[-1] == "  command: sudo -n mke2fs -q 'a file'"
    assert ToolError(["mke2fs"], -9, "", None).what == "mke2fs was ended by SIGKILL"
