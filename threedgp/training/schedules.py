"""What changes with the number of real images shown, as pure functions of it: the one source of these values.

The loop asks once an iteration and passes the values on; what is logged is what is used. Not here: the weight average's
half life (`ema`), the adaptive augmentation (`augment`) and learning rates lowered after a divergence (`recovery`).

`kimg` is thousands of real images, `nimg` the plain count. Sources: 3DGP (arXiv 2303.01416) Sec. 3 and App. B, EpiGRAF
(arXiv 2206.10535) Sec. 3.3. Nothing here keeps state, so a resumed run continues with exactly the values it would have
had without the interruption.
"""

from __future__ import annotations

from dataclasses import dataclass

from threedgp.config.schema import (
    BlurConfig,
    CameraConditioningConfig,
    DensityNoiseConfig,
    DepthAdaptorConfig,
    DistillationConfig,
    PatchConfig,
    Profile,
    TransportConfig,
)

SPOOF_ANNEAL_KIMG = 1000.0  # the generator sees only swapped camera angles at first, then fewer (EG3D, App. A)


def linear(t: float, start: float, end: float, duration: float, begin: float = 0.0) -> float:
    """Straight line from `start` at `begin` to `end` at `begin + duration`, constant outside.

    A duration of zero means there is nothing to anneal: the value is `end` from the first iteration on.
    """
    if duration <= 0:
        return end
    if t <= begin:
        return start
    if t >= begin + duration:
        return end
    return start + (end - start) * (t - begin) / duration


def patch_beta(kimg: float, patch: PatchConfig) -> float:
    """Second parameter of the Beta(1, beta) distribution of patch scales; near 0: whole images."""
    return linear(kimg, patch.beta_start, patch.beta_end, patch.anneal_kimg)


def patch_min_scale(kimg: float, patch: PatchConfig) -> float:
    """Smallest patch scale. Annealed from the largest one, except for `beta`, which anneals its shape instead."""
    if patch.distribution == "beta":
        return patch.min_scale
    return linear(kimg, patch.max_scale, patch.min_scale, patch.anneal_kimg)


def distillation_weight(kimg: float, distillation: DistillationConfig) -> float:
    """Weight of the discriminator's feature prediction loss, fading to 0."""
    return linear(kimg, distillation.weight, 0.0, distillation.anneal_kimg)


def transport_multiplier(kimg: float, transport: TransportConfig) -> float:
    """Multiplier 0..1 of the camera transport distance."""
    return linear(kimg, 0.0, 1.0, transport.anneal_kimg)


def spoof_probability(kimg: float, conditioning: CameraConditioningConfig) -> float:
    """Probability that the generator is conditioned on another sample's camera angles."""
    return linear(kimg, 1.0, conditioning.spoof_probability, SPOOF_ANNEAL_KIMG)


def density_noise_std(kimg: float, noise: DensityNoiseConfig) -> float:
    """Standard deviation of the noise on raw densities, fading to 0."""
    return linear(kimg, noise.init_std, 0.0, noise.anneal_kimg)


def depth_progress(kimg: float, adaptor: DepthAdaptorConfig) -> float:
    """Progress 0..1 of the depth adaptor from choosing its levels uniformly to preferring the last ones."""
    return linear(kimg, 0.0, 1.0, adaptor.anneal_kimg)


def blur_sigma(nimg: float, blur: BlurConfig) -> float:
    """Blur of the discriminator's input in pixels, fading to 0."""
    if blur.fade_kimg <= 0:
        return 0.0
    return blur.init_sigma * max(1.0 - nimg / (blur.fade_kimg * 1000.0), 0.0)


@dataclass(frozen=True)
class ScheduleValues:
    """All scheduled values of one iteration."""

    kimg: float
    patch_beta: float
    patch_min_scale: float
    distillation_weight: float
    transport_multiplier: float
    spoof_probability: float
    density_noise_std: float
    depth_progress: float
    blur_sigma: float


def schedule_values(nimg: int, profile: Profile) -> ScheduleValues:
    """The values of the iteration that starts after `nimg` real images."""
    kimg = nimg / 1000.0
    model, loss, patch = profile.model, profile.loss, profile.patch_law
    return ScheduleValues(
        kimg=kimg,
        patch_beta=patch_beta(kimg, patch),
        patch_min_scale=patch_min_scale(kimg, patch),
        distillation_weight=distillation_weight(kimg, loss.distillation),
        transport_multiplier=transport_multiplier(kimg, loss.camera.emd),
        spoof_probability=spoof_probability(kimg, model.generator.camera_conditioning),
        density_noise_std=density_noise_std(kimg, model.generator.density_noise),
        depth_progress=depth_progress(kimg, model.depth_adaptor),
        blur_sigma=blur_sigma(nimg, loss.blur),
    )
