"""Rollbacks go to the right checkpoint, change the right thing, are bounded and not forgotten."""

import pytest

from threedgp.config.schema import DivergenceConfig
from threedgp.errors import DataError
from threedgp.files import read_json_lines
from threedgp.training.divergence import Candidate, Trigger
from threedgp.training.recovery import Recovery

K = 1000
HEALTHY = [Candidate(n * K, 25, True) for n in (200, 400, 600, 800)]


def trigger(kimg, first=None):
    return Trigger("saturated discriminator", int((first or kimg) * K), int(kimg * K), {"Loss/D/loss": 0.001})


@pytest.fixture
def recovery(tmp_path):
    return Recovery(tmp_path / "recovery.jsonl", DivergenceConfig())


def test_the_newest_healthy_checkpoint_well_before_the_trouble_is_taken(recovery):
    candidates = [*HEALTHY, Candidate(1000 * K, 3, False)]
    assert recovery.decide(trigger(1020, first=1000), candidates).source == 800 * K
    assert (
        Recovery(recovery.path, DivergenceConfig(attempts=9)).decide(trigger(899, first=890), HEALTHY).source < 800 * K
    )


def test_a_checkpoint_too_near_to_the_trouble_is_passed_over(recovery):
    assert recovery.decide(trigger(899, first=890), HEALTHY).source == 600 * K


def test_without_a_healthy_checkpoint_the_oldest_is_taken_and_without_any_the_start(recovery):
    unproven = [Candidate(n * K) for n in (200, 400, 1200)]
    assert recovery.decide(trigger(600), unproven).source == 200 * K
    assert recovery.decide(trigger(600), []).source == 0


def test_attempts_grow_stronger_and_end(recovery):
    found = [recovery.decide(trigger(1000), HEALTHY) for _ in range(4)]
    assert [(r.source // K, r.attempt, r.slow, r.stream) for r in found[:3]] == [
        (800, 1, False, 1),
        (600, 2, False, 2),
        (600, 3, True, 3),
    ]
    assert found[3] is None
    assert len(read_json_lines(recovery.path)) == 3


def test_trouble_elsewhere_starts_anew(recovery):
    assert recovery.decide(trigger(1000), HEALTHY).attempt == 1
    assert recovery.decide(trigger(1399), HEALTHY).attempt == 2
    assert recovery.decide(trigger(1500), HEALTHY).attempt == 1  # 500 kimg from where it first happened
    assert recovery.last.region == 1500 * K


def test_a_long_calm_stretch_clears_the_count(recovery):
    first = recovery.decide(trigger(1000), [Candidate(200 * K, 25, True)])
    assert first.source == 200 * K
    assert recovery.decide(trigger(1001), [Candidate(200 * K, 25, True)]).attempt == 1  # 801 kimg went well in between


def test_rollbacks_of_a_run_are_bounded(tmp_path):
    recovery = Recovery(tmp_path / "recovery.jsonl", DivergenceConfig(rollbacks=2))
    assert recovery.decide(trigger(1000), HEALTHY)
    assert recovery.decide(trigger(5000), HEALTHY)
    assert recovery.decide(trigger(9000), HEALTHY) is None


def test_a_restarted_job_remembers(recovery):
    recovery.decide(trigger(1000), HEALTHY)
    again = Recovery(recovery.path, recovery.config)
    assert again.rollbacks == recovery.rollbacks
    assert again.decide(trigger(1000), HEALTHY).attempt == 2


def test_a_rollback_that_was_not_carried_out_is_pending(recovery):
    assert recovery.pending(0) is None
    rollback = recovery.decide(trigger(1000), HEALTHY)
    assert recovery.pending(0) == rollback
    assert recovery.pending(recovery.stream) is None


def test_learning_is_slowed_down_after_the_third_attempt_only(recovery):
    for _ in range(2):
        recovery.decide(trigger(1000), HEALTHY)
        assert recovery.slow_down(600 * K) == (1.0, 1.0)
    recovery.decide(trigger(1000), HEALTHY)  # goes back to 600 kimg
    assert recovery.slow_down(600 * K) == (0.5, 2.0)
    assert recovery.slow_down(799 * K) == (0.5, 2.0)
    assert recovery.slow_down(850 * K) == (0.75, 1.5)
    assert recovery.slow_down(900 * K) == (1.0, 1.0)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "recovery.jsonl"
    path.write_text('{"what": 1}\n')
    with pytest.raises(DataError, match=r"recovery\.jsonl"):
        Recovery(path, DivergenceConfig())
