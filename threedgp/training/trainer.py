"""The training loop.

One iteration: fetch real items; run each phase over the micro-batches, average its gradients, step; move the weight
average; count. Once a tick: report, watch for divergence, and now and then draw samples, evaluate, write a checkpoint.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from threedgp.config.rules import batch_split
from threedgp.config.schema import Profile
from threedgp.data.dataset import Item, TrainingSet
from threedgp.data.loader import InfiniteSampler, batches
from threedgp.errors import DataError, DivergenceError
from threedgp.files import best_effort, read_json, write_json
from threedgp.processes import World
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.runs.catalog import checkpoint_name, prune_checkpoints
from threedgp.runs.run import CLOCK_FILE, Run
from threedgp.training.divergence import TickReading, all_finite
from threedgp.training.draws import Draws
from threedgp.training.ema import ema_beta, update_ema
from threedgp.training.gradients import average_gradients, require_gradients
from threedgp.training.log import Moments, RunLog
from threedgp.training.observer import Observer
from threedgp.training.phases import (
    Phase,
    Setup,
    discriminator_augment,
    phases,
    real_batch,
    set_trainable,
    update_running_means,
)
from threedgp.training.recovery import Recovery, Rollback, forget_diverged, source_of
from threedgp.training.schedules import ScheduleValues, schedule_values
from threedgp.training.state import TrainingState

CHECK_TICKS = 50  # between two checks that all processes hold the same networks


class TrainingResult(NamedTuple):
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
        _, self.micro_batch, self.micro_batches = batch_split(self.profile, world.size)
        self.phases = phases(self.profile)
        self.state = TrainingState.build(self.profile, world)
        self.recovery = Recovery.open(run, world)
        self.observer = Observer(run, world, dataset, log=log, progress=progress)
        self.clock = Clock(run.folder / CLOCK_FILE)
        self.checkpoint: Path | None = None
        self.batches: Iterator[Item] = iter(())
        self.tick_began, self.tick_first_nimg = time.perf_counter(), 0
        self.total = round(1000 * self.profile.training.kimg)  # images

    def restore(self) -> None:
        """Continue from the newest intact checkpoint, if the run has any.

        Raises:
            CheckpointError: it does not fit the profile, or all are damaged.
        """
        newest = None
        if self.world.is_main and self.run.checkpoints():
            newest = str(self.run.checkpoint("latest", self.progress))
        newest = self.world.share(newest)  # only rank 0 looks: other machines may see the folder later
        if newest is None:
            self.state.counters.stream = self.recovery.stream  # a rollback to the very start must not repeat itself
            return
        self.checkpoint = Path(newest)
        self.state.load(self.checkpoint, self.profile, self.world)
        last = self.recovery.last
        if last is not None and self.state.counters.stream < last.stream:  # decided, but not carried out
            self._roll_back(last)

    # -------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> TrainingResult:
        """Train until the profile's number of images or minutes, or until asked to stop."""
        training = self.profile.training
        self.clock.start()
        if self.state.counters.nimg == 0:
            self.observer.draw(self.state.G_ema, 0)
            if training.metrics:
                self.observer.evaluate(self.state.G_ema, 0)
        self._begin_stretch()
        finished = self.state.counters.nimg > 0 and self._is_finished()
        while not finished:
            self.iteration(next(self.batches))
            self.progress.advance(training.batch_size)
            finished, stop = self._is_finished(), self.world.any(self.should_stop())
            counters = self.state.counters
            if finished or counters.nimg - counters.tick_nimg >= 1000 * training.tick_kimg:
                rolled_back = self._end_tick(finished)
                finished = self._is_finished() if rolled_back else finished
            if stop and not finished:
                self.save()
                break
        self.progress.finish()
        return TrainingResult(self.state.counters.nimg, finished, self.checkpoint)

    def iteration(self, item: Item) -> None:
        """One step of each phase that is due, on this process's share of the real items."""
        state, counters, training = self.state, self.state.counters, self.profile.training

        # What changes with time, and what an earlier divergence taught.
        values = schedule_values(counters.nimg, self.profile)
        state.G.set_progress(values.density_noise_std, values.depth_progress)
        learning_rate_factor, gamma_factor = self.recovery.factors
        setup = Setup(
            self.profile,
            state.G,
            state.D,
            values,
            state.path_length_mean,
            discriminator_augment(self.profile, state.augment),
            gamma_factor,
        )
        real = real_batch(item, self.profile, self.world.device, epoch=counters.position // len(self.dataset))

        for phase in self.phases:
            if not phase.due(counters.iteration, values.kimg):
                continue
            network, optimizer = state.networks[phase.network], state.optimizers[phase.network]

            # Gradients of the phase's loss, added up over the micro-batches.
            optimizer.zero_grad(set_to_none=True)
            set_trainable(setup, phase.network)
            means: dict[str, torch.Tensor] = {}
            for number in range(self.micro_batches):
                micro = real[number * self.micro_batch : (number + 1) * self.micro_batch]
                draws = self._draws(phase, number, values)
                torch.manual_seed(draws.seed)  # for layers that draw from torch's own state (dropout)
                result = phase.run(setup, micro, draws, phase.interval / self.micro_batches)
                for name, value in result.stats.items():
                    state.statistics.report(name, value)
                if "Loss/scores/real" in result.stats:
                    state.augment.report(result.stats["Loss/scores/real"])
                for name, value in result.means.items():
                    means[name] = means.get(name, 0) + value / self.micro_batches
            require_gradients(network, False)
            update_running_means(setup, {name: self.world.mean(value) for name, value in means.items()})

            # One step with their mean over all processes.
            config = training.generator_optimizer if phase.network == "G" else training.discriminator_optimizer
            report = average_gradients(network, self.world, config.grad_clip)
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * learning_rate_factor
            optimizer.step()
            state.statistics.report(f"Grad_norm/{phase.network}/{phase.name}", report.norm)
            state.statistics.report(f"Grad_nonfinite/{phase.network}/{phase.name}", report.nonfinite)
            state.statistics.report("Grad_bad_steps", report.nonfinite > 0)

        # The average of the generator's weights, the counters, the strength of the augmentation.
        update_ema(state.G_ema, state.G, ema_beta(counters.nimg, training.batch_size, training.ema))
        counters.nimg += training.batch_size
        counters.position += training.batch_size
        counters.iteration += 1
        state.augment.step(counters.iteration, training.batch_size, self.world.sum)

    def _draws(self, phase: Phase, number: int, values: ScheduleValues) -> Draws:
        """Random numbers of a micro-batch, keyed by its number over all processes."""
        counters, micro_batch = self.state.counters, number * self.world.size + self.world.rank
        key = (self.profile.training.seed, counters.stream, counters.iteration, phase.name, micro_batch)
        return Draws(self.profile, self.dataset, key, values, device=self.world.device)

    def _is_finished(self) -> bool:
        """Whether the run has seen all its images, or used up its time; the same on all processes."""
        limit = self.profile.training.max_minutes
        late = limit is not None and self.world.any(self.clock.seconds >= 60 * limit)
        return late or self.state.counters.nimg >= self.total

    def _begin_stretch(self) -> None:
        """Open the data where the counters are, and start measuring: at the start and after a rollback."""
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
        on_gpu = self.world.device.type == "cuda"
        self.batches = batches(self.dataset, sampler, workers=training.workers, pin_memory=on_gpu)
        self._begin_tick()
        total = None if training.max_minutes is not None else self.total
        self.progress.start("Training", total, "images", done=counters.nimg)

    # ---------------------------------------------------------------------------------------------------------- upkeep

    def _begin_tick(self) -> None:
        self.tick_began, self.tick_first_nimg = time.perf_counter(), self.state.counters.nimg

    def _end_tick(self, finished: bool) -> bool:
        """Report, evaluate, look for divergence, draw samples, save: what is due. True if the run went back instead."""
        state, counters, training = self.state, self.state.counters, self.profile.training
        self._require_folder()
        counters.tick += 1
        counters.tick_nimg = counters.nimg
        moments = self._report()
        if counters.tick % CHECK_TICKS == 0:
            state.require_equal(self.world)
        steps = moments["Grad_bad_steps"]
        reading = TickReading(
            counters.nimg,
            {name: moment.mean for name, moment in moments.items()},
            steps=steps.number,
            bad_steps=round(steps.mean * steps.number),
            weights_finite=not self.world.any(not all_finite(list(state.networks.values()))),
        )
        evaluation = None
        if reading.is_finite or not training.divergence.enabled:  # there is something to look at
            if training.metrics and (finished or counters.tick % training.metric_ticks == 0):
                evaluation = self.observer.evaluate(state.G_ema, counters.nimg)
                reading = replace(reading, scores=evaluation.scores, metric=evaluation.lower_is_better)
            if counters.tick % training.divergence.diversity_ticks == 0:
                reading = replace(reading, diversity=self.observer.diversity(state.G_ema))
        if self._went_back(reading):
            return True
        if finished or counters.tick % training.image_ticks == 0:
            self.observer.draw(state.G_ema, counters.nimg)
        candidate = state.monitor.wants_candidate(counters.tick)
        if candidate:
            state.monitor.note_checkpoint(counters.nimg)
        improved = evaluation is not None and evaluation.best
        if finished or improved or candidate or counters.tick % training.snapshot_ticks == 0:
            self.save()
        self._begin_tick()
        return False

    def _report(self) -> dict[str, Moments]:
        """Collect the tick's statistics, log them and show the losses."""
        statistics, counters = self.state.statistics, self.state.counters
        for name, value in asdict(schedule_values(counters.nimg, self.profile)).items():
            statistics.report(f"Progress/{name}", value)
        statistics.report("Progress/augment_p", self.state.augment.p)
        statistics.report("Progress/learning_rate_factor", self.recovery.factors[0])
        seconds = max(time.perf_counter() - self.tick_began, 1e-9)
        statistics.report("Timing/images_per_second", (counters.nimg - self.tick_first_nimg) / seconds)
        statistics.report("Timing/total_seconds", self.clock.seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB of main memory
        statistics.report("Resources/cpu_mem_gb", peak / 2**20)
        if self.world.device.type == "cuda":
            statistics.report("Resources/peak_gpu_mem_gb", torch.cuda.max_memory_allocated() / 2**30)
            torch.cuda.reset_peak_memory_stats()
        moments = statistics.collect(self.world)
        if self.log is not None:
            self.log.tick(counters.nimg, moments)
        names = {"G": "Loss/G/loss", "D": "Loss/D/loss", "R1": "Loss/D/r1_penalty"}
        shown = [f"{label} {moments[name].mean:.3g}" for label, name in names.items() if name in moments]
        if self.profile.training.max_minutes is not None:
            shown.append(f"{max(self.profile.training.max_minutes - self.clock.seconds / 60, 0):.1f} min left")
        self.progress.status("  ".join(shown))
        return moments

    def save(self) -> None:
        """Write a checkpoint, then delete those no longer needed."""
        self._require_folder()
        folder, config = self.run.checkpoints_folder, self.profile.training.checkpoint
        path = self.state.save(folder, self.profile, self.world)
        if path is not None:
            self.checkpoint = path
            self.clock.save()
            best = self.run.best()
            keep = [best.path] if best else []
            keep += [folder / checkpoint_name(nimg) for nimg in self.state.monitor.kept()]
            prune_checkpoints(folder, keep_last=config.keep_last, keep=keep, keep_every_kimg=config.keep_every_kimg)
            self.log_event("checkpoint", path=path.name)
        self.world.barrier()

    def log_event(self, kind: str, **values: Any) -> None:
        """Write an event into the run's log, on the process that has it."""
        if self.log is not None:
            self.log.event(kind, self.state.counters.nimg, **values)

    def _require_folder(self) -> None:
        """Stop before anything would make the folder of a moved or deleted run again.

        Raises:
            DataError: it is gone.
        """
        if self.world.is_main and not self.run.config.is_file():
            raise DataError(
                f"The run's folder {self.run.folder} is gone: it was moved or deleted during the training. Go on from "
                "its newest checkpoint where it is now, with: 3dgp resume FOLDER"
            )

    # ------------------------------------------------------------------------------------------------------ divergence

    def _went_back(self, reading: TickReading) -> bool:
        """Ask rank 0's monitor; if the run has diverged, go back to a healthy checkpoint, all processes together.

        Raises:
            DivergenceError: too many attempts.
        """
        verdict: tuple[str, dict[str, Any] | None] | None = None  # the criterion and the rollback
        if self.world.is_main:
            trigger = self.state.monitor.observe(reading)
            if trigger is not None:
                decided = self.recovery.decide(trigger, self.state.monitor.memory.candidates)
                verdict = (trigger.criterion, None if decided is None else asdict(decided))
        verdict = self.world.share(verdict)
        if verdict is None:
            return False
        criterion, values = verdict
        what = f"Training diverged at {reading.nimg / 1000:g} thousand images ({criterion})"
        if values is None:
            self.log_event("gave up", criterion=criterion)
            kept = f" Run '{self.run.name}' still has the checkpoints from before." if self.run.checkpoints() else ""
            raise DivergenceError(
                f"{what} and going back did not help; {self.recovery.path} tells what was tried.{kept} "
                "A narrower camera prior, a larger loss.gamma or lower learning rates make training more stable."
            )
        rollback = Rollback(**values)
        lower = f" with learning rates times {rollback.learning_rate:g}" if rollback.learning_rate < 1 else ""
        self.progress.note(
            f"{what}; going back to {rollback.source / 1000:g} thousand images{lower}, attempt {rollback.attempt}."
        )
        self.log_event("rollback", **{key: value for key, value in values.items() if key != "nimg"})
        self._roll_back(rollback)
        return True

    def _roll_back(self, rollback: Rollback) -> None:
        """Load the checkpoint chosen, or the newest intact one before it; forget newer ones; change the stream."""
        candidates = self.state.monitor.memory.candidates
        source = self.world.share(source_of(rollback, self.run, self.progress) if self.world.is_main else None)
        self.state = TrainingState.build(self.profile, self.world)
        if source is not None:
            self.state.load(Path(source), self.profile, self.world)
        nimg = self.state.counters.nimg
        self.state.counters.stream = rollback.stream
        self.state.monitor.rewind(nimg, candidates)
        if self.world.is_main:
            forget_diverged(rollback, self.run, nimg)
        self.recovery = Recovery.open(self.run, self.world)
        self.world.barrier()
        self._begin_stretch()


class Clock:
    """Seconds a run has trained, with scores and samples on the way, over all its starts and rollbacks.

    Kept apart from checkpoints: going back to one does not give the time back.
    """

    def __init__(self, path: Path):
        self.path = path
        self._before = 0.0
        self._began: float | None = None
        with suppress(DataError, TypeError, LookupError, ValueError):  # missing or damaged: count from here
            self._before = float(read_json(path)["seconds"])

    def start(self) -> None:
        """Run from now on."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._began is None else time.perf_counter() - self._began)

    def save(self) -> None:
        """Write the time into the run folder."""
        with best_effort("The time a run took"):
            write_json(self.path, {"seconds": self.seconds})
