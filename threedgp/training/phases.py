"""What one training iteration does to each network: losses of a micro-batch, and their gradients.

The order of an iteration is the order of `phases`: the generator against the frozen discriminator (Gmain), now and then
its path lengths (Gpl); the discriminator on fakes and reals (Dmain), now and then its gradient penalty (Dreg). Every
phase gets the same real items but fresh fakes and patches. A phase calls backward itself; zeroing and averaging
gradients and the optimiser's step belong to the training loop (`trainer.Trainer.iteration`).

Sources: 3DGP (arXiv 2303.01416), EpiGRAF (arXiv 2206.10535), lazy regularisation: StyleGAN2 (arXiv 1912.04958), App. B.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgp.camera.camera import Camera
from threedgp.camera.priors import CameraPrior
from threedgp.config.schema import Profile
from threedgp.data.dataset import Item
from threedgp.models.discriminator import Discriminator
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator
from threedgp.training import losses
from threedgp.training.augment import AugmentController, augment
from threedgp.training.blur import blur, blur_discriminator_input
from threedgp.training.camera_regularizers import PARAMETERS, CameraSamples, camera_regularization
from threedgp.training.color_augment import NUMBERS as AUGMENT_NUMBERS
from threedgp.training.color_augment import augment_colors
from threedgp.training.draws import Draws, Fakes
from threedgp.training.gradients import require_gradients
from threedgp.training.image_augment import NUMBERS, change_images, choose_changes, item_numbers, mirror_yaw
from threedgp.training.patches import PatchParams, extract_patches
from threedgp.training.schedules import ScheduleValues

Augment = Callable[[Tensor, Draws], Tensor]


@dataclass
class Setup:
    """What the phases of one iteration share: `path_length_mean` is a running mean, a scalar; `augment` changes what
    the discriminator sees; `gamma_factor` multiplies the gradient penalty's weight (raised after a divergence).
    """

    profile: Profile
    generator: Generator | StyleGAN2Generator
    discriminator: Discriminator
    values: ScheduleValues
    path_length_mean: Tensor
    augment: Augment | None = None
    gamma_factor: float = 1.0
    made: deque[Made] = field(default_factory=deque)


@dataclass(frozen=True)
class Made:
    """What the generator's phase of a micro-batch leaves to the discriminator's, detached: its fakes, their styles, and
    the frozen network's feature maps of them, if there is one.
    """

    fake: DiscriminatorInput
    ws: Tensor
    maps: list[Tensor] | None = None


@dataclass(frozen=True)
class RealBatch:
    """Real items of a micro-batch: images [B, 3 or 4, R, R] with depth as the last channel, both in [−1, 1]; one-hot
    classes [B, c_dim]; camera angles [B, 3]; embeddings [B, E].
    """

    images: Tensor
    labels: Tensor
    angles: Tensor
    embeddings: Tensor

    def __getitem__(self, index) -> RealBatch:
        """Some of the items, e.g. a micro-batch by a slice."""
        return RealBatch(self.images[index], self.labels[index], self.angles[index], self.embeddings[index])


@dataclass
class PhaseResult:
    """What a phase reports of one micro-batch: values to log by name, detached and of any shape, and batch means that
    enter running means: `w` [w_dim], `path_length` (scalar).
    """

    stats: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A part of the iteration: it trains one network, every `interval` iterations.

    `run(setup, real, draws, gain)` adds gain times the gradient of a micro-batch's mean loss to the network's .grad.
    """

    name: str
    network: Literal["G", "D"]
    run: Callable[[Setup, RealBatch, Draws, float], PhaseResult]
    interval: int = 1
    start_kimg: float = 0.0

    def due(self, iteration: int, kimg: float) -> bool:
        return iteration % self.interval == 0 and kimg >= self.start_kimg


def phases(profile: Profile) -> list[Phase]:
    """The phases a profile needs, in the order in which they run."""
    loss, path = profile.loss, profile.loss.path_length
    found = [Phase("Gmain", "G", generator_phase)]
    if path.weight > 0:
        found.append(Phase("Gpl", "G", path_length_phase, path.interval, path.start_kimg))
    found.append(Phase("Dmain", "D", discriminator_phase))
    if profile.gamma > 0 or (loss.adversarial == "relativistic" and profile.gamma_fake > 0):
        found.append(Phase("Dreg", "D", gradient_penalty_phase, loss.regularization_interval))
    return found


def set_trainable(setup: Setup, network: str) -> None:
    """Let only one of the networks ("G", "D") collect gradients; the other may still be part of the graph."""
    require_gradients(setup.generator, network == "G")
    require_gradients(setup.discriminator, network == "D")


def real_batch(item: Item, profile: Profile, device: torch.device | str, epoch: int = 0) -> RealBatch:
    """Bring a batch of the data set to the networks' range and device.

    Colours become x/127.5 − 1 and 16-bit depth d/65536·2 − 1; depth is blurred when the profile says so. With
    `data.augment.where: reals` the images are changed as (seed, epoch, item) decide.
    """
    images = item.image.to(device, non_blocking=True).float() / 127.5 - 1.0
    angles = item.camera_angles.to(device, non_blocking=True)
    if profile.training.use_depth:
        depth = item.depth.to(device, non_blocking=True).float() / 65536.0 * 2.0 - 1.0
        images = torch.cat([images, blur(depth, profile.training.blur_real_depth_sigma)], dim=1)
    if profile.data.augment.where == "reals":
        numbers = item_numbers(profile.training.seed, epoch, item.index.tolist())
        changes = choose_changes(numbers, profile.data.augment, mirrored=profile.data.mirror)
        images, angles = change_images(images, changes), mirror_yaw(angles, changes)
    return RealBatch(
        images=images,
        labels=item.label.to(device, non_blocking=True),
        angles=angles,
        embeddings=item.embedding.to(device, non_blocking=True),
    )


def discriminator_augment(profile: Profile, controller: AugmentController) -> Augment | None:
    """What the profile does to the discriminator's input, reals and fakes alike; None for nothing."""
    if profile.training.augment.mode != "none":
        return lambda images, draws: augment(images, controller.p, profile.training.augment.multipliers, draws)
    if profile.data.augment.where == "both":

        def change(images: Tensor, draws: Draws) -> Tensor:
            numbers = draws.uniform("image_augment", len(images), NUMBERS)
            return change_images(images, choose_changes(numbers, profile.data.augment, mirrored=profile.data.mirror))

        return change
    return None


def update_running_means(setup: Setup, means: dict[str, Tensor]) -> None:
    """Enter batch means, averaged over micro-batches and processes, into the running means of the networks."""
    if "w" in means:
        setup.generator.mapping.update_w_avg(means["w"])
    if "path_length" in means:
        setup.path_length_mean.copy_(means["path_length"])


# -------------------------------------------------------------------------------------------------- parts of all phases


class GeneratorRun(NamedTuple):
    """Fakes as the discriminator receives them: images [B, 3 or 4, p, p], the styles [B, num_ws, w_dim] and the
    posterior cameras they were made from.
    """

    images: Tensor
    ws: Tensor
    camera: Camera


def run_G(setup: Setup, fakes: Fakes, draws: Draws, patches: PatchParams | None) -> GeneratorRun:
    """Run the generator: styles, posterior camera, picture (with adapted depth as the last channel, if used)."""
    generator, profile = setup.generator, setup.profile
    ws = generator.mapping(fakes.z, fakes.c, fakes.conditioning_angles)
    if profile.loss.style_mixing_probability > 0:
        cutoff = draws.style_cutoff(ws.shape[1])
        if cutoff < ws.shape[1]:
            other = generator.mapping(draws.latents("style_mixing", len(ws)), fakes.c, fakes.conditioning_angles)
            ws = torch.cat([ws[:, :cutoff], other[:, cutoff:]], dim=1)
    options = draws.synthesis(len(ws))
    if patches is not None:
        options |= {"patch_scales": patches.scales, "patch_offsets": patches.offsets}
    if isinstance(generator, StyleGAN2Generator):
        return GeneratorRun(generator.synthesize(ws, **options), ws, fakes.camera)
    camera = generator.adapt_camera(fakes.camera, fakes.z, fakes.c)
    coarseness = setup.values.coarseness
    side = generator.img_resolution if patches is None else generator.patch_resolution
    options["resolution"] = side // coarseness
    output = generator.synthesize(ws, camera, concat_depth=profile.training.use_depth, **options)
    return GeneratorRun(_enlarge(output.img, coarseness), ws, camera)


def _enlarge(images: Tensor, factor: int) -> Tensor:
    """The discriminators know one size only: coarse images are shown in it, fakes and reals alike."""
    if factor == 1:
        return images
    return F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)


class DiscriminatorInput(NamedTuple):
    """What the discriminator is shown: patches [B, C, p, p] with depth as the fourth channel, one-hot classes, where in
    the image they come from (None: whole images), and camera angles [B, 3].
    """

    images: Tensor
    labels: Tensor
    patches: PatchParams | None
    angles: Tensor


def run_D(
    setup: Setup, shown: DiscriminatorInput, draws: Draws, predict_features: bool = False, twice: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The discriminator's logits [B] and predicted features, after blur and augmentation.

    Args:
        twice: the result will be differentiated twice, which compiled networks can't be.
    """
    images = blur_discriminator_input(shown.images, setup.values.blur_sigma)
    if setup.augment is not None:
        images = setup.augment(images, draws)
    scales, offsets = (None, None) if shown.patches is None else (shown.patches.scales, shown.patches.offsets)
    network = setup.discriminator.forward if twice else setup.discriminator
    output = network(images, shown.labels, scales, offsets, shown.angles, predict_features)
    return output.logits, output.features


def run_D_on_both(
    setup: Setup,
    fake: DiscriminatorInput,
    real: DiscriminatorInput,
    draws: Draws,
    predict_features: bool = False,
    twice: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits of fakes and of reals [B], and features predicted of the reals: in one pass where that changes nothing.

    Fakes and reals are interleaved such that every minibatch-deviation group still holds one kind only.
    """
    group = setup.profile.model.discriminator.mbstd_group_size
    if group is None or len(fake.images) % group:
        fake_logits, _ = run_D(setup, fake, draws, twice=twice)
        return fake_logits, *run_D(setup, real, draws, predict_features, twice)

    def join(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first.unflatten(0, (group, -1)), second.unflatten(0, (group, -1))], dim=1).flatten(0, 1)

    def part(values: Tensor, side: int) -> Tensor:
        return values.unflatten(0, (group, 2, -1))[:, side].flatten(0, 1)

    patches = None
    if fake.patches is not None and real.patches is not None:
        patches = PatchParams(
            join(fake.patches.scales, real.patches.scales), join(fake.patches.offsets, real.patches.offsets)
        )
    both = DiscriminatorInput(
        join(fake.images, real.images), join(fake.labels, real.labels), patches, join(fake.angles, real.angles)
    )
    logits, features = run_D(setup, both, draws, predict_features, twice)
    return part(logits, 0), part(logits, 1), None if features is None else part(features, 1)


def _fake_input(fake: GeneratorRun, fakes: Fakes, patches: PatchParams | None) -> DiscriminatorInput:
    return DiscriminatorInput(fake.images, fakes.c, patches, fake.camera.angles)


def _real_input(setup: Setup, real: RealBatch, patches: PatchParams | None) -> DiscriminatorInput:
    images = extract_patches(real.images, patches, setup.profile.training.patch.resolution)
    if setup.values.coarseness > 1:
        images = _enlarge(F.avg_pool2d(images, setup.values.coarseness), setup.values.coarseness)
    return DiscriminatorInput(images, real.labels, patches, real.angles)


def _scores(stats: dict[str, Tensor], side: str, logits: Tensor) -> None:
    logits = logits.detach()
    stats[f"Loss/scores/{side}"] = logits
    stats[f"Loss/signs/{side}"] = logits.sign()
    stats[f"Loss/abs_scores/{side}"] = logits.abs()


def feature_maps(setup: Setup, shown: DiscriminatorInput, draws: Draws, name: str) -> list[Tensor]:
    """What the frozen network sees in colours, each image changed by numbers of its own if the profile says so."""
    network = setup.discriminator.feature_discriminator
    assert network is not None
    colors = shown.images[:, :3]
    if setup.profile.model.feature_discriminator.augment:
        colors = augment_colors(colors, draws.uniform(f"features_{name}", len(colors), AUGMENT_NUMBERS))
    return network.features(colors)


def _is_paired(setup: Setup) -> bool:
    """The relativistic loss compares a fake with a real: of the same class, and at the same place of the image."""
    return setup.profile.loss.adversarial == "relativistic"


# ------------------------------------------------------------------------------------------------------------ generator


def generator_phase(setup: Setup, real: RealBatch, draws: Draws, gain: float) -> PhaseResult:
    """Adversarial loss of the generator, and the camera regularisers once per micro-batch."""
    batch, paired = len(real.images), _is_paired(setup)
    result = PhaseResult()
    fakes = draws.fakes(batch, real.labels if paired else None)
    patches = draws.patches("fake", batch)
    fake = run_G(setup, fakes, draws, patches)
    shown = _fake_input(fake, fakes, patches)
    fake_logits, _ = run_D(setup, shown, draws)
    real_logits = None
    if paired:
        with torch.no_grad():
            real_logits, _ = run_D(setup, _real_input(setup, real, patches), draws)
    adversarial = losses.generator_loss(setup.profile.loss.adversarial, fake_logits, real_logits)
    _scores(result.stats, "fake", fake_logits)
    result.stats["Loss/G/loss"] = adversarial.detach()

    total = adversarial.mean()
    maps, network = None, setup.discriminator.feature_discriminator
    if network is not None:
        maps = feature_maps(setup, shown, draws, "fake")
        by_features = losses.generator_loss("hinge", network.judge(maps, fakes.c))
        result.stats["Loss/G/features"] = by_features.detach()
        total = total + setup.profile.model.feature_discriminator.weight * by_features.mean()
    if setup.profile.training.reuse_fakes:
        detached = shown._replace(images=shown.images.detach(), angles=shown.angles.detach())
        setup.made.append(Made(detached, fake.ws.detach(), None if maps is None else [x.detach() for x in maps]))
    if setup.profile.training.learn_camera and isinstance(setup.generator, Generator):
        total = total + _camera_regularization(setup, setup.generator, draws, result.stats)
    (total * gain).backward()
    return result


def _camera_regularization(setup: Setup, generator: Generator, draws: Draws, stats: dict[str, Tensor]) -> Tensor:
    profile = setup.profile

    def draw(name: str, count: int) -> CameraSamples:
        prior = draws.cameras(name, count).to_vector()
        return CameraSamples(prior, draws.latents(name, count), draws.classes(name, count))

    def posterior(prior: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return generator.adapt_camera(Camera.from_vector(prior), z, c).to_vector()

    center = CameraPrior(profile.camera).mean().angles[0].to(draws.device)
    terms, parts = camera_regularization(
        posterior, profile.loss.camera, setup.values.transport_multiplier, center, draw
    )
    for name, value in terms.items():
        stats[f"Loss/camera_dist/{name}"] = value.detach()
    for name, values in parts.items():
        for parameter, value in zip(PARAMETERS, values, strict=True):
            stats[f"Dist_{name}_reg/{parameter}"] = value
    return sum(terms.values(), torch.zeros((), device=draws.device))


def path_length_phase(setup: Setup, real: RealBatch, draws: Draws, gain: float) -> PhaseResult:
    """Keep the size of the picture's change per change of style constant, on half of the micro-batch."""
    batch = max(len(real.images) // 2, 1)
    fakes = draws.fakes(batch)
    fake = run_G(setup, fakes, draws, draws.patches("fake", batch))
    noise = draws.field("path_length", *fake.images.shape)
    lengths = losses.path_lengths(fake.images, fake.ws, noise)
    penalty, mean = losses.path_length_penalty(lengths, setup.path_length_mean)
    (penalty.mean() * setup.profile.loss.path_length.weight * gain).backward()
    return PhaseResult({"Loss/pl_penalty": penalty.detach()}, {"path_length": mean.detach()})


# -------------------------------------------------------------------------------------------------------- discriminator


def discriminator_phase(setup: Setup, real: RealBatch, draws: Draws, gain: float) -> PhaseResult:
    """Adversarial loss of the discriminator on fakes and reals, and distillation on reals."""
    loss, batch, paired = setup.profile.loss, len(real.images), _is_paired(setup)
    result = PhaseResult()
    if setup.made:
        made = setup.made.popleft()
    else:
        fakes = draws.fakes(batch, real.labels if paired else None)
        patches = draws.patches("fake", batch)
        with torch.no_grad():
            fake = run_G(setup, fakes, draws, patches)
        made = Made(_fake_input(fake, fakes, patches), fake.ws)
    result.means["w"] = made.ws[:, 0].mean(dim=0)
    patches = made.fake.patches
    distill = setup.values.distillation_weight > 0
    if not paired:
        patches = draws.patches("real", batch)
    shown_real = _real_input(setup, real, patches)
    fake_logits, real_logits, features = run_D_on_both(setup, made.fake, shown_real, draws, predict_features=distill)
    _scores(result.stats, "fake", fake_logits)
    _scores(result.stats, "real", real_logits)
    adversarial = losses.discriminator_loss(loss.adversarial, fake_logits, real_logits, loss.logits_clamp)
    result.stats["Loss/D/loss"] = adversarial.detach()
    total = adversarial.mean()
    network = setup.discriminator.feature_discriminator
    if network is not None:
        with torch.no_grad():
            fake_maps = made.maps or feature_maps(setup, made.fake, draws, "fake")
            real_maps = feature_maps(setup, shown_real, draws, "real")
        seen_fake, seen_real = network.judge(fake_maps, made.fake.labels), network.judge(real_maps, real.labels)
        by_features = losses.discriminator_loss("hinge", seen_fake, seen_real)
        result.stats["Loss/D/features"] = by_features.detach()
        total = total + setup.profile.model.feature_discriminator.weight * by_features.mean()
    if features is not None:
        distance = losses.distillation_distance(loss.distillation.distance, features, real.embeddings)
        if patches is not None:
            distance = losses.patch_weights(patches.scales) * distance
        distillation = setup.values.distillation_weight * distance
        result.stats["Loss/kd/D_dist"] = distance.detach()
        result.stats["Loss/kd/D_loss"] = distillation.detach()
        total = total + distillation.mean()
    (total * gain).backward()
    return result


def gradient_penalty_phase(setup: Setup, real: RealBatch, draws: Draws, gain: float) -> PhaseResult:
    """R1 on reals, and R2 on fakes for the relativistic loss, of patches before blur and augmentation."""
    batch = len(real.images)
    result = PhaseResult()
    patches = draws.patches("real", batch)
    shown = _real_input(setup, real, patches)
    shown = shown._replace(images=shown.images.detach().requires_grad_(True))
    if _is_paired(setup):
        fakes = draws.fakes(batch, real.labels)
        with torch.no_grad():
            fake = run_G(setup, fakes, draws, patches)
        shown_fake = _fake_input(fake._replace(images=fake.images.detach().requires_grad_(True)), fakes, patches)
        fake_logits, logits, _ = run_D_on_both(setup, shown_fake, shown, draws, twice=True)
        penalty, fake_penalty = losses.gradient_penalties([logits, fake_logits], [shown.images, shown_fake.images])
        result.stats["Loss/D/r2_penalty"] = fake_penalty.detach()
        weighted = penalty * (setup.profile.gamma / 2) + fake_penalty * (setup.profile.gamma_fake / 2)
    else:
        logits, _ = run_D(setup, shown, draws, twice=True)
        (penalty,) = losses.gradient_penalties([logits], [shown.images])
        weighted = penalty * (setup.profile.gamma / 2)
    weighted = setup.gamma_factor * weighted
    _scores(result.stats, "real", logits)
    (weighted.mean() * gain).backward()
    result.stats["Loss/D/r1_penalty"] = penalty.detach()
    result.stats["Loss/D/reg"] = weighted.detach()
    return result
