"""Collective operations of several processes, and of one alone."""

from __future__ import annotations

import pytest
import torch

from tests.training.tiny_runs import become_worker, context
from threedgp.errors import ThreeDGPError, UsageError
from threedgp.launcher import MEETING
from threedgp.processes import World, join_world


def _work(rank: int, meeting, answers) -> None:
    become_worker(rank, 2, meeting)
    with join_world("cpu") as world:
        same, own = torch.arange(5.0), torch.full((3,), float(rank))
        weights = torch.tensor([1.0, 2.0]) * (rank + 1)
        world.broadcast([weights])
        found = {
            "main": world.is_main,
            "sum": world.sum(torch.tensor([1.0, float(rank)])).tolist(),
            "mean": world.mean(torch.tensor([2.0, float(rank)])).tolist(),
            "any": [world.any(False), world.any(rank == 1), world.any(True)],
            "share": world.share({"path": f"from {rank}"}),
            "gather": world.gather([rank] * (1 + 100 * rank)),
            "broadcast": weights.tolist(),
        }
        world.require_equal({"same": same, "scalar": torch.tensor(2.5), "empty": torch.zeros(0)})
        try:
            world.require_equal({"same": same, "G.weight": own, "later": own})
        except ThreeDGPError as error:
            found["error"] = str(error)
        # a permutation has the same sum of bytes
        try:
            world.require_equal({"order": torch.tensor([1.0, 2.0] if rank else [2.0, 1.0])})
        except ThreeDGPError:
            found["order"] = True
        world.barrier()
    answers.put((rank, found))


def test_two_processes_agree(tmp_path):
    answers = context.Queue()
    processes = [context.Process(target=_work, args=(rank, tmp_path / "meeting", answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in range(2):
        answer = found[rank]
        assert answer["main"] == (rank == 0)
        assert answer["sum"] == [2.0, 1.0]
        assert answer["mean"] == [2.0, 0.5]
        assert answer["any"] == [False, True, True]
        assert answer["share"] == {"path": "from 0"}
        assert answer["gather"] == [[0], [1] * 101]
        assert answer["broadcast"] == [1.0, 2.0]
        assert "disagree about G.weight" in answer["error"]
        assert answer["order"]


@pytest.mark.parametrize("foreign", [{}, {"WORLD_SIZE": "4"}, {"WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "x"}])
def test_one_process_needs_no_group_whatever_the_cluster_has_set(monkeypatch, foreign):
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    with join_world("cpu") as world:
        assert world == World(0, 1, torch.device("cpu"))
        assert world.sum(torch.tensor(3.0)).item() == 3.0
        assert world.any(True)
        assert not world.any(False)
        assert world.share("x") == "x"
        assert world.gather(1) == [1]
        world.require_equal({"x": torch.ones(1)})
        assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {MEETING: "file:x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="finds only 1 GPUs"), join_world("cuda"):
        pass
