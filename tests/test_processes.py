"""Collective operations of several processes, and of one alone."""

from __future__ import annotations

import os

import pytest
import torch

from tests.training.tiny_runs import context, free_port
from threedgp.errors import ThreeDGPError, UsageError
from threedgp.processes import World, join_world


def _work(rank: int, port: int, answers) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
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
            "gather": world.gather([rank]),
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


def test_two_processes_agree():
    answers, port = context.Queue(), free_port()
    processes = [context.Process(target=_work, args=(rank, port, answers)) for rank in range(2)]
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
        assert answer["gather"] == [[0], [1]]
        assert answer["broadcast"] == [1.0, 2.0]
        assert "disagree about G.weight" in answer["error"]
        assert answer["order"]


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
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
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UsageError, match="finds only 1 GPUs"), join_world("cuda"):
        pass
