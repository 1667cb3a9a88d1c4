"""The threads of a sweep: they do the work, and what came of it is done where it is received."""

import threading
from collections.abc import Callable

from sessions.crew import CLERKS, Crew

PATIENCE = 60.0  # seconds; reached only when something is wrong


def receive(crew: Crew, count: Callable[[], int], until: int) -> None:
    while count() < until:
        before = count()
        crew.receive(PATIENCE)
        assert count() > before, "nothing came of the work"


def test_what_came_of_the_work_is_done_in_the_thread_that_receives_it() -> None:
    crew, worked, received = Crew(4), set[int](), list[int]()

    def work() -> Callable[[], None]:
        worked.add(threading.get_ident())
        return lambda: received.append(threading.get_ident())

    for _ in range(20):
        crew.notify(work)
        crew.call(work)
    receive(crew, lambda: len(received), 40)
    crew.dismiss()
    assert set(received) == {threading.get_ident()}
    assert threading.get_ident() not in worked


def test_there_are_no_more_threads_than_asked_for() -> None:
    crew, done = Crew(2), list[None]()
    changed, at_work, most = (
        threading.Condition(),
        {"notify": 0, "call": 0},
        {"notify": 0, "call": 0},
    )
    go_on = threading.Event()

    def work(kind: str) -> Callable[[], Callable[[], None]]:
        def meet() -> Callable[[], None]:
            with changed:
                at_work[kind] += 1
                most[kind] = max(most[kind], at_work[kind])
                changed.notify_all()
            assert go_on.wait(PATIENCE)
            with changed:
                at_work[kind] -= 1
            return lambda: done.append(None)

        return meet

    for _ in range(10):
        crew.notify(work("notify"))
        crew.call(work("call"))
    with changed:
        assert changed.wait_for(lambda: at_work == {"notify": 2, "call": CLERKS}, PATIENCE)
    go_on.set()
    receive(crew, lambda: len(done), 20)
    crew.dismiss()
    assert most == {"notify": 2, "call": CLERKS}


def test_threads_end_when_they_are_dismissed() -> None:
    before, crew, done = set(threading.enumerate()), Crew(3), list[None]()
    for _ in range(5):
        crew.notify(lambda: lambda: done.append(None))
    receive(crew, lambda: len(done), 5)
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    crew.dismiss()
    for thread in started:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in started)


def test_nobody_waits_longer_than_told() -> None:
    Crew(1).receive(0.0)
    Crew(1).receive(-1.0)
    Crew(1).receive(0.001)
