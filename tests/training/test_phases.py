"""Each kind of training runs, trains one network at a time, and does not depend on how the batch is cut up."""

import copy
import dataclasses

import pytest
import torch

from tests.tools import relative_error
from tests.training.small import make_draws, make_items, make_real, make_setup, tiny_profile
from threedgp.config.rules import batch_split
from threedgp.config.schema import AdaptiveAugmentConfig
from threedgp.errors import ConfigError
from threedgp.training import phases as module
from threedgp.training.augment import AugmentController
from threedgp.training.image_augment import change_images, choose_changes, item_numbers
from threedgp.training.phases import (
    discriminator_augment,
    phases,
    real_batch,
    set_trainable,
    update_running_means,
)

FLAT = (  # a 2D generator of whole images
    "training.patch.enabled=false",
    "training.patch.conditioning=false",
    "model.discriminator.hyper_mod=false",
    "model.kind=stylegan2",
    "training.use_depth=false",
    "training.learn_camera=false",
)
VARIANTS = {
    "published": (),
    "hinge": ("loss.adversarial=hinge",),
    "relativistic": ("loss.adversarial=relativistic", "loss.gamma_fake=0.3"),
    "gradient penalty": ("loss.camera.gradient_penalty.enabled=true", "loss.camera.emd.enabled=false"),
    "no regulariser": ("loss.camera.emd.enabled=false", "loss.camera.force_mean.weight=0.0"),
    "no classes": ("data.num_classes=0",),
    "epigraf": ("model.kind=epigraf", "training.use_depth=false", "training.learn_camera=false"),
    "2D": (*FLAT, "loss.path_length.weight=2.0", "loss.style_mixing_probability=0.9", "loss.distillation.weight=0.0"),
    "2D patches": (*FLAT[3:], "loss.path_length.weight=2.0"),
    "KL distillation": ("loss.distillation.distance=kl",),
    "ADA": ("training.augment.mode=fixed", "training.augment.p=0.8"),
    "augmented both": ("data.augment.where=both", "data.mirror=false"),
    "camera conditions": (
        "model.generator.camera_conditioning.enabled=true",
        "model.discriminator.camera_conditioning.enabled=true",
    ),
    "features": (
        "model.feature_discriminator={weight: 0.25, input_size: 32, augment: true}",
        "training.reuse_fakes=true",
    ),
    "features of hinge": ("loss.adversarial=hinge", "model.feature_discriminator={weight: 1.0, augment: false}"),
    "features of relativistic pairs": (
        "loss.adversarial=relativistic",
        "model.feature_discriminator={weight: 0.25, input_size: 32}",
        "training.reuse_fakes=true",
    ),
    "coarse": ("training.coarse_kimg=1.0",),
    "mip": ("model.generator.marcher=mip",),
}


def run(setup, phase, real, draws, gain=1.0):
    set_trainable(setup, phase.network)
    return phase.run(setup, real, draws, gain)


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_training_takes_a_few_steps(variant):
    profile = tiny_profile(*VARIANTS[variant])
    setup = make_setup(profile)
    controller = AugmentController(profile.training.augment)
    setup = dataclasses.replace(setup, augment=discriminator_augment(profile, controller))
    real = make_real(profile)
    networks = {"G": setup.generator, "D": setup.discriminator}
    optimizers = {name: torch.optim.Adam(network.parameters(), lr=1e-3) for name, network in networks.items()}
    for step in range(2):
        for phase in phases(profile):
            own, other = networks[phase.network], networks["D" if phase.network == "G" else "G"]
            own.zero_grad()
            before = [p.grad for p in other.parameters()]
            result = run(setup, phase, real, make_draws(profile, step, phase.name), phase.interval)
            found = gradients(own)
            assert found
            assert all(g.isfinite().all() for g in found.values())
            assert any(g.abs().max() > 0 for g in found.values())
            assert all(a is b for a, b in zip(before, [p.grad for p in other.parameters()], strict=True))
            assert all(value.isfinite().all() and not value.requires_grad for value in result.stats.values())
            update_running_means(setup, result.means)
            optimizers[phase.network].step()
    if profile.loss.path_length.weight > 0:
        assert setup.path_length_mean > 0
    assert setup.generator.mapping.w_avg.abs().max() > 0


def test_the_phases_follow_from_the_profile():
    names = lambda *overrides: [(p.name, p.network, p.interval) for p in phases(tiny_profile(*overrides))]  # noqa: E731
    assert names() == [("Gmain", "G", 1), ("Dmain", "D", 1), ("Dreg", "D", 16)]
    assert names("loss.gamma=0.0") == [("Gmain", "G", 1), ("Dmain", "D", 1)]
    assert names(*FLAT, "loss.path_length.weight=2.0")[1] == ("Gpl", "G", 4)


@pytest.mark.parametrize(("gamma", "gamma_fake", "penalized"), [(0, 5, True), (5, 0, True), (0, 0, False)])
def test_the_relativistic_penalty_of_fakes_is_never_dropped(gamma, gamma_fake, penalized):
    profile = tiny_profile("loss.adversarial=relativistic", f"loss.gamma={gamma}.0", f"loss.gamma_fake={gamma_fake}.0")
    assert ("Dreg" in [phase.name for phase in phases(profile)]) == penalized


def test_half_a_micro_batch_that_no_group_divides_is_refused():
    wanted = ("loss.path_length.weight=2.0", "training.batch_size=12", "model.discriminator.mbstd_group_size=4")
    with pytest.raises(ConfigError, match=r"half of the micro-batch of 12.*loss\.path_length"):
        batch_split(tiny_profile(*wanted), 1)


def test_lazy_phases_are_due_at_their_interval_and_not_before_their_start():
    profile = tiny_profile(*FLAT, "loss.path_length={weight: 2.0, start_kimg: 1.0}")
    path = phases(profile)[1]
    assert [i for i in range(9) if path.due(i, kimg=2.0)] == [0, 4, 8]
    assert not path.due(0, kimg=0.5)


@pytest.mark.parametrize("adversarial", ["non_saturating", "relativistic"])
def test_micro_batches_add_up_to_their_mean(adversarial):
    profile = tiny_profile(f"loss.adversarial={adversarial}")
    real = make_real(profile, 8)
    halves = [real[:4], real[4:]]
    for phase in phases(profile):
        setup = make_setup(profile)
        network = {"G": setup.generator, "D": setup.discriminator}[phase.network]
        parts = []
        for i, half in enumerate(halves):
            network.zero_grad()
            run(setup, phase, half, make_draws(profile, phase.name, i))
            parts.append(gradients(network))
        network.zero_grad()
        for i, half in enumerate(halves):
            run(setup, phase, half, make_draws(profile, phase.name, i), gain=0.5)
        for name, value in gradients(network).items():
            assert relative_error(value, (parts[0][name] + parts[1][name]) / 2) < 1e-6


def test_a_gain_scales_the_gradient():
    profile = tiny_profile()
    for phase in phases(profile):
        setup = make_setup(profile)
        network = {"G": setup.generator, "D": setup.discriminator}[phase.network]
        run(setup, phase, make_real(profile), make_draws(profile))
        once = gradients(network)
        network.zero_grad()
        run(setup, phase, make_real(profile), make_draws(profile), gain=16.0)
        for name, value in gradients(network).items():
            assert relative_error(value, 16 * once[name]) < 1e-5


def test_relativistic_pairs_share_class_and_place(monkeypatch):
    profile = tiny_profile("loss.adversarial=relativistic")
    setup, real = make_setup(profile), make_real(profile)
    calls = []
    run_D_on_both = module.run_D_on_both

    def watched(setup, fake, real, *rest, **options):
        calls.append((fake, real))
        return run_D_on_both(setup, fake, real, *rest, **options)

    monkeypatch.setattr(module, "run_D_on_both", watched)
    for phase in phases(profile)[1:]:
        run(setup, phase, real, make_draws(profile, phase.name))
        fake, shown = calls.pop()
        assert torch.equal(fake.labels, real.labels)
        assert torch.equal(shown.labels, real.labels)
        assert fake.patches is shown.patches

    run_D = module.run_D
    monkeypatch.setattr(module, "run_D", lambda setup, shown, draws: calls.append(shown) or run_D(setup, shown, draws))
    run(setup, phases(profile)[0], real, make_draws(profile))
    fake, shown = calls
    assert torch.equal(fake.labels, shown.labels)
    assert fake.patches is shown.patches


@pytest.mark.parametrize(("group", "passes"), [("4", 1), ("2", 1), ("null", 2)])
def test_fakes_and_reals_are_judged_together_as_if_alone(group, passes):
    profile = tiny_profile(f"model.discriminator.mbstd_group_size={group}")
    count = 8
    setup, real = make_setup(profile), make_real(profile, count)
    draws = make_draws(profile)
    fakes, patches = draws.fakes(count), draws.patches("fake", count)
    with torch.no_grad():
        images = module.run_G(setup, fakes, draws, patches).images
    sides = (
        module.DiscriminatorInput(images, fakes.c, patches, fakes.camera.angles),
        module._real_input(setup, real, draws.patches("real", count)),
    )
    set_trainable(setup, "D")
    alone = [module.run_D(setup, side, draws, predict_features=True) for side in sides]
    (alone[0][0].square().sum() + alone[1][0].sum() + alone[1][1].square().sum()).backward()
    expected = gradients(setup.discriminator)
    setup.discriminator.zero_grad()
    calls = []
    handle = setup.discriminator.register_forward_hook(lambda *_: calls.append(1))
    fake, shown, features = module.run_D_on_both(setup, *sides, draws, predict_features=True)
    handle.remove()
    assert len(calls) == passes
    assert relative_error(fake.detach(), alone[0][0].detach()) < 1e-5
    assert relative_error(shown.detach(), alone[1][0].detach()) < 1e-5
    assert relative_error(features.detach(), alone[1][1].detach()) < 1e-5
    (fake.square().sum() + shown.sum() + features.square().sum()).backward()
    for name, value in gradients(setup.discriminator).items():
        assert relative_error(value, expected[name]) < 1e-5, name


def test_r2_has_its_own_weight():
    profile = tiny_profile("loss.adversarial=relativistic", "loss.gamma=0.5", "loss.gamma_fake=2.0")
    setup = make_setup(profile, gamma_factor=3.0)
    stats = run(setup, phases(profile)[-1], make_real(profile), make_draws(profile)).stats
    expected = 3.0 * (0.25 * stats["Loss/D/r1_penalty"] + 1.0 * stats["Loss/D/r2_penalty"])
    assert relative_error(stats["Loss/D/reg"], expected) < 1e-6


def test_the_running_mean_of_styles_moves_once_by_the_batch_mean():
    profile = tiny_profile()
    setup = make_setup(profile)
    result = run(setup, phases(profile)[1], make_real(profile), make_draws(profile))
    assert (setup.generator.mapping.w_avg == 0).all()
    update_running_means(setup, result.means)
    fakes = make_draws(profile).fakes(4)
    w = setup.generator.mapping(fakes.z, fakes.c)[:, 0].mean(dim=0)
    assert relative_error(setup.generator.mapping.w_avg, 0.002 * w.detach()) < 1e-8


def test_frozen_discriminator_layers_stay_frozen():
    profile = tiny_profile("training.freeze_discriminator_layers=4")
    setup = make_setup(profile)
    before = copy.deepcopy(setup.discriminator.state_dict())
    optimizer = torch.optim.Adam(setup.discriminator.parameters(), lr=0.1)
    run(setup, phases(profile)[1], make_real(profile), make_draws(profile))
    optimizer.step()
    changed = {key for key, value in setup.discriminator.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert not any(key.startswith("b16.") and "affine" not in key for key in changed)


def test_real_images_come_in_the_published_range(golden):
    data = golden("losses")
    profile = tiny_profile()
    item = make_items(profile, 2)._replace(
        image=torch.from_numpy(data["input/raw_img"]).to(torch.uint8),
        depth=torch.from_numpy(data["input/raw_depth"]).int(),
    )
    images = real_batch(item, profile, "cpu").images
    assert relative_error(images[:, :3], data["input/img"]) < 1e-7
    assert relative_error(images[:, 3:], data["input/depth"]) < 1e-7


def test_real_depth_is_blurred_when_asked_and_left_out_when_unused():
    item = make_items(tiny_profile())
    plain = real_batch(item, tiny_profile(), "cpu").images
    blurred = real_batch(item, tiny_profile("training.blur_real_depth_sigma=1.0"), "cpu").images
    assert torch.equal(blurred[:, :3], plain[:, :3])
    assert blurred[:, 3].std() < plain[:, 3].std()
    flat = tiny_profile("training.use_depth=false")
    assert torch.equal(real_batch(item, flat, "cpu").images, plain[:, :3])


def test_reals_alone_are_augmented_by_seed_epoch_and_item():
    profile = tiny_profile("data.augment={where: reals, probability: 1.0}", "data.mirror=false")
    item = make_items(profile)
    plain = real_batch(item, tiny_profile(), "cpu")
    item = item._replace(camera_angles=torch.tensor([[0.3, 1.5, 0.0]] * 4))
    real = real_batch(item, profile, "cpu", epoch=3)
    numbers = item_numbers(profile.training.seed, 3, [0, 1, 2, 3])
    expected = change_images(plain.images, choose_changes(numbers, profile.data.augment, mirrored=False))
    assert torch.equal(real.images, expected)
    assert (real.angles[:, 0] == -0.3).all()
    assert discriminator_augment(profile, AugmentController(profile.training.augment)) is None


def test_augmentation_of_both_sides_changes_what_the_discriminator_sees():
    profile = tiny_profile("data.augment.where=both")
    item = make_items(profile)
    assert torch.equal(real_batch(item, profile, "cpu").images, real_batch(item, tiny_profile(), "cpu").images)
    change = discriminator_augment(profile, AugmentController(profile.training.augment))
    images = make_real(profile).images
    assert not torch.equal(change(images, make_draws(profile)), images)
    assert torch.equal(change(images, make_draws(profile, 1)), change(images, make_draws(profile, 1)))


def test_adaptive_augmentation_follows_its_strength():
    profile = tiny_profile("training.augment.mode=ada", "training.augment.multipliers.xint=0.0")
    controller = AugmentController(AdaptiveAugmentConfig(mode="ada"))
    change = discriminator_augment(profile, controller)
    images = make_real(profile).images
    gentle = (change(images, make_draws(profile)) - images).abs().mean()
    controller.p = 1.0
    assert (change(images, make_draws(profile)) - images).abs().mean() > 2 * gentle


FEATURES = ("loss.adversarial=relativistic", "model.feature_discriminator={weight: 0.5, input_size: 32}")


def test_the_feature_discriminator_adds_its_weighted_loss_to_both_networks():
    gradient = {}
    for weight in (1e-9, 0.5, 1.0):
        profile = tiny_profile(*FEATURES, f"model.feature_discriminator.weight={weight}")
        setup, real = make_setup(profile), make_real(profile)
        for phase in phases(profile)[:2]:
            network = {"G": setup.generator, "D": setup.discriminator}[phase.network]
            network.zero_grad()
            run(setup, phase, real, make_draws(profile, phase.name))
            gradient[phase.name, weight] = gradients(network)
    for phase in ("Gmain", "Dmain"):
        none, half, whole = (gradient[phase, weight] for weight in (1e-9, 0.5, 1.0))
        for name in none:
            assert relative_error(whole[name] - none[name], 2 * (half[name] - none[name])) < 1e-3, name
    assert any(name.startswith("feature_discriminator.heads") for name in gradient["Dmain", 1.0])
    planes = "synthesis.tri_plane_decoder.b8.torgb.weight"
    assert (gradient["Gmain", 1.0][planes] - gradient["Gmain", 1e-9][planes]).abs().max() > 0


def test_depth_reaches_the_generator_through_the_first_discriminator_alone():
    profile = tiny_profile(*FEATURES)
    setup = make_setup(profile)
    shown = module._real_input(setup, make_real(profile), None)
    images = shown.images.clone().requires_grad_(True)
    maps = module.feature_maps(setup, shown._replace(images=images), make_draws(profile), "fake")
    sum(x.square().sum() for x in maps).backward()
    assert images.grad[:, :3].abs().sum(dim=(1, 2, 3)).min() > 0
    assert images.grad[:, 3:].abs().max() == 0


@pytest.mark.parametrize("adversarial", ["hinge", "relativistic"])
def test_reused_fakes_and_maps_are_those_that_the_generator_made(adversarial):
    profile = tiny_profile(*FEATURES, f"loss.adversarial={adversarial}", "training.reuse_fakes=true")
    setup, real = make_setup(profile), make_real(profile)
    generator, discriminator = phases(profile)[:2]
    run(setup, generator, real, make_draws(profile, "G"))
    (made,) = setup.made
    assert not made.fake.images.requires_grad
    assert not any(x.requires_grad for x in made.maps)
    passes = []
    hook = setup.generator.mapping.register_forward_hook(lambda *_: passes.append(1))
    result = run(setup, discriminator, real, make_draws(profile, "D"))
    hook.remove()
    assert not passes
    assert not setup.made
    assert torch.equal(result.means["w"], made.ws[:, 0].mean(dim=0))


@pytest.mark.parametrize("patches", [True, False])
def test_coarse_fakes_have_a_ray_for_four_pixels_and_reals_are_as_blurred(patches):
    whole = ("training.patch={enabled: false, conditioning: false}", "model.discriminator.hyper_mod=false")
    profile = tiny_profile("training.coarse_kimg=1.0", *(() if patches else whole))
    setup, draws = make_setup(profile), make_draws(profile)
    side, rays = 8 if patches else 16, []
    setup.generator.depth_adaptor.register_forward_hook(lambda _, inputs, output: rays.append(output.shape[2:]))
    fake = module.run_G(setup, draws.fakes(4), draws, draws.patches("fake", 4)).images
    assert rays == [(side // 2, side // 2)]
    assert fake.shape == (4, 4, side, side)
    real = make_real(profile)
    shown = module._real_input(setup, real, draws.patches("real", 4)).images
    assert shown.shape == fake.shape
    if not patches:
        small = torch.nn.functional.avg_pool2d(real.images, 2)
        assert torch.equal(shown, torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear"))
    later = make_setup(profile, nimg=1000)
    assert later.values.coarseness == 1
    assert torch.equal(module._real_input(later, real, None).images, real.images)
