"""The training loop.

One iteration: fetch real items; run each phase over the micro-batches, average its gradients, step; move the weight
average; count. Once a tick: report, watch for divergence, and now and then draw samples, evaluate, write a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from threedgp.config.rules import batch_split
from threedgp.config.schema import Profile
from threedgp.data.dataset import Item, TrainingSet, collate
from threedgp.data.sampler import InfiniteSampler
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.runs.catalog import prune_checkpoints
from threedgp.runs.run import Run
from threedgp.training.distributed import World
from threedgp.training.draws import Draws
from threedgp.training.ema import ema_beta, update_ema
from threedgp.training.gradients import average_gradients
from threedgp.training.log import Moments, RunLog, Statistics
from threedgp.training.phases import (
    Phase,
    RealBatch,
    Setup,
    discriminator_augment,
    phases,
    real_batch,
    set_trainable,
    update_running_means,
)
from threedgp.training.schedules import schedule_values
from threedgp.training.state import TrainingState

CHECK_TICKS = 50  # between two checks that all processes hold the same networks


@dataclass(frozen=True)
class TrainingResult:
    """How a call of `train` ended: images seen so far, whether the run is complete, and its newest checkpoint."""

    nimg: int
    finished: bool
    checkpoint: Path | None


class Trainer:
    """Trains one run on one process of several; all processes go through the same steps.

    Args:
        run: the run folder; its config.yaml is the profile. Rank 0 must hold its lock.
        world: this process and the others.
        dataset: the training set.
        log: rank 0's log, None elsewhere.
        should_stop: asked once an iteration; True on any process makes all of them write a checkpoint and return.
        progress: told how many images were seen.
    """

    def __init__(
        self,
        run: Run,
        world: World,
        dataset: TrainingSet,
        *,
        log: RunLog | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        progress: Progress = NULL_PROGRESS,
    ):
        self.run, self.world, self.dataset = run, world, dataset
        self.log, self.should_stop, self.progress = log, should_stop, progress
        self.profile: Profile = run.profile
        self.per_process, self.micro_batch, self.micro_batches = batch_split(self.profile, world.size)
        self.phases = phases(self.profile)
        self.statistics = Statistics()
        self.state = TrainingState.build(self.profile, world.device)
        self.checkpoint: Path | None = None

    def restore(self) -> None:
        """Continue from the newest intact checkpoint, if the run has any.

        Raises:
            CheckpointError: it does not fit the profile, or all are damaged.
        """
        if not self.run.checkpoints():
            return
        path = Path(self.world.share(str(self.run.checkpoint("latest", self.progress)) if self.world.is_main else ""))
        self.state.load(path, self.profile)
        self.checkpoint = path

    # -------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> TrainingResult:
        """Train until the profile's number of images, or until asked to stop."""
        counters, total = self.state.counters, round(1000 * self.profile.training.kimg)
        batches = self._open_data()
        self.progress.start("Training", total, "images")
        self.progress.advance(counters.nimg)
        while counters.nimg < total:
            began = time.perf_counter()
            self.iteration(next(batches))
            counters.elapsed += time.perf_counter() - began
            self.progress.advance(self.profile.training.batch_size)
            finished = counters.nimg >= total
            stop = self.world.any(self.should_stop())
            if finished or counters.nimg - counters.tick_nimg >= 1000 * self.profile.training.tick_kimg:
                self._end_tick(finished)
            if stop and not finished:
                self.save()
                break
        self.progress.finish()
        return TrainingResult(counters.nimg, counters.nimg >= total, self.checkpoint)

    def iteration(self, item: Item) -> None:
        """One step of each phase that is due, on this process's share of the real items."""
        state, counters, training = self.state, self.state.counters, self.profile.training
        values = schedule_values(counters.nimg, self.profile)
        state.G.set_progress(values.kimg)
        setup = Setup(
            self.profile,
            state.G,
            state.D,
            values,
            state.path_length_mean,
            discriminator_augment(self.profile, state.augment),
        )
        real = real_batch(item, self.profile, self.world.device, epoch=counters.position // len(self.dataset))
        for phase in self.phases:
            if phase.due(counters.iteration, values.kimg):
                self._run_phase(phase, setup, real)
        update_ema(state.G_ema, state.G, ema_beta(counters.nimg, training.batch_size, training.ema))
        counters.nimg += training.batch_size
        counters.position += training.batch_size
        counters.iteration += 1
        state.augment.step(counters.iteration, training.batch_size, self.world.sum)

    def _run_phase(self, phase: Phase, setup: Setup, real: RealBatch) -> None:
        network, optimizer = self.state.networks[phase.network], self.state.optimizers[phase.network]
        optimizer.zero_grad(set_to_none=True)
        set_trainable(setup, phase.network)
        means: dict[str, torch.Tensor] = {}
        for local in range(self.micro_batches):
            part = slice(local * self.micro_batch, (local + 1) * self.micro_batch)
            micro = RealBatch(real.images[part], real.labels[part], real.angles[part], real.embeddings[part])
            result = phase.run(setup, micro, self._draws(phase, local, setup), phase.interval / self.micro_batches)
            for name, value in result.stats.items():
                self.statistics.report(name, value)
            if "Loss/scores/real" in result.stats:
                self.state.augment.report(result.stats["Loss/scores/real"])
            for name, value in result.means.items():
                means[name] = means.get(name, 0) + value / self.micro_batches
        network.requires_grad_(False)
        update_running_means(setup, {name: self.world.mean(value) for name, value in means.items()})
        config = getattr(self.profile.training, f"{'generator' if phase.network == 'G' else 'discriminator'}_optimizer")
        report = average_gradients(network, self.world, config.grad_clip)
        optimizer.step()
        self.statistics.report(f"Grad_norm/{phase.network}/{phase.name}", report.norm)
        self.statistics.report(f"Grad_nonfinite/{phase.network}/{phase.name}", report.nonfinite)

    def _draws(self, phase: Phase, local: int, setup: Setup) -> Draws:
        """Random numbers of a micro-batch, keyed by its number over all processes."""
        counters = self.state.counters
        micro_batch = local * self.world.size + self.world.rank
        key = (self.profile.training.seed, counters.stream, counters.iteration, phase.name, micro_batch)
        return Draws(
            self.profile,
            self.dataset,
            key,
            kimg=setup.values.kimg,
            spoof_probability=setup.values.spoof_probability,
            device=self.world.device,
        )

    def _open_data(self) -> Iterator[Item]:
        """The stream of real items from the current position on."""
        counters, training = self.state.counters, self.profile.training
        sampler = InfiniteSampler(
            len(self.dataset),
            batch_size=training.batch_size,
            micro_batch=self.micro_batch,
            rank=self.world.rank,
            world_size=self.world.size,
            position=counters.position,
            seed=training.seed,
            stream=counters.stream,
        )
        loader = torch.utils.data.DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=training.workers,
            pin_memory=self.world.device.type == "cuda",
            persistent_workers=training.workers > 0,
        )
        return iter(loader)

    # ---------------------------------------------------------------------------------------------------------- upkeep

    def _end_tick(self, finished: bool) -> None:
        counters, training = self.state.counters, self.profile.training
        counters.tick += 1
        counters.tick_nimg = counters.nimg
        moments = self._report()
        if counters.tick % CHECK_TICKS == 0:
            self.world.require_equal(self.state.shared_tensors())
        if finished or counters.tick % training.snapshot_ticks == 0:
            self.save()
        self._show(moments)

    def _report(self) -> dict[str, Moments]:
        moments = self.statistics.collect(self.world)
        if self.log is not None:
            self.log.tick(self.state.counters.nimg, moments)
        return moments

    def _show(self, moments: dict[str, Moments]) -> None:
        names = {"G": "Loss/G/loss", "D": "Loss/D/loss", "R1": "Loss/D/r1_penalty"}
        shown = [f"{label} {moments[name].mean:.3g}" for label, name in names.items() if name in moments]
        self.progress.status("  ".join(shown))

    def save(self) -> None:
        """Write a checkpoint, then delete those no longer needed."""
        if self.world.is_main:
            config = self.profile.training.checkpoint
            self.checkpoint = self.state.save(self.run.checkpoints_folder, self.profile)
            best = self.run.best()
            prune_checkpoints(
                self.run.checkpoints_folder,
                keep_last=config.keep_last,
                keep=[best[0]] if best else [],
                keep_every_kimg=config.keep_every_kimg,
            )
        self.world.barrier()
