"""The plan: what a run would do, checked without writing anything."""

from __future__ import annotations

import json

import pytest
import torch

from tests.training.small import tiny_profile
from tests.training.tiny_runs import OVERRIDES, make_run, make_workspace
from threedgp.config.profile import load_profile
from threedgp.errors import CheckpointError, ConfigError, DataError, UsageError
from threedgp.launch.memory import estimate_memory
from threedgp.launch.options import LaunchOptions, choose_launch
from threedgp.launch.plan import (
    change_profile,
    cpu_processes,
    keep_profile,
    open_run,
    outcome,
    plan_run,
)
from threedgp.models.build import build_discriminator
from threedgp.ops import native
from threedgp.processes import World
from threedgp.runs.checkpoint import save_checkpoint
from threedgp.runs.run import Run
from threedgp.training.state import TrainingState


@pytest.fixture
def workspace(tmp_path):
    return make_workspace(tmp_path)


@pytest.fixture
def profile():
    return tiny_profile(*OVERRIDES)


def test_a_plan_says_what_will_happen_and_writes_nothing(workspace, profile):
    plan = plan_run(workspace, profile, LaunchOptions(2))
    rows = dict(plan.rows())
    assert rows["run"] == f"{workspace.runs / 'tiny-cpu-NUMBER'} (new)"
    assert "12 images, mirrored, 4 classes" in rows["data"]
    assert rows["size"] == "16x16 in patches of 8x8"
    assert rows["length"] == "0.064 thousand images, 8 iterations"
    assert rows["batch"] == "8 = 2 x 4"
    assert rows["processes"] == "2 CPU processes, fp32"
    assert "checkpoint every 0.016" in rows["schedule"]
    assert rows["memory"].startswith("about ")
    assert json.loads(json.dumps(plan.as_dict()))["micro_batch"] == 4
    assert not workspace.runs.exists()


@pytest.mark.parametrize(
    ("exists", "text"), [(True, "1 CPU process, bf16"), (False, "fp32 because this processor has no")]
)
def test_a_plan_says_what_the_processor_computes_in(workspace, monkeypatch, exists, text):
    monkeypatch.setattr(native, "CPU_COMPUTES_BFLOAT16", exists)
    plan = plan_run(workspace, tiny_profile(*OVERRIDES, "precision=bf16"), LaunchOptions(1))
    assert text in dict(plan.rows())["processes"]


def test_a_plan_of_an_existing_run_says_where_it_goes_on(workspace):
    run = make_run(workspace, "run")
    save_checkpoint(run.checkpoints_folder, {"G": {"w": torch.ones(1)}}, {}, nimg=48)
    rows = dict(plan_run(workspace, run.profile, LaunchOptions(2, nodes=2, rendezvous="a:1"), "run").rows())
    assert "goes on at 0.048 thousand images" in rows["run"]
    assert rows["length"].endswith("2 iterations left")
    assert rows["processes"].startswith("2 CPU processes on each of 2 machines")
    assert rows["batch"] == "8 = 4 x 2"


def test_what_does_not_fit_is_refused(workspace, profile):
    with pytest.raises(ConfigError, match="cannot be split over 3"):
        plan_run(workspace, profile, LaunchOptions(3))
    blind = tiny_profile(*OVERRIDES, "camera.validate_viewing_frustum=true", "camera.far=3.0")
    with pytest.raises(ConfigError, match="leave the scene cube"):
        plan_run(workspace, blind, LaunchOptions(1))
    with pytest.raises(DataError, match=r"has 4 classes but the profile says data\.num_classes=5"):
        plan_run(workspace, tiny_profile(*OVERRIDES, "data.num_classes=5"), LaunchOptions())
    with pytest.raises(DataError, match="3dgp data embed"):
        plan_run(workspace, tiny_profile(*OVERRIDES, "loss.distillation.weight=1.0"), LaunchOptions())
    for path in (workspace.root / "data" / "noise" / "16").glob("00*_depth.png"):
        path.unlink()
    with pytest.raises(DataError, match="10 of 12 images have no depth map"):
        plan_run(workspace, profile, LaunchOptions())


def test_settings_that_need_other_networks_are_refused_before_they_are_kept(workspace):
    run = make_run(workspace, "run")
    for nimg in (16, 32):
        save_checkpoint(run.checkpoints_folder, {"G": {"w": torch.ones(1)}}, {}, nimg=nimg, profile=run.profile)
    wider = change_profile(run, ["model.generator.w_dim=32"])
    with pytest.raises(CheckpointError, match=r"000000032 .*model\.generator\.w_dim = 8"):
        plan_run(workspace, wider, LaunchOptions(), "run")
    (run.checkpoints()[-1] / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="000000016"):
        plan_run(workspace, wider, LaunchOptions(), "run")
    plan_run(workspace, change_profile(run, ["training.kimg=1.0"]), LaunchOptions(), "run")


def test_notes_warn_of_odd_choices(workspace, profile):
    assert plan_run(workspace, profile, LaunchOptions()).notes == []
    big = tiny_profile(*OVERRIDES, "training.batch_size=512", "gpus=4")
    notes = " ".join(plan_run(workspace, big, LaunchOptions(128)).notes)
    assert "chosen for 4 GPUs" in notes
    assert "more processes than cores" in notes
    assert "smaller than one batch" in notes


def test_the_launch_follows_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_launch() == LaunchOptions(1, "cpu")
    assert choose_launch(procs=3) == LaunchOptions(3, "cpu")
    assert choose_launch(gpus=8, elsewhere=True) == LaunchOptions(8, "cuda")
    assert choose_launch(procs=2, nodes=4, elsewhere=True).world_size == 8
    with pytest.raises(UsageError, match=r"has 0 usable GPUs.*--procs"):
        choose_launch(gpus=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_launch() == LaunchOptions(1, "cuda")
    assert choose_launch(gpus=2) == LaunchOptions(2, "cuda")
    assert choose_launch(procs=2) == LaunchOptions(2, "cpu")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus": 1, "procs": 1}, "exclude each other"),
        ({"nodes": 2}, "--rendezvous"),
        ({"rendezvous": "a:1"}, "--nodes"),
        ({"nodes": 2, "rendezvous": "a"}, "HOST:PORT"),
        ({"nodes": 2, "rendezvous": "a:b"}, "HOST:PORT"),
    ],
)
def test_contradictions_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        choose_launch(**options)


def test_the_same_start_again_opens_the_run_and_other_settings_do_not(workspace, profile):
    run = open_run(workspace, profile, LaunchOptions(), "mine")
    assert run.profile == profile
    assert (run.folder / "data.json").exists()
    assert open_run(workspace, profile, LaunchOptions(), "mine").folder == run.folder
    with pytest.raises(UsageError, match="3dgp resume mine"):
        open_run(workspace, tiny_profile(*OVERRIDES, "training.seed=5"), LaunchOptions(), "mine")
    assert open_run(workspace, profile, LaunchOptions()).name == "tiny-cpu-001"


def test_two_machines_that_start_the_same_run_at_once_share_it(workspace, profile, monkeypatch):
    create = Run.create.__func__

    def other_was_first(cls, *args):
        create(cls, *args)
        return create(cls, *args)

    monkeypatch.setattr(Run, "create", classmethod(other_was_first))
    assert open_run(workspace, profile, LaunchOptions(), "mine").name == "mine"


def test_a_longer_run_is_no_longer_done(workspace):
    run = make_run(workspace, "run")
    save_checkpoint(run.checkpoints_folder, {"G": {"w": torch.ones(1)}}, {}, nimg=64)
    (run.folder / "DONE").touch()
    assert outcome(run)["finished"]
    assert change_profile(run, []) is run.profile
    longer = change_profile(run, ["training.kimg=0.1"])
    assert not outcome(run, longer)["finished"]
    assert outcome(run)["finished"]  # nothing written yet
    changed = keep_profile(run, longer)
    assert changed.profile.training.kimg == 0.1
    assert not (run.folder / "DONE").exists()
    assert not outcome(changed)["finished"]


def test_the_estimate_of_the_state_is_what_the_state_takes(profile):
    state = TrainingState.build(profile, World(0, 1, torch.device("cpu")))
    for name in ("G", "D"):
        for parameter in state.networks[name].parameters():
            parameter.requires_grad_(True).grad = torch.zeros_like(parameter)
        state.optimizers[name].step()
    held = [p for network in state.networks.values() for p in network.parameters()]
    held += [p.grad for name in ("G", "D") for p in state.networks[name].parameters()]
    held += [
        value
        for optimizer in state.optimizers.values()
        for entry in optimizer.state.values()
        for key, value in entry.items()
        if key != "step"
    ]
    assert estimate_memory(profile, 4).state == sum(value.nbytes for value in held)


def test_the_feature_discriminator_and_its_frozen_network_take_memory(profile):
    with_eyes = tiny_profile(*OVERRIDES, "model.feature_discriminator={weight: 0.25, input_size: 32}")
    discriminator = build_discriminator(with_eyes)
    heads = sum(p.nbytes for p in discriminator.feature_discriminator.parameters())
    frozen = sum(p.nbytes for p in discriminator.feature_discriminator.network.parameters())
    before, after = estimate_memory(profile, 4), estimate_memory(with_eyes, 4)
    assert after.state - before.state == pytest.approx(4 * heads + frozen, rel=0.02)  # batch norms are folded later
    assert after.activations > before.activations


@pytest.mark.parametrize("name", ["imagenet256", "epigraf256", "stylegan2-256"])
def test_activations_grow_with_the_micro_batch(name):
    profile = load_profile(name)
    small, large = estimate_memory(profile, 4), estimate_memory(profile, 8)
    assert small.state == large.state
    assert 1.8 < large.activations / small.activations < 2.1
    assert 1e9 < small.activations < 50e9


def test_as_many_processes_as_cores_while_groups_stay_whole():
    profile = tiny_profile("training.batch_size=16", "model.discriminator.mbstd_group_size=4")
    assert [cpu_processes(profile, cores) for cores in (1, 2, 3, 4, 7, 8, 64)] == [1, 2, 2, 4, 4, 4, 4]
    whole = tiny_profile("training.batch_size=16", "model.discriminator.mbstd_group_size=null")
    assert cpu_processes(whole, 8) == 1


@pytest.mark.parametrize("name", ["../a", "a b", "-x", "0" * 300])
def test_a_dry_run_refuses_the_names_that_a_start_refuses(workspace, name):
    with pytest.raises(UsageError, match="A run cannot be called"):
        plan_run(workspace, tiny_profile(*OVERRIDES), LaunchOptions(), name)
