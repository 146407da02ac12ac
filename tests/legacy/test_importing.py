"""Snapshots of the published code become runs: same weights, same pictures, nothing executed."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.legacy.writer import mirror, state_of, write_snapshot
from tests.models.reference import load_reference
from threedgp.camera.priors import CameraPrior
from threedgp.config.profile import load_profile
from threedgp.config.workspace import Workspace
from threedgp.errors import CheckpointError, ConfigError, UnsafeFileError, UsageError
from threedgp.inference.cameras import mean_camera
from threedgp.legacy.importing import import_snapshot
from threedgp.models.build import build_discriminator, build_generator
from threedgp.runs.checkpoint import load_checkpoint
from threedgp.runs.run import Run, load_generator

CAMERA = [
    "camera.near=0.7",
    "camera.far=1.3",
    "camera.cube_scale=0.4",
    "camera.fov.max=30.0",
    "camera.look_at.radius.max=0.1",
    "model.generator.ray_steps=6",
]
NO_ADAPTORS = [
    "model.kind=epigraf",
    "training.use_depth=false",
    "training.learn_camera=false",
    "loss.camera.emd.enabled=false",
    "loss.camera.force_mean.weight=0.0",
    "loss.distillation.weight=0.0",
    "camera.origin={dist: normal, yaw: {mean: 0.0, std: 0.6, min: null, max: null}, pitch: {mean: 1.57, std: 0.3}}",
    "model.discriminator.fmaps=0.5",
]
FLAT = [
    *NO_ADAPTORS[1:6],
    "model.kind=stylegan2",
    "model.generator.clamp_activations=true",
    "training.patch.enabled=false",
    "training.patch.conditioning=false",
    "model.discriminator.hyper_mod=false",
]


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


class Notes:
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def networks(profile, seed=0):
    torch.manual_seed(seed)
    g, d, g_ema = build_generator(profile), build_discriminator(profile), build_generator(profile)
    for module in (g, g_ema):
        for name, value in module.state_dict().items():
            if name.endswith("noise_strength"):
                value.fill_(0.1)
            if name.endswith("progress_coef"):
                value.fill_(0.7)
    return {"G": g, "D": d, "G_ema": g_ema}


def prior_settings(prior):
    return {key: value for key, value in prior.model_dump().items() if value is not None}


def settings(profile):
    """Attributes and configuration of each network, under the published names."""
    g, camera, resolution = profile.model.generator, profile.camera, profile.data.resolution
    camera_settings = {
        "ray": {"start": camera.near, "end": camera.far},
        "cube_scale": camera.cube_scale,
        "fov": prior_settings(camera.fov),
        "origin": {"radius": prior_settings(camera.radius), "angles": camera.origin.model_dump()},
        "look_at": {
            "radius": prior_settings(camera.look_at.radius),
            "angles": camera.look_at.model_dump(exclude={"radius"}),
        },
        "validate_viewing_frustum": False,
    }
    configuration = {
        "cbase": g.cbase,
        "cmax": g.cmax,
        "fmaps": g.fmaps,
        "num_ray_steps": g.ray_steps,
        "ray_marcher_type": g.marcher,
        "use_inf_depth": g.use_inf_depth,
        "clamp_mode": g.clamp_mode,
        "density_bias": 0,
        "max_batch_res": round(g.chunk_rays**0.5),
        "fp32_only": not g.clamp_activations,
        "nerf_noise_std_init": 1.0,
        "nerf_noise_kimg_growth": 5000,
        "camera_cond": False,
        "camera": camera_settings,
        "dataset": {"resolution": resolution, "white_back": True, "last_back": False},
        "depth_adaptor": {"enabled": True, "out_strategy": "random", "anneal_kimg": 10000},
        "camera_adaptor": {
            "lr_multiplier": 0.1,
            "residual": False,
            "adjust": {"angles": True, "radius": False, "fov": True, "look_at": True},
        },
        "unresolved": "${training.patch}",
    }
    own = {
        "z_dim": g.z_dim,
        "c_dim": profile.data.num_classes,
        "w_dim": g.w_dim,
        "img_resolution": profile.data.resolution,
    }
    d = profile.model.discriminator
    patch = profile.training.patch
    side = patch.resolution if patch.enabled else resolution
    d_own = {"img_resolution": side << profile.start_blocks, "c_dim": 4}
    d_configuration = {"cbase": d.cbase, "cmax": d.cmax, "fmaps": d.fmaps, "fp32_only": False, "mbstd_group_size": 4}
    d_configuration["patch"] = {"enabled": patch.enabled, "resolution": side}
    return {"G": (own, configuration), "G_ema": (own, configuration), "D": (d_own, d_configuration)}


def picture(generator, profile):
    """A deterministic rendering with posterior cameras where there are any."""
    prior = CameraPrior(profile.camera)
    source = torch.Generator().manual_seed(3)
    z = torch.randn(2, profile.model.generator.z_dim, generator=source)
    c = torch.eye(max(profile.data.num_classes, 2))[:2] if profile.data.num_classes else None
    torch.manual_seed(4)
    with torch.no_grad():
        ws = generator.mapping(z, c)
        if profile.model.kind == "stylegan2":
            return generator.synthesize(ws, noise_mode="const")
        camera = prior.sample(2, generator=source)
        if generator.camera_adaptor is not None:
            camera = generator.camera_adaptor(camera, z, c)
        result = generator.synthesize(ws, camera, noise_mode="const")
        return torch.cat([result.img, result.depth], dim=1)


VARIANTS = {
    "3dgp": CAMERA,
    "3dgp-unconditional": [*CAMERA, "data.num_classes=0", "model.depth_adaptor.layers=0"],
    "epigraf": [*CAMERA, *NO_ADAPTORS],
    "stylegan2": FLAT,
    "stylegan2-resnet": [*FLAT, "model.generator.architecture=resnet", "model.generator.use_noise=false"],
}


@pytest.mark.parametrize("style", ["easy", "omega"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pickled_snapshot_becomes_a_run_that_renders_the_same_pictures(workspace, tmp_path, variant, style):
    profile = load_profile("tiny-cpu", VARIANTS[variant])
    originals = networks(profile)
    file = tmp_path / "network-snapshot-000180.pkl"
    write_snapshot(file, originals, settings(profile), style=style, prefix="src." if style == "omega" else "")
    assert not {"src", "training", "omegaconf", "dnnlib"} & sys.modules.keys()
    notes = Notes()
    imported = import_snapshot(file, workspace, progress=notes)
    assert not {"src", "training", "omegaconf", "dnnlib"} & sys.modules.keys()
    assert notes.texts == []
    assert imported.networks == ("G", "D", "G_ema")
    assert imported.checkpoint.name == "000180000"

    run = Run.open(workspace, imported.run.name)
    assert run.state() == "imported"
    assert run.profile.model.kind == profile.model.kind
    assert run.profile.camera == profile.camera or variant.startswith("stylegan2")
    assert run.profile.model.generator.white_back is False
    checkpoint = load_checkpoint(run.checkpoint(), profile=run.profile)
    for network, module in originals.items():
        own = module.state_dict()
        assert checkpoint.tensors[network].keys() == own.keys()
        assert all(torch.equal(checkpoint.tensors[network][name], value) for name, value in own.items())
    loaded = load_generator(run.checkpoint())
    assert not loaded.training
    expected = picture(originals["G_ema"].eval(), profile)
    assert expected.std() > 0.01
    assert torch.equal(picture(loaded, run.profile), expected)
    discriminator = build_discriminator(run.profile)
    discriminator.load_state_dict(checkpoint.tensors["D"])
    conditions = conditions_of_patches(profile)
    assert torch.equal(discriminator(*conditions).logits, originals["D"](*conditions).logits)


def conditions_of_patches(profile):
    """Four patches as large as the discriminator sees them, and what it is told about each."""
    patch = profile.training.patch
    side = patch.resolution if patch.enabled else profile.data.resolution
    source = torch.Generator().manual_seed(5)
    img = torch.randn(4, 4 if profile.training.use_depth else 3, side, side, generator=source)
    c = torch.eye(max(4, profile.data.num_classes))[:4, : profile.data.num_classes]
    return img, c, torch.full([4, 2], 0.5), torch.rand(4, 2, generator=source) / 2


@pytest.mark.parametrize("kind", ["pickle", "pickle that counts blocks", "flat file"])
def test_an_imported_discriminator_gives_the_originals_logits(workspace, tmp_path, golden, kind):
    data = golden("discriminator")
    overrides = ["data.num_classes=5", "data.resolution=32", "training.patch.resolution=16", "data.embedding_dim=12"]
    overrides += ["loss.distillation.weight=1.0", "model.discriminator.cbase=512", "model.discriminator.cmax=16"]
    profile = load_profile("tiny-cpu", overrides)
    originals = networks(profile)
    load_reference(originals["D"], data, "param/", torch.float32)
    described = settings(profile)
    assert described["D"][0]["img_resolution"] == 32
    if kind == "flat file":
        file = tmp_path / "weights.safetensors"
        named = {f"{key}.{name}": v for key, net in originals.items() for name, v in state_of(net).items()}
        write_flat(file, named)
    else:
        file = tmp_path / "snapshot.pkl"
        if kind != "pickle":
            described["D"][1]["patch"] = "${training.patch}"
            described["D"][1]["num_additional_start_blocks"] = 1
        write_snapshot(file, originals, described)
    base = {"profile": "tiny-cpu", "overrides": ["training.patch.resolution=16"]} if kind == "flat file" else {}
    imported = import_snapshot(file, workspace, **base)
    assert imported.run.profile.training.patch.resolution == 16
    discriminator = build_discriminator(imported.run.profile)
    discriminator.load_state_dict(load_checkpoint(imported.checkpoint).tensors["D"])
    names = ("img", "c", "patch_scales", "patch_offsets")
    logits = discriminator(*(torch.tensor(data[name]) for name in names)).logits
    assert torch.allclose(logits, torch.tensor(data["logits"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dist", ["normal", "custom"])
def test_generators_that_see_the_camera_keep_their_stored_mean(workspace, tmp_path, dist):
    cameras = [*NO_ADAPTORS, "model.generator.camera_conditioning.enabled=true"]
    if dist == "custom":
        cameras.append("camera.origin.dist=custom")
    profile = load_profile("tiny-cpu", [*cameras, "camera.data_mean=[0.1, 1.4, 0.0, 18.0, 1.0]"])
    originals = networks(profile)
    stored = torch.tensor([0.1, 1.4, 0.0, 18.0, 1.0], dtype=torch.float64)  # as the published code keeps it
    for name in ("G", "G_ema"):
        originals[name].mapping.mean_camera_params = stored
    described = settings(profile)
    described["G"][1]["camera_cond"] = True  # G_ema shares it
    file = tmp_path / "snapshot.pkl"
    write_snapshot(file, originals, described)
    imported = import_snapshot(file, workspace)
    assert (imported.run.profile.camera.data_mean is None) == (dist != "custom")
    loaded = load_generator(imported.checkpoint)
    assert torch.equal(loaded.mapping.mean_camera_params, stored.float())
    z, c = torch.randn(2, profile.model.generator.z_dim), torch.eye(profile.data.num_classes)[:2]
    expected = originals["G_ema"].float().eval().mapping(z, c)
    assert torch.equal(loaded.mapping(z, c), expected)
    if dist == "custom":  # its training set is not here
        assert mean_camera(loaded, imported.run.profile).angles[0].tolist() == pytest.approx([0.1, 1.4, 0.0])


def test_counters_and_classes_of_the_snapshot_are_recorded(workspace, tmp_path):
    profile = load_profile("tiny-cpu")
    file = tmp_path / "snapshot.pkl"
    write_snapshot(file, networks(profile), settings(profile))
    run = import_snapshot(file, workspace, name="mine").run
    record = json.loads((run.folder / "import.json").read_text())
    assert run.name == "mine"
    assert record["file"] == "snapshot.pkl"
    assert record["stats"] == {"cur_nimg": 180_000, "cur_tick": 45, "best_metric_value": 21.5, "best_metric_tick": None}
    assert record["classes"]["G"] == "Generator"
    assert record["classes"]["D"] == "src.training.networks_discriminator.Discriminator"
    with pytest.raises(UsageError, match="already a run 'mine'"):
        import_snapshot(file, workspace, name="mine")


def test_scalar_buffers_with_and_without_an_axis_and_odd_strides_are_accepted(workspace, tmp_path):
    profile = load_profile("tiny-cpu")
    originals = networks(profile)
    g_ema = originals["G_ema"]
    with torch.no_grad():
        weight = g_ema.mapping.fc1.weight
        weight.data = weight.data.t().contiguous().t()  # same values, other strides
        g_ema.mapping.w_avg = torch.stack([g_ema.mapping.w_avg + 1] * 2, dim=1)[:, 0]  # a view into a larger storage
    g_ema.synthesis.depth_adaptor.progress_coef = torch.tensor(0.25)
    file = tmp_path / "snapshot.pkl"
    write_snapshot(file, {"G_ema": g_ema}, settings(profile))
    imported = import_snapshot(file, workspace)
    assert imported.networks == ("G_ema",)
    tensors = load_checkpoint(imported.checkpoint).tensors["G_ema"]
    assert tensors["synthesis.depth_adaptor.progress_coef"].tolist() == [0.25]
    assert torch.equal(tensors["mapping.fc1.weight"], weight)
    assert torch.equal(tensors["mapping.w_avg"], g_ema.mapping.w_avg)


def write_flat(file, tensors):
    if file.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    elif file.suffix == ".npz":
        np.savez(file, **{name: value.numpy() for name, value in tensors.items()})
    else:
        torch.save(tensors, file)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".pth"])
def test_flat_files_are_imported_with_a_profile_for_what_shapes_cannot_tell(workspace, tmp_path, suffix):
    profile = load_profile("tiny-cpu")
    originals = networks(profile)
    file = tmp_path / f"weights{suffix}"
    write_flat(file, {f"{key}.{name}": v for key, net in originals.items() for name, v in state_of(net).items()})
    with pytest.raises(ConfigError, match=r"camera\.near, camera\.far.*camera\.fov.*ray_steps.*--set KEY=VALUE"):
        import_snapshot(file, workspace)
    assert not workspace.runs.exists()
    run = import_snapshot(file, workspace, profile="tiny-cpu").run
    assert run.name == "tiny-cpu-001"
    assert run.profile.model == profile.model
    assert run.profile.loss.gamma == profile.loss.gamma
    assert torch.equal(
        picture(load_generator(run.checkpoint()), run.profile), picture(originals["G_ema"].eval(), profile)
    )


def test_a_flat_file_of_one_generator_needs_no_prefix_and_sizes_come_from_shapes(workspace, tmp_path):
    profile = load_profile("tiny-cpu", ["model.generator.tri_plane.mlp.hidden_dim=24", "model.generator.cbase=512"])
    file = tmp_path / "weights.safetensors"
    write_flat(file, state_of(networks(profile)["G_ema"]))
    run = import_snapshot(file, workspace, profile="tiny-cpu", overrides=["camera.near=0.8"]).run
    assert run.profile.model.generator.tri_plane.mlp.hidden_dim == 24
    assert run.profile.model.generator.cbase == 512
    assert run.profile.camera.near == 0.8


def test_single_missing_values_are_named_and_taken_from_set(workspace, tmp_path):
    profile = load_profile("tiny-cpu")
    described = settings(profile)
    configuration = described["G"][1]  # G_ema shares it
    del configuration["num_ray_steps"]
    configuration["camera"]["cube_scale"] = "${camera.cube}"
    file = tmp_path / "snapshot.pkl"
    write_snapshot(file, networks(profile), described)
    with pytest.raises(ConfigError, match=r"does not say camera\.cube_scale, model\.generator\.ray_steps\."):
        import_snapshot(file, workspace)
    run = import_snapshot(file, workspace, overrides=["camera.cube_scale=0.45", "model.generator.ray_steps=8"]).run
    assert (run.profile.camera.cube_scale, run.profile.model.generator.ray_steps) == (0.45, 8)


def test_a_constant_written_as_a_number_is_a_constant_prior(workspace, tmp_path):
    profile = load_profile("tiny-cpu", NO_ADAPTORS)
    described = settings(profile)
    camera = described["G"][1]["camera"]  # G_ema shares it
    camera["fov"] = 12
    camera["origin"]["radius"] = 1.5
    file = tmp_path / "snapshot.pkl"
    write_snapshot(file, networks(profile), described)
    camera = import_snapshot(file, workspace).run.profile.camera
    assert (camera.fov.dist, camera.fov.mean, camera.fov.std) == ("normal", 12.0, 0.0)
    assert camera.radius.mean == 1.5


def test_weights_that_do_not_fit_are_named(workspace, tmp_path):
    profile = load_profile("tiny-cpu")
    file = tmp_path / "weights.pt"
    tensors = state_of(networks(profile)["G_ema"])
    write_flat(file, tensors | {"synthesis.superresolution.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"synthesis\.superresolution\.weight is unknown"):
        import_snapshot(file, workspace, profile="tiny-cpu")
    del tensors["mapping.fc1.bias"]
    write_flat(file, tensors)
    with pytest.raises(CheckpointError, match=r"mapping\.fc1\.bias is missing"):
        import_snapshot(file, workspace, profile="tiny-cpu")
    write_flat(file, {name.replace("synthesis.", "backbone."): value for name, value in tensors.items()})
    with pytest.raises(CheckpointError, match="another code version"):
        import_snapshot(file, workspace, profile="tiny-cpu")
    write_flat(file, {"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match="holds no generator"):
        import_snapshot(file, workspace)
    assert not workspace.runs.exists()


def test_a_foreign_discriminator_is_left_out_with_a_note(workspace, tmp_path):
    profile = load_profile("tiny-cpu")
    originals = networks(profile)
    tensors = {f"G_ema.{name}": value for name, value in state_of(originals["G_ema"]).items()}
    tensors |= {f"D.{name}x": value for name, value in state_of(originals["D"]).items()}
    file = tmp_path / "weights.pt"
    write_flat(file, tensors)
    notes = Notes()
    assert import_snapshot(file, workspace, profile="tiny-cpu", progress=notes).networks == ("G_ema",)
    assert "discriminator is left out" in notes.texts[0]


def test_a_failed_import_leaves_no_run_behind(workspace, tmp_path, monkeypatch):
    profile = load_profile("tiny-cpu")
    file = tmp_path / "weights.pt"
    write_flat(file, state_of(networks(profile)["G_ema"]))

    def fails(*_, **__):
        raise CheckpointError("the disk is full")

    monkeypatch.setattr("threedgp.legacy.importing.save_checkpoint", fails)
    with pytest.raises(CheckpointError, match="disk is full"):
        import_snapshot(file, workspace, profile="tiny-cpu")
    assert list(workspace.runs.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["missing.pkl", "photo.jpg", "empty.pkl", "text.pkl", "empty.npz", "half.safetensors", "x.pt"]
)
def test_files_that_are_no_snapshots_are_explained(workspace, tmp_path, name):
    file = tmp_path / name
    if name != "missing.pkl":
        file.write_bytes(b"" if name.startswith("empty") else b"\x00hello world, this is no snapshot" * 9)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        import_snapshot(file, workspace)
    assert len(str(caught.value)) < 500


def test_a_snapshot_cut_in_half_is_refused(workspace, tmp_path):
    profile = load_profile("tiny-cpu")
    file = tmp_path / "snapshot.pkl"
    write_snapshot(file, networks(profile), settings(profile))
    content = file.read_bytes()
    for part in (0.1, 0.5, 0.9, 0.999):
        file.write_bytes(content[: int(part * len(content))])
        with pytest.raises(CheckpointError, match="damaged or no snapshot"):
            import_snapshot(file, workspace)


def test_the_stand_ins_of_these_tests_would_fail_if_they_were_called(tmp_path):
    module = mirror(torch.nn.Linear(2, 2), "Generator")
    function, arguments, _ = module.__reduce__()
    with pytest.raises(AssertionError):
        function(*arguments)


def test_unsafe_flat_files_are_refused_by_name(workspace, tmp_path):
    class Evil:
        def __reduce__(self):
            import os

            return os.system, ("touch hacked",)

    torch.save({"mapping.fc0.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UnsafeFileError, match=r"posix\.system"):
        import_snapshot(tmp_path / "evil.pt", workspace)
    np.savez(tmp_path / "evil.npz", a=np.array([Evil()], dtype=object))
    with pytest.raises(UnsafeFileError, match="pickled objects"):
        import_snapshot(tmp_path / "evil.npz", workspace)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10_000_000))
    with pytest.raises(UnsafeFileError, match="would unpack to"):
        import_snapshot(tmp_path / "bomb.npz", workspace)
    assert not (tmp_path / "hacked").exists()
