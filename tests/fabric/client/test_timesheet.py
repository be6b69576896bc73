"""For how long the process had a lease: never less than an honest operator may claim, and told at its end."""

import pytest

import fabric
from fabric.client import session
from fabric.client.timesheet import MAX_LINES, WAITED_S, Line, Timesheet


class Hands:
    """A clock that is set."""

    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


@pytest.fixture
def now():
    return Hands()


def test_a_lease_is_had_from_when_it_was_known_until_it_is_over(now):
    sheet = Timesheet(now)
    sheet.begin("lease_a", 98.5, 0.2)
    now.at = 110.0
    assert sheet.untold() == [Line("lease_a", 11_500, False)]
    sheet.end("lease_a")
    now.at = 150.0
    sheet.end("lease_a")
    assert sheet.untold() == [Line("lease_a", 11_500, True)]


def test_a_node_that_keeps_its_customer_waiting_at_the_open_door_is_not_had_meanwhile(now):
    sheet = Timesheet(now)
    sheet.begin("lease_a", 80.0, 19.0)
    sheet.begin("lease_b", 80.0, WAITED_S)
    now.at = 103.0
    assert {line.lease: line.observed_ms for line in sheet.untold()} == {"lease_a": 3_000, "lease_b": 23_000}


def test_what_was_told_is_told_again_only_when_it_is_more_and_never_when_it_is_over(now):
    sheet = Timesheet(now)
    sheet.begin("lease_a", 100.0, 0)
    now.at = 105.0
    sheet.told(sheet.untold())
    assert sheet.untold() == []
    now.at = 165.0
    assert sheet.untold() == [Line("lease_a", 65_000, False)]
    sheet.end("lease_a")
    sheet.told(sheet.untold())
    now.at = 900.0
    assert sheet.untold() == []
    sheet.end("lease_a")


def test_a_lease_that_never_was_ready_has_no_time(now):
    sheet = Timesheet(now)
    sheet.end("lease_a")
    assert sheet.untold() == []


def test_many_leases_are_told_of_in_several_reports(now):
    sheet = Timesheet(now)
    for number in range(MAX_LINES + 1):
        sheet.begin(f"lease_{number}", 90.0, 0)
        sheet.end(f"lease_{number}")
    first = sheet.untold()
    sheet.told(first)
    assert (len(first), len(sheet.untold())) == (MAX_LINES, 1)


def times(small_fabric):
    return [content["times"] for method, path, content in small_fabric.requests if path.endswith("/times")]


def test_the_end_of_the_process_tells_of_leases_given_back_and_of_those_it_still_has(small_fabric):
    fabric.run(lambda: 7, linger=0)
    fabric.run(lambda: 7, linger=60)
    current = session.current()
    current.call(current.office.told())
    session.end()
    [told] = times(small_fabric)
    assert [line["final"] for line in sorted(told, key=lambda line: line["lease"])] == [True, False]
    assert all(0 <= line["observed_ms"] < 60_000 for line in told)
    assert [path.rpartition("/")[2] for _, path, _ in small_fabric.requests][-2:] == ["times", "end"]


def test_a_control_plane_that_takes_no_reports_still_hears_of_the_end(small_fabric):
    fabric.run(lambda: 7, linger=60)
    small_fabric.problems = [("service-error", "no such route")]
    small_fabric.requests.clear()
    session.end()
    assert small_fabric.requests[-1][1].endswith("/end")
