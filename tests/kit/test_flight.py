"""Several calls at once: results as they come, never too many, and nothing lost when one fails.

The calls wait for each other, never for a while: nothing here depends on which thread is fast.
"""

import threading

import pytest

from kit.flight import in_flight

LONG = 120  # seconds that nobody waits


def test_results_come_as_they_end_and_never_too_many_are_under_way():
    under_way, most, lock = [0], [0], threading.Lock()
    meeting, later = threading.Barrier(4), threading.Event()

    def work(number):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        if number < 4:
            meeting.wait(LONG)  # BrokenBarrierError where fewer are ever under way
        if number == 4:  # begins when one of the first four has ended
            later.set()
        if number == 0:
            assert later.wait(LONG)
        with lock:
            under_way[0] -= 1
        return number * number

    found = list(in_flight(work, range(20), 4))
    assert sorted(found) == [(number, number * number) for number in range(20)]
    assert most[0] == 4 and [number for number, _ in found] != sorted(number for number, _ in found)


def test_one_at_a_time_is_this_thread():
    names = [result for _, result in in_flight(lambda _: threading.current_thread().name, range(3), 1)]
    assert names == [threading.current_thread().name] * 3


def test_items_are_taken_when_there_is_room():
    taken, gate = [], threading.Event()

    def items():
        for number in range(9):
            taken.append(number)
            if len(taken) == 3:
                gate.set()  # the first call ends when three are under way
            yield number

    flight = in_flight(lambda number: gate.wait(LONG) and number, items(), 3)
    next(flight)
    assert taken == [0, 1, 2]
    assert len(list(flight)) == 8


def test_after_a_failure_those_under_way_end_and_none_begins():
    begun, threads, meeting = [], {}, threading.Barrier(3)

    def work(number):
        begun.append(number)
        threads[number] = threading.current_thread()
        meeting.wait(LONG)
        if number == 0:
            raise ValueError("the first")
        threads[0].join(LONG)  # its failure is heard before these end
        return number

    found = []
    with pytest.raises(ValueError, match="the first"):
        for number, _ in in_flight(work, range(50), 3):
            found.append(number)
    assert sorted(found) == [1, 2] and sorted(begun) == [0, 1, 2]
    assert list(in_flight(work, [], 3)) == []
