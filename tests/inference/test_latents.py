"""Seeds, classes, truncation and interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tools import relative_error
from threedgp.errors import UsageError
from threedgp.inference.latents import (
    Sample,
    StyleMapper,
    interpolate,
    latents,
    parse_classes,
    parse_seeds,
    plan_pairs,
    plan_samples,
    seed_class,
    seed_latent,
    truncate,
)
from threedgp.models.mapping import MappingNetwork

NAMES = ["bus", "Tabby cat", "tench, Tinca tinca", "7", "dog-house"]


def mapping_of(values: dict, prefix: str) -> MappingNetwork:
    c_dim = values[f"{prefix}param/embed.weight"].shape[1] if f"{prefix}param/embed.weight" in values else 0
    network = MappingNetwork(6, c_dim, 5, 3).eval().requires_grad_(False)
    names = network.state_dict().keys()
    network.load_state_dict({name: torch.from_numpy(values[f"{prefix}param/{name}"]) for name in names})
    return network


def random_mapping(c_dim: int) -> MappingNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = MappingNetwork(6, c_dim, 5, 3).eval().requires_grad_(False)
        network.w_avg.normal_()
    return network


def test_latents_and_classes_of_seeds(golden):
    values = golden("inference")
    z = np.stack([seed_latent(seed, 6) for seed in values["seeds"]])
    assert z.dtype == np.float32
    assert np.array_equal(z, values["z"])
    for count in (4, 10, 1000):
        assert [seed_class(seed, count) for seed in values["seeds"]] == values[f"class_idx_of_{count}"].tolist()


@pytest.mark.parametrize("case", ["uncond_07", "percls_07", "classes_07", "classes_1", "percls_15"])
def test_truncation(golden, case):
    values, prefix = golden("inference"), f"trunc_{case}/"
    mapping, psi = mapping_of(values, prefix), float(values[prefix + "psi"])
    classes = values[prefix + "classes"].tolist() or None
    samples = plan_samples(values[prefix + "seeds"].tolist(), classes, mapping.c_dim)
    z, c = latents(samples, 6, mapping.c_dim)
    assert np.array_equal(z, values[prefix + "z"])
    assert np.array_equal(c, values[prefix + "c"])
    if prefix + "z_for_class_mean" not in values:
        ws = StyleMapper(mapping)(samples, psi)
    else:  # with the reference's draws, which are others for every call; ours are fixed
        draws = torch.from_numpy(values[prefix + "z_for_class_mean"])
        rows = len(draws) // 256
        classes_of_rows = c if classes is None else torch.eye(mapping.c_dim)[torch.tensor(classes)]
        drawn = mapping(draws, classes_of_rows.repeat_interleave(256, dim=0))
        means = drawn.reshape(rows, 256, *drawn.shape[1:]).mean(dim=1)
        ws = truncate(mapping(z, c), means.repeat_interleave(len(samples) // rows, dim=0), psi)
    assert relative_error(ws, values[prefix + "ws"]) < 1e-6


def test_interpolation(golden):
    values = golden("inference")
    mapping, psi = mapping_of(values, "interp/"), float(values["interp/psi"])
    first, last = zip(*plan_pairs(values["interp/seeds"].tolist(), None, mapping.c_dim), strict=True)
    # The reference truncates the ends of an interpolation towards the global mean, whatever their class.
    ends = [mapping(*latents(samples, 6, mapping.c_dim), truncation_psi=psi) for samples in (first, last)]
    ws = interpolate(*ends, len(values["interp/ws"]))
    assert relative_error(ws.transpose(0, 1), values["interp/ws"]) < 1e-6


def test_class_mean_depends_on_the_class_alone():
    samples = [Sample(3, 1), Sample(9, 2), Sample(4, 1)]
    alone, among = StyleMapper(random_mapping(4)), StyleMapper(random_mapping(4))
    torch.manual_seed(5)
    expected = alone([samples[2]], 0.5)
    torch.manual_seed(6)
    together = among(samples, 0.5)
    assert relative_error(together[2:], expected) < 1e-6
    assert relative_error(alone(samples, 0.0)[0], alone(samples, 0.0)[2]) < 1e-6
    assert not torch.allclose(among.class_mean(1), among.class_mean(2))


def test_truncation_zero_is_the_mean_and_one_is_free():
    mapping = random_mapping(0)
    samples = plan_samples([1, 2], None, 0)
    assert relative_error(StyleMapper(mapping)(samples, 0.0), mapping.w_avg.expand(2, 3, 5)) < 1e-6
    assert torch.equal(StyleMapper(mapping)(samples, 1.0), mapping(latents(samples, 6, 0)[0], None))


def test_interpolation_reaches_both_ends_and_both_classes():
    mapper = StyleMapper(random_mapping(4))
    pairs = plan_pairs([5, 6], [0, 3], 4)
    assert pairs == [(Sample(5, 0), Sample(6, 3))]
    first, last = (mapper(list(samples), 0.7) for samples in zip(*pairs, strict=True))
    ws = interpolate(first, last, 5)  # [1, 5, num_ws, w_dim]
    assert torch.equal(ws[:, 0], first)
    assert torch.equal(ws[:, -1], last)
    assert relative_error(ws[:, 2], (first + last) / 2) < 1e-6


def test_samples_go_class_by_class_with_the_same_seeds():
    assert plan_samples([4, 5], [2, 0], 3) == [Sample(4, 2), Sample(5, 2), Sample(4, 0), Sample(5, 0)]
    assert [sample.label for sample in plan_samples([4], [2], 3)] == ["c00002-s0004"]
    assert [sample.label for sample in plan_samples([4], None, 0)] == ["s0004"]


@pytest.mark.parametrize(
    ("text", "expected"), [("0-3,7", [0, 1, 2, 3, 7]), (" 5 ", [5]), ("2, 2", [2, 2]), ("4294967295", [2**32 - 1])]
)
def test_seeds(text, expected):
    assert parse_seeds(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to render"),
        (" , ", "nothing to render"),
        ("a", "neither a number"),
        ("-1", "neither a number"),
        ("1.5", "neither a number"),
        ("3-1", "write 1-3"),
        ("4294967296", "out of range"),
        ("0-99999999", "more than 100,000"),
        ("0-60000,0-60000", "more than 100,000"),
        ("٣٣٣٣٣٣٣٣٣٣٣", "out of range"),
    ],
)
def test_bad_seeds(text, words):
    with pytest.raises(UsageError, match=words):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ("1-3,0", [1, 2, 3, 0]),
        ("bus,TABBY CAT", [0, 1]),
        (["tench, Tinca tinca", "4"], [2, 4]),
        ("dog-house", [4]),
    ],
)
def test_classes(texts, expected):
    assert parse_classes(texts, 5, NAMES) == expected


@pytest.mark.parametrize(
    ("texts", "count", "names", "words"),
    [
        ("0", 0, None, "unconditional"),
        ("5", 5, NAMES, "largest is 4"),
        ("3-9", 5, NAMES, "largest is 4"),
        ("tabby ca", 5, NAMES, "Did you mean 'Tabby cat'"),
        ("zebra", 5, None, "--data"),
        ("", 5, NAMES, "names no class"),
    ],
)
def test_bad_classes(texts, count, names, words):
    with pytest.raises(UsageError, match=words):
        parse_classes(texts, count, names)


def test_odd_number_of_seeds_cannot_be_paired():
    with pytest.raises(UsageError, match="pairs of seeds"):
        plan_pairs([1, 2, 3], None, 0)


def test_a_name_that_may_be_several_classes_is_refused():
    assert parse_classes("cat", 3, ["Cat", "cat", "dog"]) == [1]
    assert parse_classes("DOG", 3, ["Cat", "cat", "dog"]) == [2]
    with pytest.raises(UsageError, match="0, 1: use the number"):
        parse_classes("CAT", 3, ["Cat", "cat", "dog"])
