"""How sides are timed."""

import functools

from benchmarks.measure import in_turn, median_ratio


def test_sides_take_turns_in_every_order():
    calls = []
    sides = {name: functools.partial(calls.append, name) for name in "abc"}
    warm_ups = {name: functools.partial(calls.append, f"warm {name}") for name in "abc"}
    timed = in_turn(sides, 20, warm_ups)
    assert calls[:3] == ["a", "b", "c"]
    rounds = [calls[start : start + 6] for start in range(3, len(calls), 6)]
    assert len(rounds) == 20
    orders = set()
    for one in rounds:
        assert [f"warm {name}" for name in one[1::2]] == one[::2]
        assert sorted(one[1::2]) == ["a", "b", "c"]
        orders.add(tuple(one[1::2]))
    assert len(orders) == 6
    assert all(len(found["seconds"]) == 20 for found in timed.values())


def test_ratios_are_of_the_same_round():
    timed = {"a": {"seconds": [1.0, 4.0, 9.0]}, "b": {"seconds": [2.0, 2.0, 3.0]}}
    assert median_ratio(timed, "a", "b") == 2.0
