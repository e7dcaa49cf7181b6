import pytest

from tests.faults import damage


@pytest.mark.slow
def test_damage_is_noticed_before_any_state_is_touched():
    outcomes = damage.count_outcomes(1000)
    assert {outcome for *_, outcome in outcomes} == {
        *("refused", "went on at step 2", "went on at step 4")
    }
    assert {kind for kind, *_ in outcomes} == {
        *("flip", "truncation", "emptying", "deletion", "swap")
    }
    assert {place for _, place, _ in outcomes} == {
        *("study.json", "model", "checkpoints", *damage.RECORDS)
    }
