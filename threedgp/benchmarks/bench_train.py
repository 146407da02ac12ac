"""How fast a training iteration is: plain and fast paths side by side, and what the machine could do at best.

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
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
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


@dataclass(frozen=True)
class Variant:
    """One way to run an iteration: with native operations or plain PyTorch, in a precision, compiled or not."""

    name: str
    precision: str
    plain: bool = False
    compiled: bool = False


@dataclass
class VariantTiming:
    """Seconds of the iterations of a variant (regularisers at their share) and bytes of its tensors at the peak."""

    variant: Variant
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Limit(NamedTuple):
    """What the machine's own convolutions and matrix products need for one iteration's shapes, and their sum of
    floating point operations; `peak` is the best rate among them, FLOP/s.
    """

    seconds: float
    flops: float
    peak: float

    @property
    def rate(self) -> float:
        return self.flops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TrainBench:
    """Timings by variant, limits by precision, and seconds by part of the fastest variant's iteration."""

    profile: Profile
    timings: list[VariantTiming]
    limits: dict[str, Limit]
    parts: dict[str, float]

    def ratio(self, timing: VariantTiming) -> float:
        """How much faster than the plain path: the median over the rounds of each round's ratio."""
        plain = self.timings[0].seconds
        return statistics.median(p / s for p, s in zip(plain, timing.seconds, strict=True))

    def fraction(self, timing: VariantTiming) -> float:
        """Share of the machine's convolution and matrix rate that an iteration reaches."""
        return self.limits[timing.variant.precision].seconds / timing.median

    def paths(self) -> list[dict[str, Any]]:
        """One record a variant, for tables and JSON."""
        return [
            {
                "name": timing.variant.name,
                "precision": timing.variant.precision,
                "seconds_per_iteration": timing.median,
                "images_per_second": self.profile.training.batch_size / timing.median,
                "ratio_to_plain": self.ratio(timing),
                "flops_per_second": self.limits[timing.variant.precision].flops / timing.median,
                "limit_flops_per_second": self.limits[timing.variant.precision].rate,
                "peak_flops_per_second": self.limits[timing.variant.precision].peak,
                "fraction_of_limit": self.fraction(timing),
                "peak_bytes": timing.peak_bytes,
            }
            for timing in self.timings
        ]


def variants(device: torch.device) -> list[Variant]:
    """What there is to compare on a device; the first is the plain path."""
    if device.type == "cuda":
        return [
            Variant("plain fp32", "fp32", plain=True),
            Variant("tf32", "tf32"),
            Variant("bf16", "bf16"),
            Variant("bf16 compiled", "bf16", compiled=True),
        ]
    found = [Variant("plain fp32", "fp32", plain=True), Variant("fast fp32", "fp32")]
    return [*found, Variant("fast bf16", "bf16")] if native.CPU_COMPUTES_BFLOAT16 else found


def bench_train(
    profile: Profile, *, device: torch.device | str = "cpu", rounds: int = 10, progress: Progress = NULL_PROGRESS
) -> TrainBench:
    """Time training iterations of a profile on random images.

    Args:
        profile: resolved; its precision is replaced by each variant's.
        device: where.
        rounds: iterations of each variant, one after the other.
        progress: told about every iteration.
    """
    device = torch.device(device)
    workloads = {variant: Workload(profile, variant, device) for variant in variants(device)}
    timings = [VariantTiming(variant) for variant in workloads]
    progress.start("Timing iterations", (WARM_UP + rounds) * len(timings), "iterations")
    for number in range(WARM_UP + rounds):
        for timing in timings:
            seconds = workloads[timing.variant].timed_iteration()
            if number >= WARM_UP:
                timing.seconds.append(seconds)
            progress.advance()
    progress.finish()
    for timing in timings:
        timing.peak_bytes = workloads[timing.variant].peak_bytes()
    limits = {v.precision: work.limit() for v, work in workloads.items() if not (v.plain or v.compiled)}
    if device.type == "cuda":
        limits["fp32"] = workloads[timings[0].variant].limit()
    fastest = min(timings, key=lambda timing: timing.median)
    return TrainBench(profile, timings, limits, workloads[fastest.variant].parts())


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
                total += timed(lambda phase=phase: self._run(phase), self.device) / phase.interval
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
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
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

    def limit(self) -> Limit:
        """Time each convolution and matrix product of an iteration alone, in the layout it is fastest in.

        The plain path shows what there is to do: native operations do some of it without PyTorch's convolutions.
        """
        with native.plain(), ShapeRecorder() as recorder:
            self._main_phases()
        seconds = flops = peak = 0.0
        for call, count in recorder.calls.items():
            one, operations = call.measure(self.device)
            seconds += count * one
            flops += count * operations
            peak = max(peak, operations / one)
        return Limit(seconds, flops, peak)


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


class Call(NamedTuple):
    """A convolution or matrix product: operation, shapes of its tensors and its other arguments."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    rest: tuple

    def measure(self, device: torch.device, repeats: int = 5) -> tuple[float, int]:
        """Seconds at best, and floating point operations by PyTorch's own count."""
        tensors = [torch.randn(shape, device=device).to(self.dtype) for shape in self.shapes]
        operation = getattr(torch.ops.aten, self.name)
        if self.name == "convolution":
            tensors.append(None)  # no bias
        with FlopCounterMode(display=False) as counter:
            operation(*tensors, *self.rest)
        best = float("inf")
        for _ in range(repeats):
            best = min(best, timed(lambda: operation(*tensors, *self.rest), device))
        return best, counter.get_total_flops()


class ShapeRecorder(TorchDispatchMode):
    """Counts convolutions and matrix products by shape."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            self._count("mm", args[-2:], ())
        elif name == "convolution":
            self._count(name, args[:2], args[3:])
        elif name == "convolution_backward":
            self._count(name, args[:3], args[3:])
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, tensors: tuple[Tensor, ...], rest: tuple) -> None:
        frozen = tuple(tuple(part) if isinstance(part, (list, tuple)) else part for part in rest)
        self.calls[Call(name, tuple(tuple(tensor.shape) for tensor in tensors), tensors[0].dtype, frozen)] += 1


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a function takes, its work on a GPU included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
