"""Launchers that meet: real sockets, a thread for each machine, no ranks."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from lorafit.errors import UserError
from lorafit.launch.job import meet
from lorafit.launch.meeting import Meeting, Round
from lorafit.launch.network import Place
from lorafit.launch.outcome import Failure, Outcome
from lorafit.launch.request import Request


@pytest.fixture
def place() -> Place:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return Place("127.0.0.1", free.getsockname()[1])


@pytest.fixture
def together() -> Iterator[Callable[..., list[Any]]]:
    """Runs functions at once and returns what each gave or raised."""
    with ThreadPoolExecutor(8) as pool:
        def run(*works: Callable[[], Any]) -> list[Any]:
            futures = [pool.submit(work) for work in works]
            return [future.exception(60) or future.result() for future in futures]
        yield run


def side(place: Place, node: int, nodes: int = 2, options: tuple[str, ...] = ("train",),
         timeout_s: float = 20.0, said: list[str] | None = None) -> Meeting:
    request = Request(1, nodes, node, place, timeout_s, restarts=3, patience_s=0.3)
    return meet(request, options, lambda: 4242, (said if said is not None else []).append)


@contextmanager
def sides(*meetings: Meeting) -> Iterator[tuple[Meeting, ...]]:
    try:
        yield meetings
    finally:
        for each in reversed(meetings):
            each.close()


def done(node: int, *failures: Failure) -> Outcome:
    return Outcome(node, f"host{node}", list(failures))


def test_three_machines_meet_in_any_order_and_end_together(place, together):
    with sides(*(side(place, node, 3) for node in (2, 0, 1))) as (two, host, one):
        rounds = together(*(lambda each=each: each.gather(0) for each in (two, host, one)))
        assert rounds[0] == rounds[1] == rounds[2]
        assert (rounds[0].port, rounds[0].restarts, len(rounds[0].machines)) == (4242, 0, 3)
        verdicts = together(lambda: host.finish(done(0), 3), lambda: one.finish(done(1), 3),
                            lambda: two.finish(done(2), 3))
        assert [verdict.code for verdict in verdicts] == [0, 0, 0]


def test_a_failure_on_one_machine_is_heard_on_all_and_all_start_again(place, together):
    with sides(side(place, 0, 3), side(place, 1, 3), side(place, 2, 3)) as (host, one, two):
        together(*(lambda each=each: each.gather(0) for each in (host, one, two)))

        def fail() -> Any:
            return one.finish(done(1, Failure(1, -9, 1)), 3)

        def hear(each: Meeting, node: int) -> Callable[[], Any]:
            def wait() -> Any:
                assert each.trouble.wait(10)
                return each.finish(replace(done(node, Failure(node, 3, 2)), ended_for="it"), 3)
            return wait

        verdicts = together(fail, hear(host, 0), hear(two, 2))
        assert verdicts[0] == verdicts[1] == verdicts[2]
        assert verdicts[0].again
        assert "rank 1 on host1 was killed by SIGKILL" in verdicts[0].why
        rounds = together(*(lambda each=each: each.gather(1) for each in (host, one, two)))
        assert {each.restarts for each in rounds} == {1}
        assert not any(each.trouble.is_set() for each in (host, one, two))


def test_a_machine_that_goes_is_missed_and_may_come_back(place, together):
    with sides(side(place, 0)) as (host,):
        gone = side(place, 1)
        first: list[Round] = together(lambda: host.gather(0), lambda: gone.gather(0))
        gone.close()
        assert host.trouble.wait(10)
        verdict = host.finish(done(0, Failure(0, 3, 1)), 3)
        assert verdict.again
        assert "machine 1" in verdict.why
        with sides(side(place, 1)) as (back,):  # which knows nothing of the first round
            rounds = together(lambda: host.gather(1), lambda: back.gather(0))
            assert rounds[0] == rounds[1]
            assert rounds[0].restarts == 1
            assert rounds[0].id != first[0].id


def test_a_machine_that_is_back_before_the_round_is_over_waits_for_the_next(place, together):
    """What the round it has no part in ends with is not its own."""
    host, gone = side(place, 0), side(place, 1)
    with sides(host):
        together(lambda: host.gather(0), lambda: gone.gather(0))
        gone.close()
        assert host.trouble.wait(10)
        with sides(side(place, 1)) as (back,), ThreadPoolExecutor(1) as pool:
            round_two = pool.submit(back.gather, 0)
            deadline = time.monotonic() + 10
            while not host._guests:  # it stands at the door
                assert time.monotonic() < deadline
                time.sleep(0.01)
            started = time.monotonic()
            assert host.finish(done(0, Failure(0, 3)), 1).again
            assert time.monotonic() - started < 5  # nothing of it is waited for
            assert host.gather(1) == round_two.result(10)
            ends = together(lambda: host.finish(done(0), 0), lambda: back.finish(done(1), 0))
            assert [(each.code, each.again) for each in ends] == [(0, False), (0, False)]


def test_the_host_may_go_and_come_back(place, together):
    with sides(side(place, 1)) as (guest,):
        gone = side(place, 0)
        together(lambda: gone.gather(0), lambda: guest.gather(0))
        gone._door.shutdown(socket.SHUT_RDWR)
        gone._door.close()
        for line in list(gone._guests):
            line.close()
        assert guest.trouble.wait(10)
        verdict = guest.finish(done(1, Failure(1, 3, 1)), 3)
        assert verdict.again
        assert "machine 0" in verdict.why
        with sides(side(place, 0)) as (host,):
            rounds = together(lambda: host.gather(0), lambda: guest.gather(1))
            assert rounds[0] == rounds[1]
            assert rounds[0].restarts == 1


@pytest.mark.parametrize(("other", "says"), [
    ({"node": 1, "nodes": 3}, "--nodes: the machines differ: 2 on .*, 3 on "),
    ({"node": 1, "options": ("train", "--num-processes", "2")}, "--num-processes 2 on "),
])
def test_machines_that_were_told_different_things(place, together, other, says):
    with sides(side(place, 0), side(place, **other)) as (host, guest):
        errors = together(lambda: host.gather(0), lambda: guest.gather(0))
        assert str(errors[0]) == str(errors[1])
        with pytest.raises(UserError, match=says):
            raise errors[0]


def test_two_machines_with_one_number(place, together):
    with sides(side(place, 0, 3), side(place, 1, 3), side(place, 1, 3)) as all_three:
        errors = together(*(lambda each=each: each.gather(0) for each in all_three))
        for error in errors:
            with pytest.raises(UserError, match="both say that they are machine 1"):
                raise error


def test_a_second_machine_does_not_disturb_a_job_that_runs(place, together):
    with sides(side(place, 0), side(place, 1)) as (host, guest):
        together(lambda: host.gather(0), lambda: guest.gather(0))
        with sides(side(place, 1)) as (twin,), \
                pytest.raises(UserError, match="both say that they are machine 1"):
            twin.gather(0)
        assert not host.trouble.is_set()
        verdicts = together(lambda: host.finish(done(0), 0), lambda: guest.finish(done(1), 0))
        assert [verdict.code for verdict in verdicts] == [0, 0]


def test_a_machine_that_never_comes(place, together):
    said: list[str] = []
    with sides(side(place, 0, 4, timeout_s=1.5, said=said), side(place, 2, 4)) as (host, guest):
        errors = together(lambda: host.gather(0), lambda: guest.gather(0))
        with pytest.raises(UserError, match=r"machine 1, 3 of 4 did not come within 2 s; "
                           r"machine 0 \(.*\), machine 2 \(.*\) are here"):
            raise errors[0]
        assert str(errors[0]) == str(errors[1])
    assert said == [f"waiting for machine 1, 3 of 4 at {place}, 2 s at most"]


def test_nobody_there(place):
    started = time.monotonic()
    with sides(side(place, 1, timeout_s=1.0)) as (guest,), \
            pytest.raises(UserError, match=f"cannot be reached at {place}.*refused"):
        guest.gather(0)
    assert time.monotonic() - started < 10


def test_a_port_that_somebody_has(place):
    with closing(socket.create_server(("127.0.0.1", place.port))), \
            pytest.raises(UserError, match=f"port {place.port} of this machine is in use"):
        side(place, 0)


def test_something_else_listens_there(place):
    with closing(socket.create_server(("127.0.0.1", place.port))) as other:
        def answer() -> None:
            while True:
                try:
                    connection, _ = other.accept()
                except OSError:
                    return
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
        threading.Thread(target=answer, daemon=True).start()
        with sides(side(place, 1, timeout_s=1.0)) as (guest,), \
                pytest.raises(UserError, match="something answers at"):
            guest.gather(0)
        other.shutdown(socket.SHUT_RDWR)


def test_strangers_at_the_door_are_nobody(place, together):
    with sides(side(place, 0)) as (host,):
        for junk in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"machine": {"node": "x"}}\n',
                     b'{"machine": 3}\n', b"\x80\x04.\n", b'{"outcome": {}}\n', b""):
            with socket.create_connection(("127.0.0.1", place.port)) as stranger:
                stranger.sendall(junk)
        with sides(side(place, 1)) as (guest,):
            rounds = together(lambda: host.gather(0), lambda: guest.gather(0))
            assert rounds[0] == rounds[1]
            assert not host.trouble.is_set()
