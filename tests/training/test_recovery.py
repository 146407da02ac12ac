"""Rollbacks go to the right checkpoint, change the right thing, are bounded and not forgotten."""

import pytest

from threedgp.config.schema import DivergenceConfig
from threedgp.errors import DataError
from threedgp.files import append_json_line, read_json_lines
from threedgp.training.divergence import Candidate, Trigger
from threedgp.training.recovery import Recovery, read_rollbacks

K = 1000
KIMG = 25_000.0  # length of the run: the grace period is 200
HEALTHY = [Candidate(n * K, 25, True) for n in (200, 400, 600, 800)]


def trigger(kimg, first=None):
    return Trigger("saturated discriminator", int((first or kimg) * K), int(kimg * K), {"Loss/D/loss": 0.001})


@pytest.fixture
def recovery(tmp_path):
    return Recovery(tmp_path / "recovery.jsonl", DivergenceConfig(), KIMG)


def test_the_newest_healthy_checkpoint_well_before_the_trouble_is_taken(recovery):
    candidates = [*HEALTHY, Candidate(1000 * K, 3, False)]
    assert recovery.decide(trigger(1020, first=1000), candidates).source == 800 * K
    assert (
        Recovery(recovery.path, DivergenceConfig(), KIMG, recovery.rollbacks)
        .decide(trigger(899, first=890), HEALTHY)
        .source
        < 800 * K
    )


def test_a_checkpoint_too_near_to_the_trouble_is_passed_over(recovery):
    assert recovery.decide(trigger(899, first=890), HEALTHY).source == 600 * K


def test_without_a_healthy_checkpoint_the_oldest_is_taken_and_without_any_the_start(recovery):
    unproven = [Candidate(n * K) for n in (200, 400, 1200)]
    assert recovery.decide(trigger(600), unproven).source == 200 * K
    assert recovery.decide(trigger(600), []).source == 0


def test_attempts_grow_stronger_and_end(recovery):
    found = [recovery.decide(trigger(1000), HEALTHY) for _ in range(5)]
    assert [(r.source // K, r.attempt, r.stream) for r in found[:4]] == [
        (800, 1, 1),
        (600, 2, 2),
        (400, 3, 3),
        (200, 4, 4),
    ]
    assert found[4] is None
    assert len(read_json_lines(recovery.path)) == 4


def test_the_count_starts_anew_when_the_trouble_is_long_over(recovery):
    assert recovery.decide(trigger(1000), HEALTHY).attempt == 1
    near = [*HEALTHY, Candidate(1200 * K, 25, True)]
    assert recovery.decide(trigger(1500), near).attempt == 2
    over = [*near, Candidate(1900 * K, 25, True)]  # 400 kimg beyond the last trouble
    assert recovery.decide(trigger(2000), over).attempt == 1


def test_rollbacks_of_a_run_are_bounded(tmp_path):
    recovery = Recovery(tmp_path / "recovery.jsonl", DivergenceConfig(rollbacks=2), KIMG)
    assert recovery.decide(trigger(1000), HEALTHY)
    assert recovery.decide(trigger(5000), HEALTHY)
    assert recovery.decide(trigger(9000), HEALTHY) is None


def test_a_restarted_job_remembers(recovery):
    recovery.decide(trigger(1000), HEALTHY)
    again = Recovery(recovery.path, recovery.config, KIMG, read_rollbacks(recovery.path))
    assert again.rollbacks == recovery.rollbacks
    assert again.decide(trigger(1000), HEALTHY).attempt == 2


def test_learning_rates_fall_from_the_second_attempt_on_and_stay(recovery):
    rates = []
    for _ in range(4):
        recovery.decide(trigger(1000), HEALTHY)
        rates.append(recovery.factors)
    assert [rate for rate, _ in rates] == pytest.approx([1.0, 0.3, 0.03, 0.003])
    assert [gamma for _, gamma in rates] == [1.0, 2.0, 4.0, 8.0]
    recovery.decide(trigger(2000), [*HEALTHY, Candidate(1900 * K, 25, True)])
    assert recovery.factors == rates[-1]


def test_rates_that_were_never_right_fall_far(recovery):
    for _ in range(2):
        recovery.decide(trigger(100), [])
    assert recovery.factors == (0.03, 2.0)


def test_without_a_healthy_checkpoint_later_attempts_start_afresh(recovery):
    unproven = [Candidate(n * K) for n in (200, 400)]
    assert [recovery.decide(trigger(600), unproven).source for _ in range(2)] == [200 * K, 0]


def test_decisions_of_earlier_versions_are_understood(recovery):
    recovery.decide(trigger(1000), HEALTHY)
    line = read_json_lines(recovery.path)[0]
    del line["learning_rate"], line["gamma"]
    recovery.path.write_text("")
    for slow in (False, True):
        append_json_line(recovery.path, line | {"slow": slow, "region": 1000})
    assert [(r.learning_rate, r.gamma) for r in read_rollbacks(recovery.path)] == [(1.0, 1.0), (0.5, 2.0)]


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "recovery.jsonl"
    path.write_text('{"what": 1}\n')
    with pytest.raises(DataError, match=r"recovery\.jsonl"):
        read_rollbacks(path)
