from tests.faults import damage


def test_damage_is_noticed_before_any_state_is_touched():
    outcomes = damage.count_outcomes(100)
    found = {outcome for _, outcome in outcomes}
    assert found == {"refused", "went on at step 2", "went on at step 4"}
    assert {kind for kind, _ in outcomes} == {
        *("flip", "truncation", "emptying", "deletion", "swap")
    }
