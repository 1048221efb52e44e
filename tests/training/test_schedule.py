"""The learning rate: shapes, ends, and that it is a function of the step alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.training.schedule import DECAY_SHARE, SCHEDULES, learning_rate


def rates(schedule, *, steps=100, warmup_steps=10, final_share=0.0):
    return [
        learning_rate(
            step,
            steps=steps,
            peak=2.0,
            warmup_steps=warmup_steps,
            schedule=schedule,
            final_share=final_share,
        )
        for step in range(steps)
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_is_linear_and_reaches_the_peak(schedule):
    curve = rates(schedule)
    assert curve[:11] == pytest.approx([2.0 * (step + 1) / 11 for step in range(11)])
    assert max(curve) == curve[10] == 2.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_falls_to_the_final_share_but_never_to_zero(schedule):
    curve = rates(schedule)
    assert curve[10:] == sorted(curve[10:], reverse=True)
    assert 0 < curve[-1] < 0.06
    assert rates(schedule, final_share=0.1)[-1] == pytest.approx(0.2 + 0.9 * curve[-1])


def test_values_by_hand():
    assert rates("linear", steps=4, warmup_steps=0) == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert rates("cosine", steps=4, warmup_steps=0)[2] == pytest.approx(1.0)
    assert rates("constant", steps=4, warmup_steps=0) == [2.0] * 4
    wsd = rates("wsd", steps=1000, warmup_steps=0)
    first_decay = round(1000 * (1 - DECAY_SHARE))
    assert wsd[first_decay] == pytest.approx(2.0)
    assert wsd[first_decay + 1] < 2.0
    assert wsd[first_decay + round(500 * DECAY_SHARE)] == pytest.approx(1.0)


@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.integers(1, 50),
    warmup_steps=st.integers(0, 80),
    final_share=st.floats(0, 1),
)
def test_every_step_of_every_run_learns_and_stays_under_the_peak(schedule, steps, warmup_steps, final_share):
    curve = rates(schedule, steps=steps, warmup_steps=warmup_steps, final_share=final_share)
    assert all(0 < value <= 2.0 for value in curve)


def test_refuses_what_is_not_a_step_of_the_run():
    for step in (-1, 100):
        with pytest.raises(ValueError, match="not within a run of 100 steps"):
            learning_rate(step, steps=100, peak=1.0, warmup_steps=0, schedule="linear")
    with pytest.raises(ValueError, match="unknown schedule 'sine'"):
        learning_rate(0, steps=100, peak=1.0, warmup_steps=0, schedule="sine")  # type: ignore[arg-type]
