"""How fast a training iteration is: plain and fast paths side by side, and the machine's rate of matrix products.

Everything is measured in one run, alternating, because other work disturbs a machine for minutes at a time; only the
ratios of such neighbours mean much.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from threedgp.config.rules import image_channels
from threedgp.config.schema import Profile
from threedgp.launch.here import set_precision
from threedgp.ops import native
from threedgp.processes import World
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.training.draws import Draws
from threedgp.training.ema import ema_beta, update_ema
from threedgp.training.gradients import average_gradients, require_gradients
from threedgp.training.phases import Phase, RealBatch, Setup, phases, set_trainable
from threedgp.training.schedules import schedule_values
from threedgp.training.state import TrainingState

WARM_UP = 3
MATRIX = 2048  # side of the matrices whose product shows what the machine can do
SEED = 0
# What the profiler calls the operations, by part of the table. The first match counts.
PARTS = {
    "convolutions": ("conv", "mkldnn", "threedgp::winograd"),
    "matrix products": ("addmm", "aten::mm", "bmm", "linear"),
    "radiance field": ("threedgp::field", "threedgp::triplane", "grid_sampler"),
    "ray marching": ("threedgp::march", "threedgp::importance", "aten::sort", "searchsorted", "cumsum", "aten::gather"),
    "resampling": ("threedgp::fir",),
    "bias, noise, activation": ("threedgp::pointwise", "leaky_relu"),
    "fused by the compiler": ("triton_",),
    "optimiser": ("Optimizer", "_foreach", "adam", "lerp", "addcdiv", "addcmul"),
}
OTHER = "everything else"


class SyntheticLabels:
    """Classes in turn and no stored cameras: what `Draws` asks of a training set."""

    def __init__(self, num_classes: int, count: int = 1000):
        self.num_classes, self.count = num_classes, count

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> Tensor:
        label = torch.zeros(self.num_classes)
        if self.num_classes:
            label[index % self.num_classes] = 1.0
        return label

    def camera_angles(self, index: int) -> Tensor:
        return torch.zeros(3)


class Variant(NamedTuple):
    """One way to run an iteration: with native operations or plain PyTorch, in a precision, compiled or not."""

    name: str
    precision: str
    plain: bool = False
    compiled: bool = False


class PathSpeed(NamedTuple):
    """How fast a variant is.

    Attributes:
        seconds_per_iteration: the median; regularisers count with their share.
        ratio_to_plain: how much faster than the plain path: the median over the rounds of each round's ratio.
        flops_per_second: of convolutions and matrix products, as PyTorch counts the plain path's.
        limit_flops_per_second: what a product of large matrices reaches in this precision.
        peak_bytes: of all tensors.
    """

    name: str
    precision: str
    seconds_per_iteration: float
    images_per_second: float
    ratio_to_plain: float
    flops_per_second: float
    limit_flops_per_second: float
    peak_bytes: int

    @property
    def fraction_of_limit(self) -> float:
        return self.flops_per_second / self.limit_flops_per_second

    @property
    def milliseconds(self) -> float:
        return 1e3 * self.seconds_per_iteration

    @property
    def gigaflops(self) -> float:
        return self.flops_per_second / 1e9

    @property
    def peak_mebibytes(self) -> float:
        return self.peak_bytes / 2**20


def variants(device: torch.device) -> list[Variant]:
    """What there is to compare on a device; the first is the plain path."""
    plain = Variant("plain fp32", "fp32", plain=True)
    if device.type == "cuda":
        return [
            plain,
            Variant("tf32", "tf32"),
            Variant("bf16", "bf16"),
            Variant("bf16 compiled", "bf16", compiled=True),
        ]
    return [plain, Variant("fast fp32", "fp32"), *[Variant("fast bf16", "bf16")] * native.CPU_COMPUTES_BFLOAT16]


def bench_train(
    profile: Profile, *, device: torch.device | str = "cpu", rounds: int = 10, progress: Progress = NULL_PROGRESS
) -> tuple[list[PathSpeed], dict[str, float]]:
    """Time training iterations of a profile, each variant's `rounds` times in turn, on random images.

    Returns:
        The speed of every variant; seconds of the fastest one's iteration by part.
    """
    device = torch.device(device)
    workloads = [Workload(profile, variant, device) for variant in variants(device)]
    seconds: list[list[float]] = [[] for _ in workloads]
    progress.start("Timing iterations", (WARM_UP + rounds) * len(workloads), "iterations")
    for number in range(WARM_UP + rounds):
        for workload, found in zip(workloads, seconds, strict=True):
            spent = workload.timed_iteration()
            if number >= WARM_UP:
                found.append(spent)
            progress.advance()
    progress.finish()
    flops = workloads[0].flops()
    speeds = []
    for workload, found in zip(workloads, seconds, strict=True):
        median = statistics.median(found)
        speeds.append(
            PathSpeed(
                name=workload.variant.name,
                precision=workload.variant.precision,
                seconds_per_iteration=median,
                images_per_second=profile.training.batch_size / median,
                ratio_to_plain=statistics.median(plain / own for plain, own in zip(seconds[0], found, strict=True)),
                flops_per_second=flops / median,
                limit_flops_per_second=workload.matrix_rate(),
                peak_bytes=workload.peak_bytes(),
            )
        )
    fastest = min(range(len(speeds)), key=lambda i: speeds[i].seconds_per_iteration)
    return speeds, workloads[fastest].parts()


class Workload:
    """Networks of a profile, real items made of noise, and everything to run an iteration as a variant says."""

    def __init__(self, profile: Profile, variant: Variant, device: torch.device):
        self.profile = profile.model_copy(update={"precision": variant.precision, "compile": variant.compiled})
        self.variant, self.device = variant, device
        self.world = World(rank=0, size=1, device=device)
        self.state = TrainingState.build(self.profile, self.world)
        self.labels = SyntheticLabels(profile.data.num_classes)
        self.phases = phases(self.profile)
        self.number = 0
        random = torch.Generator().manual_seed(SEED)
        batch, size = profile.training.batch_size, profile.data.resolution
        shape = (batch, image_channels(profile), size, size)
        self.real = RealBatch(
            images=(torch.rand(shape, generator=random) * 2 - 1).to(device),
            labels=torch.stack([self.labels.label(i) for i in range(batch)]).to(device),
            angles=torch.zeros(batch, 3, device=device),
            embeddings=torch.randn(batch, profile.data.embedding_dim, generator=random).to(device),
        )

    @contextmanager
    def _as_told(self) -> Iterator[None]:
        set_precision(self.variant.precision)
        with native.plain() if self.variant.plain else nullcontext():
            yield

    def timed_iteration(self) -> float:
        """Seconds of one iteration in which every phase counts with its share, 1/interval."""
        self.number += 1
        total = 0.0
        with self._as_told():
            for phase in self.phases:
                total += timed(partial(self._run, phase), self.device) / phase.interval
            total += timed(self._average, self.device)
        return total

    def _run(self, phase: Phase) -> None:
        state = self.state
        values = schedule_values(0, self.profile)
        setup = Setup(self.profile, state.G, state.D, values, state.path_length_mean)
        key = (SEED, 0, self.number, phase.name, 0)
        draws = Draws(self.profile, self.labels, key, values, device=self.device)
        state.optimizers[phase.network].zero_grad(set_to_none=True)
        set_trainable(setup, phase.network)
        phase.run(setup, self.real, draws, phase.interval)
        network = state.networks[phase.network]
        require_gradients(network, False)
        average_gradients(network, self.world)
        state.optimizers[phase.network].step()

    def _average(self) -> None:
        training = self.profile.training
        update_ema(self.state.G_ema, self.state.G, ema_beta(10_000, training.batch_size, training.ema))

    def _main_phases(self) -> None:
        with self._as_told():
            for phase in self.phases:
                if phase.interval == 1:
                    self._run(phase)

    def peak_bytes(self) -> int:
        """Bytes of all tensors at the worst moment of the phases of every iteration."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._main_phases()
            return torch.cuda.max_memory_allocated()
        with _profiler([torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            self._main_phases()
        recorded: Any = profiler.profiler
        events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
        current = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            current += event.nbytes()
            peak = max(peak, current)
        held = [*self.state.tensors().values()]
        return peak + sum(tensor.nbytes for group in held for tensor in group.values())

    def parts(self) -> dict[str, float]:
        """Seconds of the phases of every iteration by part, largest first."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with _profiler(activities) as profiler:
            self._main_phases()
        seconds: Counter[str] = Counter()
        for event in profiler.key_averages():
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            part = next((part for part, words in PARTS.items() if any(word in event.key for word in words)), OTHER)
            seconds[part] += spent / 1e6
        return dict(seconds.most_common())

    def flops(self) -> int:
        """Floating point operations of the convolutions and matrix products in the phases of every iteration."""
        with FlopCounterMode(display=False) as counter:
            self._main_phases()
        return counter.get_total_flops()

    def matrix_rate(self) -> float:
        """FLOP/s of a product of large matrices in this variant's precision, at best."""
        kind = torch.bfloat16 if self.variant.precision == "bf16" else torch.float32
        matrix = torch.randn(MATRIX, MATRIX, device=self.device, dtype=kind)
        with self._as_told():
            return 2 * MATRIX**3 / min(timed(partial(torch.mm, matrix, matrix), self.device) for _ in range(5))


@contextmanager
def _profiler(activities: list, **options: Any) -> Iterator[torch.profiler.profile]:
    """PyTorch's profiler without the notes that its own code writes to the error stream when it starts and stops."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with torch.profiler.profile(activities=activities, **options) as profiler:
            yield profiler
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a function takes, its work on a GPU included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
