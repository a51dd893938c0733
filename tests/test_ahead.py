"""Work done ahead: everything once, in order, begun before it is asked for, errors where they belong."""

import threading

import pytest

from ross3d.data.ahead import iterate_ahead


@pytest.mark.parametrize("ahead", [1, 2, 9])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_things_come_in_order_and_the_next_are_under_way(count, ahead):
    begun = [threading.Event() for _ in range(count + ahead)]
    threads = set()

    def prepare(number: int) -> int:
        begun[number].set()
        threads.add(threading.current_thread().name)
        return 10 * number

    results = []
    for number, result in enumerate(iterate_ahead(prepare, range(count), ahead)):
        results.append(result)
        following = min(number + ahead, count - 1)
        assert begun[following].wait(timeout=10)
        assert not any(event.is_set() for event in begun[number + ahead + 1 :])
    assert results == [10 * number for number in range(count)]
    assert all(name.startswith("ahead") for name in threads) and len(threads) == min(count, 1)


def test_an_error_comes_in_its_turn():
    def prepare(number: int) -> int:
        if number == 1:
            raise ValueError(f"{number}: broken")
        return number

    results = iterate_ahead(prepare, range(3))
    assert next(results) == 0
    with pytest.raises(ValueError, match="1: broken"):
        next(results)
