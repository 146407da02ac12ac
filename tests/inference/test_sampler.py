"""Rendering samples: ranges, batches, order, planes."""

from __future__ import annotations

import pytest
import torch

from tests.inference.tiny import tiny
from tests.tools import relative_error
from threedgp.camera.trajectories import build_trajectory
from threedgp.errors import UsageError
from threedgp.inference.cameras import mean_camera
from threedgp.inference.latents import StyleMapper, interpolate, plan_samples
from threedgp.inference.sampler import (
    ViewOptions,
    Views,
    ViewSampler,
    normalize_depth,
    require_3d,
    unit_range,
    view_render_options,
)


def scene(kind: str = "3dgp", samples: int = 5, frames: int = 3):
    profile, generator = tiny(kind)
    planned = plan_samples(range(samples), None, profile.data.num_classes)
    ws = StyleMapper(generator.mapping)(planned, 0.7)
    motion = build_trajectory("front_circle", {"num_frames": frames})
    return generator, ws, motion.cameras(mean_camera(generator, profile).repeat_interleave(samples))


def by_frame(generator, ws, cameras, **options) -> Views:
    """All views as [S, F, ...]."""
    views = list(ViewSampler(generator, ViewOptions(adapted=True, **options)).by_frame(ws, cameras))
    return Views(*(torch.stack(values, dim=1) for values in zip(*views, strict=True)))


def by_sample(generator, ws, cameras, **options) -> Views:
    views = list(ViewSampler(generator, ViewOptions(adapted=True, **options)).by_sample(ws, cameras))
    return Views(*(torch.stack(values) for values in zip(*views, strict=True)))


def test_ranges_of_the_reference(golden):
    values = {key: torch.from_numpy(value) for key, value in golden("inference").items() if key.startswith("frames/")}
    near, far = values["frames/near_far"].tolist()
    samples, frames = values["frames/samples_frames"].tolist()
    found = {
        "img": unit_range(values["frames/raw_img"]),
        "depth": normalize_depth(values["frames/raw_depth"], near, far),
        "depth_adapted": unit_range(values["frames/raw_depth_adapted"]),
    }
    for name, pictures in found.items():
        regrouped = pictures.unflatten(0, (samples, frames)).transpose(0, 1)  # [F, S, ...]
        assert relative_error(regrouped, values[f"frames/{name}"]) < 1e-6


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_pictures_do_not_depend_on_the_batch(batch):
    generator, ws, cameras = scene()
    expected = by_frame(generator, ws, cameras, batch=1)
    for function in (by_frame, by_sample):
        for values, wanted in zip(function(generator, ws, cameras, batch=batch), expected, strict=True):
            assert relative_error(values, wanted) < 1e-5
    assert expected.rgb.shape == (5, 3, 3, 16, 16)
    assert float(expected.rgb.std()) > 0.01


def test_rendering_twice_gives_the_same_bits_and_leaves_random_state_alone():
    generator, ws, cameras = scene(samples=2)
    first = by_frame(generator, ws, cameras)
    state = torch.get_rng_state()
    second = by_frame(generator, ws, cameras)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_planes_are_made_once_a_sample_and_never_for_more_than_a_batch(monkeypatch):
    generator, ws, cameras = scene(samples=5, frames=4)
    calls, made = [], type(generator).synthesize_planes

    def counted(self, ws, **arguments):
        calls.append(len(ws))
        return made(self, ws, **arguments)

    monkeypatch.setattr(type(generator), "synthesize_planes", counted)
    for function in (by_frame, by_sample):
        calls.clear()
        function(generator, ws, cameras, batch=2)
        assert calls == [2, 2, 1]


def test_an_interpolation_changes_styles_from_frame_to_frame():
    generator, ws, cameras = scene(samples=4, frames=3)
    moving = interpolate(ws[:2], ws[2:], 3)  # [2, 3, num_ws, w_dim]
    cameras = cameras[:6]
    for function in (by_frame, by_sample):
        views = function(generator, moving, cameras)
        still = by_frame(generator, ws[:2], cameras)
        assert relative_error(views.rgb[:, 0], still.rgb[:, 0]) < 1e-5
        assert not torch.allclose(views.rgb[:, 2], still.rgb[:, 2], atol=1e-3)


def test_size_keeps_the_field_of_view():
    generator, ws, cameras = scene(samples=1, frames=1)
    small, large = (by_frame(generator, ws, cameras, size=size).rgb[0, 0] for size in (9, 17))
    assert relative_error(large[:, ::2, ::2], small) < 1e-5  # pixels at the same places of the image plane


def test_render_options_are_those_of_training_but_finer():
    _, generator = tiny()
    trained = generator.render_options
    options = view_render_options(trained, ViewOptions())
    assert (options.num_steps, options.fine_steps) == (2 * trained.num_steps, 2 * trained.fine_steps)
    assert options.far == trained.far
    assert view_render_options(trained, ViewOptions(far_offset=1.0)).far == trained.far + 1.0
    assert options.jitter == "none"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 5000}, "--size 5000"),
        ({"size": -1}, "--size -1"),
        ({"step_multiplier": 0.1}, "4 to 4096"),
        ({"step_multiplier": 1e5}, "4 to 4096"),
        ({"far_offset": -5.0}, "far plane"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(UsageError, match=words):
        ViewSampler(tiny()[1], ViewOptions(**options))


def test_models_without_depth_adaptor_or_without_depth():
    with pytest.raises(UsageError, match="depth adaptor"):
        ViewSampler(tiny("epigraf")[1], ViewOptions(adapted=True))
    flat = tiny("stylegan2")[1]
    with pytest.raises(UsageError, match="16x16"):
        ViewSampler(flat, ViewOptions(size=32))
    with pytest.raises(UsageError, match="A video needs a 3D model"):
        require_3d(flat, "A video")


def test_pictures_of_a_2d_model():
    profile, generator = tiny("stylegan2")
    ws = StyleMapper(generator.mapping)(plan_samples(range(3), None, profile.data.num_classes), 1.0)
    one, many = (
        torch.cat([views.rgb for views in ViewSampler(generator, ViewOptions(batch=batch)).pictures(ws)])
        for batch in (1, 8)
    )
    assert one.shape == (3, 3, 16, 16)
    assert relative_error(one, many) < 1e-5
    steps = list(ViewSampler(generator, ViewOptions(batch=2)).pictures(interpolate(ws[:1], ws[1:2], 5)))
    assert [views.rgb.shape[0] for views in steps] == [5]
    assert relative_error(steps[0].rgb[[0, 4]], one[:2]) < 1e-5
