import dataclasses
import json
import math
import os
import socket
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fmnist_tracking.tracking import leases, schema
from fmnist_tracking.tracking.leases import Lease


def mine(**changes: object) -> Lease:
    return dataclasses.replace(Lease.of_this_process(), **changes)  # type: ignore[arg-type]


@pytest.fixture
def other() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process on this machine."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def held_by(process: "subprocess.Popen[bytes]") -> Lease:
    started = psutil.Process(process.pid).create_time()
    return mine(pid=process.pid, started=started, ticks=leases._ticks(process.pid))


def test_this_process_s_lease_is_live_and_mine() -> None:
    lease = Lease.of_this_process()
    assert lease.is_live()
    assert lease.is_mine()
    assert (lease.pid, lease.host) == (os.getpid(), socket.gethostname())
    assert abs(lease.beat - time.time()) < 5
    assert lease.started <= lease.beat


def test_another_process_s_lease_is_live_but_not_mine(other: "subprocess.Popen[bytes]") -> None:
    lease = held_by(other)
    assert lease.is_live()
    assert not lease.is_mine()
    # A process on this machine is looked at: its silence says nothing.
    assert dataclasses.replace(lease, beat=time.time() - 10_000).is_live()


def test_a_dead_process_s_lease_is_not_live(other: "subprocess.Popen[bytes]") -> None:
    lease = held_by(other)
    other.kill()
    deadline = time.monotonic() + 10
    while lease.is_live():  # dead, though nobody has asked for its exit status yet
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE
    other.wait()
    assert not psutil.pid_exists(other.pid)
    assert not lease.is_live()
    assert not lease.is_mine()


def test_another_process_with_the_same_number_does_not_count(
    other: "subprocess.Popen[bytes]",
) -> None:
    lease = held_by(other)
    assert lease.ticks is not None
    earlier = mine(ticks=0), dataclasses.replace(lease, ticks=lease.ticks - 60)
    # Earlier versions told the time of the start alone.
    older = (
        dataclasses.replace(one, ticks=None, started=one.started - 60) for one in (mine(), lease)
    )
    for before in (*earlier, *older):
        assert not before.is_live()
        assert not before.is_mine()
    assert dataclasses.replace(lease, ticks=None).is_live()


def test_a_clock_that_is_moved_changes_nobody(
    other: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    leases_before = mine(), held_by(other)
    # Linux tells when the machine started by its clock as it is now; psutil counts from there.
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 3600)
    assert all(lease.is_live() for lease in leases_before)
    assert leases_before[0].is_mine()


def test_a_machine_that_is_renamed_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = mine()
    by_an_earlier_version = mine(machine=f"{socket.gethostname()} {lease.machine}")
    assert by_an_earlier_version.is_mine()
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    leases._machine.cache_clear()
    assert lease.is_mine()


@pytest.mark.parametrize("ahead", [-1e9, -300, 0, 300, 1e9])
def test_another_machine_s_lease_is_live_until_it_was_watched_in_vain(
    monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    # Whether there is such a process here must not matter.
    for pid in (os.getpid(), 2**22 + 1):
        monkeypatch.setattr(leases, "SILENCE_SECONDS", 120.0)
        lease = mine(machine=f"another boot {ahead}", pid=pid, beat=time.time() + ahead)
        assert lease.is_live()
        assert not lease.is_mine()
        monkeypatch.setattr(leases, "SILENCE_SECONDS", 0.0)  # that time has passed
        assert not lease.is_live()
        monkeypatch.setattr(leases, "SILENCE_SECONDS", 120.0)
        assert dataclasses.replace(lease, beat=lease.beat + 20).is_live()
        assert dataclasses.replace(lease, beat=lease.beat - 20).is_live()  # its clock was put back


def test_a_lease_is_read_back() -> None:
    lease = Lease.of_this_process()
    assert Lease.read({schema.LEASE: lease.text()}) == lease


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {schema.LEASE: ""},
        {schema.LEASE: "no json"},
        {schema.LEASE: "[1]"},
        {schema.LEASE: json.dumps({"pid": 1})},
        {schema.LEASE: "[" * 8000},
    ],
    ids=lambda tags: str(tags)[:40],
)
def test_a_lease_that_cannot_be_read_is_none(tags: dict[str, str]) -> None:
    assert Lease.read(tags) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
GOOD = dataclasses.asdict(Lease.of_this_process())


@given(
    st.fixed_dictionaries(
        {
            name: st.just(value)
            | JSON
            | st.sampled_from([-1, 0, 2**31, 2**63, 10**400, math.inf, math.nan, "7", 1.5, True])
            for name, value in {**GOOD, "machine": "another"}.items()
        }
    )
    | JSON
)
@example({**GOOD, "machine": "another", "beat": "x"})
@example({**GOOD, "pid": "x"})
@example({**GOOD, "machine": "another", "beat": math.inf})
def test_whatever_a_lease_says_it_is_judged(content: object) -> None:
    lease = Lease.read({schema.LEASE: json.dumps(content)})
    if lease is not None:
        assert lease.is_live() in (True, False)
        assert lease.is_mine() in (True, False)
        assert str(lease).startswith(f"process {lease.pid} on ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("beat", value) for value in ("x", None, True, math.inf, math.nan, 10**400, [1.0])],
        *[("pid", value) for value in ("x", None, True, 1.5, 0, -1)],
        *[("started", value) for value in ("x", None, False, -math.inf)],
        *[(name, value) for name in ("host", "machine") for value in (1, None, ["a"])],
    ],
)
def test_a_lease_of_the_wrong_type_is_none(field: str, value: object) -> None:
    assert Lease.read({schema.LEASE: json.dumps({**GOOD, field: value})}) is None
    assert Lease.read({schema.LEASE: json.dumps({**GOOD, "beat": 7})}) is not None


def test_a_lease_tells_who_holds_it() -> None:
    lease = mine(host="far", pid=12, beat=time.time() - 30)
    assert str(lease) == "process 12 on far"
