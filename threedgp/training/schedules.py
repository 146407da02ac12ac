"""What changes with the number of real images shown, as pure functions of it: the one source of these values.

The loop asks once an iteration and passes the values on; what is logged is what is used. Not here: the weight average's
half life (`ema`), the adaptive augmentation (`augment`) and learning rates lowered after a divergence (`recovery`).

`kimg` is thousands of real images, `nimg` the plain count. Sources: 3DGP (arXiv 2303.01416) Sec. 3 and App. B, EpiGRAF
(arXiv 2206.10535) Sec. 3.3. Nothing here keeps state, so a resumed run continues with exactly the values it would have
had without the interruption.
"""

from __future__ import annotations

from dataclasses import dataclass

from threedgp.config.schema import Profile

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


@dataclass(frozen=True)
class ScheduleValues:
    """All scheduled values of one iteration."""

    kimg: float  # thousands of real images shown
    patch_beta: float  # second parameter of the Beta(1, beta) distribution of patch scales; near 0: whole images
    patch_min_scale: float  # annealed from the largest scale, except for `beta`, which anneals its shape
    distillation_weight: float  # of the discriminator's feature prediction loss, fading to 0
    transport_multiplier: float  # 0..1, of the camera transport distance
    spoof_probability: float  # that the generator is conditioned on another sample's camera angles
    density_noise_std: float  # of the noise on raw densities, fading to 0
    depth_progress: float  # 0..1, of the depth adaptor from choosing its levels uniformly to preferring the last ones
    blur_sigma: float  # of the discriminator's input in pixels, fading to 0
    coarseness: int  # fakes have a ray for so many pixels in each direction, 2 at first and then 1


def schedule_values(nimg: float, profile: Profile) -> ScheduleValues:
    """The values of the iteration that starts after `nimg` real images."""
    kimg, loss, patch = nimg / 1000.0, profile.loss, profile.patch_law
    generator = profile.model.generator
    assert patch.min_scale is not None  # `patch_law` chooses one
    widest = patch.min_scale if patch.distribution == "beta" else patch.max_scale
    return ScheduleValues(
        kimg=kimg,
        patch_beta=linear(kimg, patch.beta_start, patch.beta_end, patch.anneal_kimg),
        patch_min_scale=linear(kimg, widest, patch.min_scale, patch.anneal_kimg),
        distillation_weight=linear(kimg, loss.distillation.weight, 0.0, loss.distillation.anneal_kimg),
        transport_multiplier=linear(kimg, 0.0, 1.0, loss.camera.emd.anneal_kimg),
        spoof_probability=linear(kimg, 1.0, generator.camera_conditioning.spoof_probability, SPOOF_ANNEAL_KIMG),
        density_noise_std=linear(kimg, generator.density_noise.init_std, 0.0, generator.density_noise.anneal_kimg),
        depth_progress=linear(kimg, 0.0, 1.0, profile.model.depth_adaptor.anneal_kimg),
        # Rounded as published: the kernel grows by a pixel at multiples of 1/3.
        blur_sigma=loss.blur.init_sigma * (1.0 - linear(nimg, 0.0, 1.0, loss.blur.fade_kimg * 1000.0)),
        coarseness=2 if kimg < profile.training.coarse_kimg else 1,
    )
