import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.jobs import (
    ACTIVE,
    MOVES,
    TERMINAL,
    Fault,
    IllegalMove,
    Phase,
    check_move,
    ending,
    next_poll_s,
    state_of,
    task_status,
)

TASK_MOVES = {
    "pending": {"pending", "running", "completed", "failed", "cancelled"},
    "running": {"running", "pending", "completed", "failed", "cancelled"},
    "completed": set(),
    "failed": set(),
    "cancelled": set(),
}


@given(st.lists(st.sampled_from(list(Phase)), max_size=30))
def test_whatever_is_tried_a_job_that_has_ended_stays_as_it_is(tries):
    phase, ended = Phase.QUEUED, False
    for wanted in tries:
        try:
            check_move(phase, wanted)
        except IllegalMove:
            continue
        assert not ended
        assert task_status(wanted) in TASK_MOVES[task_status(phase)]
        phase, ended = wanted, wanted in TERMINAL


def test_every_phase_can_end_and_none_is_forgotten():
    assert set(MOVES) == set(Phase) == TERMINAL | ACTIVE | {Phase.QUEUED}
    for phase in set(Phase) - TERMINAL:
        assert MOVES[phase] >= {Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED}
    assert {state_of(phase) for phase in ACTIVE} == {"running"}


def test_a_create_that_may_have_landed_is_sent_again_only_through_the_queue():
    assert Phase.SUBMITTING not in MOVES[Phase.UNKNOWN]
    assert Phase.FETCHING not in MOVES[Phase.UNKNOWN]


@pytest.mark.parametrize("fault", list(Fault))
def test_every_fault_has_an_ending_in_the_log(fault):
    code, _, status, outcome = ending(fault)
    assert 400 <= status < 600
    assert code.value
    assert outcome.value in ("failed", "client_gone")


@given(st.floats(0, 1e6), st.floats(0, 1e5), st.floats(0.1, 10), st.floats(10, 60), st.floats(0, 1))
def test_polls_stay_within_the_bounds_of_their_provider(age_s, eta_s, least_s, most_s, spread):
    wait_s = next_poll_s(age_s, eta_s, least_s, most_s, spread)
    assert 0.8 * least_s - 1e-9 <= wait_s <= 1.2 * most_s + 1e-9
