"""The training loop.

One iteration: fetch real items; run each phase over the micro-batches, average its gradients, step; move the weight
average; count. Once a tick: report, watch for divergence, and now and then draw samples, evaluate, write a checkpoint.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from threedgp.config.rules import batch_split
from threedgp.config.schema import Profile
from threedgp.data.dataset import Item, TrainingSet, collate
from threedgp.data.sampler import InfiniteSampler
from threedgp.errors import DivergenceError
from threedgp.processes import World
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.runs.catalog import checkpoint_name, checkpoint_nimg, prune_checkpoints, remove_checkpoint
from threedgp.runs.run import Run
from threedgp.training.divergence import TickReading, all_finite
from threedgp.training.draws import Draws
from threedgp.training.ema import ema_beta, update_ema
from threedgp.training.gradients import average_gradients
from threedgp.training.log import Moments, RunLog, Statistics
from threedgp.training.observer import MetricReading, Observer
from threedgp.training.parameters import require_gradients
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
from threedgp.training.recovery import Recovery, Rollback
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
        self.recovery = Recovery(run.folder / "recovery.jsonl", self.profile.training.divergence)
        self.observer = Observer(run, world, dataset, log=log, progress=progress)
        self.checkpoint: Path | None = None
        self._total = round(1000 * self.profile.training.kimg)

    def restore(self) -> None:
        """Continue from the newest intact checkpoint, if the run has any.

        Raises:
            CheckpointError: it does not fit the profile, or all are damaged.
        """
        if not self.run.checkpoints():
            self.state.counters.stream = self.recovery.stream  # a rollback to the very start must not repeat itself
            return
        path = Path(self.world.share(str(self.run.checkpoint("latest", self.progress)) if self.world.is_main else ""))
        self.state.load(path, self.profile)
        self.checkpoint = path
        pending = self.recovery.pending(self.state.counters.stream)
        if pending is not None:
            self._roll_back(pending)

    # -------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> TrainingResult:
        """Train until the profile's number of images, or until asked to stop."""
        counted = time.perf_counter()  # up to here the time is in `counters.elapsed`
        if self.state.counters.nimg == 0:
            self.observer.draw(self.state.G_ema, 0)
            if self.profile.training.metrics:
                self.observer.evaluate(self.state.G_ema, 0)
        self._begin_stretch()
        while not self._finished():
            self.iteration(next(self._batches))
            counters, now = self.state.counters, time.perf_counter()
            counters.elapsed, counted = counters.elapsed + now - counted, now
            self.progress.advance(self.profile.training.batch_size)
            finished = self._finished()
            stop = self.world.any(self.should_stop())
            if finished or counters.nimg - counters.tick_nimg >= 1000 * self.profile.training.tick_kimg:
                self._end_tick(finished)
                self._tick_began, self._tick_nimg = time.perf_counter(), self.state.counters.nimg
            if stop and not self._finished():
                self.save()
                break
        self.progress.finish()
        return TrainingResult(self.state.counters.nimg, self._finished(), self.checkpoint)

    def _begin_stretch(self) -> None:
        """Open the data where the counters are, and start measuring: at the start and after a rollback."""
        self.statistics = Statistics()
        self._batches = self._open_data()
        self._tick_began, self._tick_nimg = time.perf_counter(), self.state.counters.nimg
        timed = self.profile.training.max_minutes is not None
        self.progress.start("Training", None if timed else self._total, "images", done=self.state.counters.nimg)

    def _finished(self) -> bool:
        """Whether the run has seen all its images, or used up its time; the same on all processes."""
        counters, limit = self.state.counters, self.profile.training.max_minutes
        late = limit is not None and self.world.any(counters.elapsed >= 60 * limit)
        return late or counters.nimg >= self._total

    def iteration(self, item: Item) -> None:
        """One step of each phase that is due, on this process's share of the real items."""
        state, counters, training = self.state, self.state.counters, self.profile.training
        values = schedule_values(counters.nimg, self.profile)
        state.G.set_progress(values.kimg)
        slow, strict = self.recovery.slow_down(counters.nimg)
        setup = Setup(
            self.profile,
            state.G,
            state.D,
            values,
            state.path_length_mean,
            discriminator_augment(self.profile, state.augment),
            gamma_factor=strict,
        )
        real = real_batch(item, self.profile, self.world.device, epoch=counters.position // len(self.dataset))
        for phase in self.phases:
            if phase.due(counters.iteration, values.kimg):
                self._run_phase(phase, setup, real, slow)
        update_ema(state.G_ema, state.G, ema_beta(counters.nimg, training.batch_size, training.ema))
        counters.nimg += training.batch_size
        counters.position += training.batch_size
        counters.iteration += 1
        state.augment.step(counters.iteration, training.batch_size, self.world.sum)

    def _run_phase(self, phase: Phase, setup: Setup, real: RealBatch, learning_rate_factor: float) -> None:
        network, optimizer = self.state.networks[phase.network], self.state.optimizers[phase.network]
        optimizer.zero_grad(set_to_none=True)
        set_trainable(setup, phase.network)
        means: dict[str, torch.Tensor] = {}
        for local in range(self.micro_batches):
            part = slice(local * self.micro_batch, (local + 1) * self.micro_batch)
            micro = RealBatch(real.images[part], real.labels[part], real.angles[part], real.embeddings[part])
            draws = self._draws(phase, local, setup)
            torch.manual_seed(draws.seed)  # for layers that draw from torch's own state (dropout)
            result = phase.run(setup, micro, draws, phase.interval / self.micro_batches)
            for name, value in result.stats.items():
                self.statistics.report(name, value)
            if "Loss/scores/real" in result.stats:
                self.state.augment.report(result.stats["Loss/scores/real"])
            for name, value in result.means.items():
                means[name] = means.get(name, 0) + value / self.micro_batches
        require_gradients(network, False)
        update_running_means(setup, {name: self.world.mean(value) for name, value in means.items()})
        training = self.profile.training
        config = training.generator_optimizer if phase.network == "G" else training.discriminator_optimizer
        report = average_gradients(network, self.world, config.grad_clip)
        for group, settings in zip(optimizer.param_groups, [optimizer.defaults], strict=True):
            group["lr"] = settings["lr"] * learning_rate_factor
        optimizer.step()
        self.statistics.report(f"Grad_norm/{phase.network}/{phase.name}", report.norm)
        self.statistics.report(f"Grad_nonfinite/{phase.network}/{phase.name}", report.nonfinite)
        self.statistics.report("Grad_bad_steps", report.nonfinite > 0)

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
        """Report, evaluate, look for divergence, draw samples, save: what is due at the end of a tick."""
        state, counters, training = self.state, self.state.counters, self.profile.training
        counters.tick += 1
        counters.tick_nimg = counters.nimg
        moments = self._report()
        if counters.tick % CHECK_TICKS == 0:
            self.world.require_equal(state.shared_tensors())
        evaluate = training.metrics and (finished or counters.tick % training.val_every == 0)
        metric = self.observer.evaluate(state.G_ema, counters.nimg) if evaluate else None
        if self._diverged(moments, metric):
            return
        if finished or counters.tick % training.image_ticks == 0:
            self.observer.draw(state.G_ema, counters.nimg)
        improved = metric is not None and metric.best
        candidate = state.monitor.wants_candidate(counters.tick)
        if candidate:
            state.monitor.note_checkpoint(counters.nimg)
        if finished or improved or candidate or counters.tick % training.snapshot_ticks == 0:
            self.save()

    def _report(self) -> dict[str, Moments]:
        """Collect the tick's statistics, log them and show the losses."""
        counters = self.state.counters
        for name, value in asdict(schedule_values(counters.nimg, self.profile)).items():
            self.statistics.report(f"Progress/{name}", value)
        self.statistics.report("Progress/augment_p", self.state.augment.p)
        seconds = time.perf_counter() - self._tick_began
        self.statistics.report("Timing/images_per_second", (counters.nimg - self._tick_nimg) / max(seconds, 1e-9))
        self.statistics.report("Timing/total_seconds", counters.elapsed)
        self.statistics.report("Resources/cpu_mem_gb", peak_memory_gb())
        if self.world.device.type == "cuda":
            self.statistics.report("Resources/peak_gpu_mem_gb", torch.cuda.max_memory_allocated() / 2**30)
            torch.cuda.reset_peak_memory_stats()
        moments = self.statistics.collect(self.world)
        if self.log is not None:
            self.log.tick(counters.nimg, moments)
        names = {"G": "Loss/G/loss", "D": "Loss/D/loss", "R1": "Loss/D/r1_penalty"}
        shown = [f"{label} {moments[name].mean:.3g}" for label, name in names.items() if name in moments]
        if self.profile.training.max_minutes is not None:
            shown.append(f"{max(self.profile.training.max_minutes - counters.elapsed / 60, 0):.1f} min left")
        self.progress.status("  ".join(shown))
        return moments

    def save(self) -> None:
        """Write a checkpoint, then delete those no longer needed."""
        if self.world.is_main:
            folder, config = self.run.checkpoints_folder, self.profile.training.checkpoint
            self.checkpoint = self.state.save(folder, self.profile)
            best = self.run.best() if self.profile.training.metrics else None
            keep = [folder / checkpoint_name(nimg) for nimg in self.state.monitor.kept()] + ([best[0]] if best else [])
            prune_checkpoints(folder, keep_last=config.keep_last, keep=keep, keep_every_kimg=config.keep_every_kimg)
            self.log_event("checkpoint", path=self.checkpoint.name)
        self.world.barrier()

    def log_event(self, kind: str, **values: Any) -> None:
        """Write an event into the run's log, on the process that has it."""
        if self.log is not None:
            self.log.event(kind, self.state.counters.nimg, **values)

    # ------------------------------------------------------------------------------------------------------ divergence

    def _diverged(self, moments: dict[str, Moments], metric: MetricReading | None) -> bool:
        """Ask the monitor; if the run has diverged, go back to a healthy checkpoint. All processes agree.

        Raises:
            DivergenceError: too many attempts.
        """
        state, config = self.state, self.profile.training.divergence
        if not config.enabled:
            return False
        steps = moments.get("Grad_bad_steps")
        measure = state.counters.tick % config.diversity_every == 0
        reading = TickReading.from_means(
            state.counters.nimg,
            {name: moment.mean for name, moment in moments.items()},
            steps=steps.count if steps else 1,
            bad_steps=round(steps.mean * steps.count) if steps else 0,
            weights_finite=not self.world.any(not all_finite(list(state.networks.values()))),
            diversity=self.observer.diversity(state.G_ema) if measure else None,
            metric=metric.value if metric is not None and not metric.larger_is_better else None,
        )
        trigger = self.world.share(state.monitor.observe(reading))
        if trigger is None:
            return False
        rollback = self.world.share(
            self.recovery.decide(trigger, state.monitor.candidates) if self.world.is_main else None
        )
        if rollback is None:
            self.log_event("gave up", criterion=trigger.criterion, values=trigger.values)
            raise DivergenceError(
                f"Training diverged at {trigger.nimg / 1000:g} thousand images ({trigger.criterion}) and going back "
                f"did not help; {self.recovery.path} tells what was tried. The best checkpoint so far is intact. "
                "A narrower camera prior, a larger loss.gamma or lower learning rates make training more stable."
            )
        self.progress.note(
            f"Training diverged at {trigger.nimg / 1000:g} thousand images ({trigger.criterion}); going back to "
            f"{rollback.source / 1000:g} thousand images, attempt {rollback.attempt}."
        )
        self.log_event("rollback", **{key: value for key, value in asdict(rollback).items() if key != "nimg"})
        self._roll_back(rollback)
        return True

    def _roll_back(self, rollback: Rollback) -> None:
        """Load the checkpoint chosen, forget newer ones, and go on with new random numbers."""
        candidates, folder = self.state.monitor.candidates, self.run.checkpoints_folder
        if rollback.source:
            self.state.load(folder / checkpoint_name(rollback.source), self.profile)
        else:
            self.state = TrainingState.build(self.profile, self.world.device)
        self.state.counters.stream = rollback.stream
        self.state.monitor.rewind(rollback.source, candidates)
        if self.world.is_main:
            best = self.run.best() if self.profile.training.metrics else None
            for path in self.run.checkpoints():
                diverged = checkpoint_nimg(path) > rollback.source
                if diverged and not (best and path == best[0] and checkpoint_nimg(path) < rollback.first_nimg):
                    remove_checkpoint(path)
        self.recovery = Recovery(self.recovery.path, self.profile.training.divergence)
        self.world.barrier()
        self._begin_stretch()


def peak_memory_gb() -> float:
    """Largest amount of main memory this process has used so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
