"""One whole iteration equals the reference: every loss, input, gradient, Adam step and average of all phases."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from tests.tools import relative_error
from threedgp.camera.camera import Camera
from threedgp.config.profile import validate
from threedgp.models.build import build_discriminator, build_generator
from threedgp.rendering.renderer import RenderDraws
from threedgp.training.blur import blur
from threedgp.training.camera_regularizers import PARAMETERS
from threedgp.training.draws import Fakes
from threedgp.training.ema import ema_beta, update_ema
from threedgp.training.patches import PatchParams
from threedgp.training.phases import RealBatch, Setup, phases, run_G, set_trainable, update_running_means
from threedgp.training.schedules import schedule_values
from threedgp.training.state import adam_settings

NIMG, BATCH = 180_000, 8
KEYS = {"Gmain": "G", "Dmain": "D", "Dreg": "R"}  # our phase -> the recorded one
EMA_KIMG = 20.0


def small_profile(sizes):
    res, patch, planes, features, mlp, steps, cbase, cmax, w, z, c, embedding, cam, embed, depth, kernel, *rest = sizes
    emd_samples, emd_anneal, group = rest
    return validate(
        {
            "name": "step",
            "data": {"resolution": res, "num_classes": c, "embedding_dim": embedding},
            "model": {
                "generator": {
                    "z_dim": z,
                    "w_dim": w,
                    "cbase": cbase,
                    "cmax": cmax,
                    "ray_steps": steps,
                    "tri_plane": {
                        "resolution": planes,
                        "features": features,
                        "mlp": {"hidden_dim": mlp},
                    },
                },
                "depth_adaptor": {"kernel_size": kernel, "hidden_dim": depth},
                "camera_adaptor": {"hidden_dim": cam, "embed_dim": embed},
                "discriminator": {"cbase": cbase, "cmax": cmax, "mbstd_group_size": group},
            },
            "loss": {
                "gamma": 0.05,
                "camera": {"emd": {"num_samples": emd_samples, "anneal_kimg": float(emd_anneal)}},
            },
            "training": {
                "batch_size": BATCH,
                "blur_real_depth_sigma": 0.6,
                "patch": {"resolution": patch},
                "ema": {"kimg": EMA_KIMG},
            },
        }
    )


class Recorded:
    """The recorded random numbers of one phase, asked for as the phases ask for theirs."""

    device = torch.device("cpu")

    def __init__(self, data, key, steps, patch):
        self.data, self.key, self.steps, self.patch = data, key, steps, patch

    def fakes(self, count, labels=None):
        z, c, camera = (self.data[f"{self.key}/{name}"] for name in ("z", "c", "camera_prior"))
        camera = Camera.from_vector(camera)
        return Fakes(z, c, camera, camera.angles)

    def patches(self, name, count):
        return PatchParams(*(self.data[f"draw/{self.key}/{name}/patch_{part}"] for part in ("scales", "offsets")))

    def synthesis(self, count):
        rays = (count, self.patch**2, self.steps)
        middle = (torch.arange(self.steps) + 0.5) / self.steps
        noise = torch.full(rays, 0.25)
        return {
            "noise": {key.removeprefix("noise/"): v for key, v in self.data.items() if key.startswith("noise/")},
            "draws": RenderDraws(torch.full(rays, 0.5), middle.expand(rays), noise, noise),
            "depth_index": self.data[f"draw/{self.key}/depth_level"],
        }

    def latents(self, name, count):
        return self.data[f"draw/{self.key}/{name}/z"]

    def classes(self, name, count):
        return F.one_hot(self.data[f"draw/{self.key}/{name}/class"], self.data["G/c"].shape[1]).float()

    def cameras(self, name, count):
        return Camera.from_vector(self.data[f"draw/{self.key}/{name}/prior"])


class Step:
    """The networks of the recorded iteration, and everything a phase is compared in."""

    def __init__(self, data):
        self.data = {key: torch.from_numpy(value) for key, value in data.items()}
        sizes = data["config/sizes"].tolist()
        self.profile = small_profile(sizes)
        self.patch, self.ray_steps = sizes[1], sizes[5]
        self.G, self.D = build_generator(self.profile).train(), build_discriminator(self.profile).train()
        self.load(self.G, "G", ())
        self.load(self.D, "D", (r"b(16|8)\.fromrgb\.",))  # never used
        self.G_ema = copy.deepcopy(self.G)
        values = schedule_values(NIMG, self.profile)
        self.G.set_progress(values.density_noise_std, values.depth_progress)
        self.seen = []  # what the discriminator received
        self.setup = Setup(self.profile, self.G, self.D, values, torch.zeros(()), augment=self.see)
        images = torch.cat([self.data["real/img"], blur(self.data["real/depth"], 0.6)], dim=1)
        self.real = RealBatch(images, self.data["real/c"], torch.zeros(BATCH, 3), self.data["real/embs"])

    def load(self, network, name, unused):
        unused = [*unused, r"resample_filter$", r"mean_camera_params$", r"fourier_coefs$"]
        prefix = f"{name}/param/"
        state = {key.removeprefix(prefix): v for key, v in self.data.items() if key.startswith(prefix)}
        state = {key: v for key, v in state.items() if not any(re.search(pattern, key) for pattern in unused)}
        state |= {key: torch.zeros(1) for key in state if key.endswith("progress_coef")}
        network.load_state_dict(state, strict=True)

    def see(self, images, draws):
        sides = [images.detach()]
        if len(images) > BATCH:  # fakes and reals together, interleaved by minibatch-deviation group
            group = self.profile.model.discriminator.mbstd_group_size
            sides = [side.flatten(0, 1) for side in images.detach().unflatten(0, (group, 2, -1)).unbind(dim=1)]
        self.seen += sides
        return images

    def draws(self, key):
        return Recorded(self.data, key, self.ray_steps, self.patch)

    def run(self, phase):
        """Run a phase; its result and the network's gradients by name."""
        network = {"G": self.G, "D": self.D}[phase.network]
        network.zero_grad()
        self.seen.clear()
        set_trainable(self.setup, phase.network)
        result = phase.run(self.setup, self.real, self.draws(KEYS[phase.name]), phase.interval)
        return result, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    def check(self, result, gradients, prefix, tolerance):
        stats = result.stats
        pairs = {
            "logits_fake": stats.get("Loss/scores/fake"),
            "logits_real": stats.get("Loss/scores/real"),
            "loss_adv": stats.get("Loss/G/loss", stats.get("Loss/D/loss")),
            "loss_emd": stats.get("Loss/camera_dist/emd"),
            "loss_force_mean": stats.get("Loss/camera_dist/force_mean"),
            "kd_distance": stats.get("Loss/kd/D_dist"),
            "loss_kd": stats.get("Loss/kd/D_loss"),
            "r1_penalty": stats.get("Loss/D/r1_penalty"),
            "loss_r1": stats.get("Loss/D/reg"),
        }
        if "Loss/camera_dist/emd" in stats:
            pairs["emd_terms"] = torch.stack([stats[f"Dist_emd_reg/{name}"] for name in PARAMETERS])
        if prefix.startswith("fixed"):
            pairs |= dict(zip(["D_input_fake", "D_input_real"], self.seen, strict=False))
            if prefix.endswith("R"):
                pairs["D_input_real"] = pairs.pop("D_input_fake")
        for name, actual in pairs.items():
            key = f"{prefix}/{name}"
            assert (actual is None) == (key not in self.data), key
            if actual is not None:
                assert own_scale_error(actual, self.data[key]) < tolerance, key
        checked = 0
        for key, expected in self.data.items():
            if key.startswith(f"{prefix}/grad/"):
                actual = gradients[key.removeprefix(f"{prefix}/grad/")]
            elif key.startswith(f"{prefix}/grad_norm/"):
                module = key.removeprefix(f"{prefix}/grad_norm/")
                members = [g for name, g in gradients.items() if module_of(name) == module]
                actual = torch.stack([g.square().sum() for g in members]).sum().sqrt()
            else:
                continue
            assert own_scale_error(actual, expected) < tolerance, key
            checked += 1
        assert checked > 4


def own_scale_error(actual, expected):
    """max|a−b| / max|b|: stricter than the common measure for small values."""
    return float((actual.detach().double() - expected.double()).abs().max() / expected.double().abs().max())


def module_of(name):
    for part in ("tri_plane_decoder", "tri_plane_mlp", "depth_adaptor", "camera_adaptor"):
        if part in name:
            return part.replace("tri_plane_", "")
    return name.split(".")[0]


@pytest.fixture
def step(golden):
    return Step(golden("training_step"))


@pytest.mark.parametrize("name", KEYS)
def test_each_phase_equals_the_reference(step, name):
    phase = next(phase for phase in phases(step.profile) if phase.name == name)
    result, gradients = step.run(phase)
    step.check(result, gradients, f"fixed/{KEYS[name]}", 2e-5)


@pytest.mark.parametrize("key", ["G", "D"])
def test_fakes_equal_the_reference(step, key):
    draws = step.draws(key)
    fake = run_G(step.setup, draws.fakes(BATCH), draws, draws.patches("fake", BATCH))
    assert own_scale_error(fake.images, step.data[f"fixed/{key}/G_output"]) < 2e-5
    assert own_scale_error(fake.camera.to_vector(), step.data[f"fixed/{key}/camera_posterior"]) < 1e-6


def test_a_whole_iteration_equals_the_reference(step):
    training = step.profile.training
    configs = {"G": training.generator_optimizer, "D": training.discriminator_optimizer}
    optimizers = {
        name: torch.optim.Adam(network.parameters(), **adam_settings(configs[name], name, step.profile))
        for name, network in (("G", step.G), ("D", step.D))
    }
    for phase in phases(step.profile):
        result, gradients = step.run(phase)
        step.check(result, gradients, f"seq/{KEYS[phase.name]}", 2e-5)
        update_running_means(step.setup, result.means)
        optimizers[phase.network].step()
    beta = ema_beta(NIMG, BATCH, training.ema)
    assert beta == pytest.approx(float(step.data["seq/ema_beta"]), abs=1e-12)
    update_ema(step.G_ema, step.G, beta)
    networks = {"G": step.G, "G_ema": step.G_ema, "D": step.D}
    compared = 0
    for key, expected in step.data.items():
        match = re.fullmatch(r"seq/after/(G|G_ema|D)/(.*)", key)
        if match:
            actual = networks[match[1]].state_dict()[match[2]]
            assert own_scale_error(actual, expected) < 2e-4, key
            compared += 1
    assert compared == 11
    assert relative_error(step.G.mapping.w_avg, step.data["seq/after/w_avg"]) < 2e-5
