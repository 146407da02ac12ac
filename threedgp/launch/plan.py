"""What a run will do, worked out and checked before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from threedgp.config.profile import override_profile, save_profile
from threedgp.config.rules import batch_split
from threedgp.config.schema import Profile
from threedgp.config.workspace import Workspace
from threedgp.cores import available_cores
from threedgp.data.dataset import open_training_set
from threedgp.errors import CheckpointError, ConfigError, UsageError
from threedgp.launch.memory import Memory, estimate_memory
from threedgp.launch.options import LaunchOptions
from threedgp.ops import native
from threedgp.rendering.frustum import check_viewing_frustum
from threedgp.runs.catalog import NewerCheckpointError, checkpoint_nimg, read_manifest
from threedgp.runs.checkpoint import check_profile
from threedgp.runs.run import CLOCK_FILE, DONE_FILE, Run, check_run_name
from threedgp.runs.training_set import record_data, require_same_data, training_data
from threedgp.training.trainer import Clock


@dataclass(frozen=True)
class Plan:
    """A checked plan; `rows` is its table."""

    run: str | None
    folder: Path
    resumes_at: int | None
    profile: Profile
    data: Path
    images: int
    options: LaunchOptions
    per_process: int
    micro_batch: int
    memory: Memory
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of each line of the table."""
        profile, training, patch = self.profile, self.profile.training, self.profile.training.patch
        start, left = "new", 1000 * training.kimg
        if self.resumes_at is not None:
            start, left = f"goes on at {self.resumes_at / 1000:g} thousand images", max(left - self.resumes_at, 0)
        losses = [profile.loss.adversarial.replace("_", "-"), f"R1 {profile.gamma:g}"]
        if profile.loss.adversarial == "relativistic":
            losses[1] += f" and R2 {profile.gamma_fake:g}"
        losses += ["distillation"] * (profile.loss.distillation.weight > 0)
        losses += ["depth"] * training.use_depth + ["learned cameras"] * training.learn_camera
        schedule = {"checkpoint": training.snapshot_ticks, "samples": training.image_ticks}
        if training.metrics:
            schedule[", ".join(training.metrics)] = training.metric_ticks
        precision: str = profile.precision
        if precision == "bf16" and self.options.device == "cpu" and not native.CPU_COMPUTES_BFLOAT16:
            precision = "fp32 because this processor has no bf16"
        return [
            ("run", f"{self.folder} ({start})"),
            ("profile", f"{profile.name}: {profile.description}" if profile.description else profile.name),
            (
                "data",
                f"{self.data}: {self.images:,} images{', mirrored' if profile.data.mirror else ''}"
                + (f", {profile.data.num_classes} classes" if profile.data.num_classes else ""),
            ),
            (
                "size",
                f"{profile.data.resolution}x{profile.data.resolution}"
                + (f" in patches of {patch.resolution}x{patch.resolution}" if patch.enabled else ""),
            ),
            (
                "networks",
                ", ".join(f"{name} {_count(count)} parameters" for name, count in self.memory.parameters.items()),
            ),
            ("loss", ", ".join(losses)),
            (
                "length",
                f"{training.kimg:g} thousand images, {-(-left // training.batch_size):,.0f} iterations"
                + ("" if self.resumes_at is None else " left"),
            ),
            (
                "schedule",
                f"report every {training.tick_kimg:g} thousand images, "
                + ", ".join(f"{what} every {training.tick_kimg * ticks:g}" for what, ticks in schedule.items()),
            ),
            ("processes", f"{self.options.text}, {precision}"),
            (
                "batch",
                f"{training.batch_size} = {self.options.world_size} x {self.per_process}"
                + ("" if self.micro_batch == self.per_process else f", {self.micro_batch} at a time"),
            ),
            (
                "memory",
                f"about {_bytes(self.memory.state + self.memory.activations)} per process: weights and optimisers "
                f"{_bytes(self.memory.state)}, activations {_bytes(self.memory.activations)}",
            ),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The plan for `--json`."""
        return {
            "run": self.run,
            "folder": str(self.folder),
            "resumes_at_nimg": self.resumes_at,
            "data": str(self.data),
            "images": self.images,
            "launch": asdict(self.options),
            "per_process": self.per_process,
            "micro_batch": self.micro_batch,
            "memory": self.memory._asdict(),
            "profile": self.profile.model_dump(),
            "notes": self.notes,
        }


def cpu_processes(profile: Profile, cores: int | None = None) -> int:
    """How many processes can share a profile's training on this machine's CPU; scoring is shared too.

    One a core, as long as the batch can be split over them and no minibatch-std group has to shrink.

    Args:
        profile: resolved.
        cores: those of this machine by default.
    """
    group = profile.model.discriminator.mbstd_group_size or profile.training.batch_size
    for count in range(cores or available_cores(), 1, -1):
        try:
            _, micro_batch, _ = batch_split(profile, count)
        except ConfigError:
            continue
        if micro_batch >= group:
            return count
    return 1


def plan_run(
    workspace: Workspace,
    profile: Profile,
    options: LaunchOptions,
    name: str | None = None,
    *,
    run: Run | None = None,
) -> Plan:
    """Check that data, profile, batch and run fit together, without starting or writing anything.

    Args:
        name: of a run in the workspace, new or to be continued; by default a new one's.
        run: a run to be continued, wherever it lies.

    Raises:
        ThreeDGPError: of the kind that says what does not fit.
    """
    existing = run or _existing(workspace, name)
    checkpoints = existing.checkpoints() if existing else []
    _check_networks(checkpoints, profile)
    per_process, micro_batch, _ = batch_split(profile, options.world_size)
    if profile.camera.validate_viewing_frustum:
        check_viewing_frustum(profile.camera, full_box=profile.model.generator.use_full_box)
    data = training_data(workspace, profile, existing, options.data)
    dataset = open_training_set(profile, data)
    if existing is not None:
        require_same_data(existing, dataset, options.data)
    notes = []
    if options.device == "cpu" and profile.gpus > 1:
        notes.append(f"This profile was chosen for {profile.gpus} GPUs; on a CPU it will take very long.")
    if options.device == "cpu" and options.processes > available_cores():
        notes.append(f"There are more processes than cores ({available_cores()}).")
    if len(dataset) < profile.training.batch_size:
        notes.append(f"The training set ({len(dataset)} items) is smaller than one batch.")
    return Plan(
        run=existing.name if existing else name,
        folder=existing.folder if existing else workspace.runs / (name or f"{profile.name}-NUMBER"),
        resumes_at=checkpoint_nimg(checkpoints[-1]) if checkpoints else None,
        profile=profile,
        data=data,
        images=len(dataset.names),
        options=options,
        per_process=per_process,
        micro_batch=micro_batch,
        memory=estimate_memory(profile, micro_batch),
        notes=notes,
    )


def open_run(workspace: Workspace, profile: Profile, options: LaunchOptions, name: str | None = None) -> Run:
    """Make the run folder, or open the one of that name to go on with it.

    Raises:
        UsageError: the run of that name has another profile.
    """
    run = _existing(workspace, name)
    if run is None:
        data = training_data(workspace, profile, None, options.data)
        try:
            run = Run.create(workspace, profile, name)
        except UsageError:  # another machine of the same start was quicker
            run = _existing(workspace, name)
            if run is None:
                raise
        else:
            record_data(run, data)
    if run.profile != profile:
        raise UsageError(
            f"Run '{name}' was started with other settings. Go on with `3dgp resume {name}` (and --set to change "
            "settings), or choose another --run name."
        )
    return run


def change_profile(run: Run, overrides: Sequence[str]) -> Profile:
    """The run's profile with overrides applied; `keep_profile` makes it the run's own."""
    return override_profile(run.profile, list(overrides)) if overrides else run.profile


def keep_profile(run: Run, profile: Profile) -> Run:
    """Write a changed profile into the run folder; returns the run as it is then."""
    if profile == run.profile:
        return run
    if not outcome(run, profile)["finished"]:
        (run.folder / DONE_FILE).unlink(missing_ok=True)
    save_profile(profile, run.config)
    return Run(run.folder)


def outcome(run: Run, profile: Profile | None = None) -> dict[str, Any]:
    """Where a run stands, for people and `--json`; `profile` is to be used instead of the run's own."""
    checkpoints = run.checkpoints()
    nimg = checkpoint_nimg(checkpoints[-1]) if checkpoints else 0
    wanted = profile or run.profile
    minutes = wanted.training.max_minutes
    ended = wanted == run.profile and (run.folder / DONE_FILE).exists()
    late = minutes is not None and Clock(run.folder / CLOCK_FILE).seconds >= 60 * minutes
    return {
        "run": run.name,
        "folder": str(run.folder),
        "kimg": nimg / 1000,
        "finished": ended or late or nimg >= 1000 * wanted.training.kimg,
        "ended_by": "training.kimg" if nimg >= 1000 * wanted.training.kimg else "training.max_minutes",
        "checkpoint": checkpoints[-1].name if checkpoints else None,
    }


def _check_networks(checkpoints: Sequence[Path], profile: Profile) -> None:
    """Refuse to go on with other networks than the newest readable checkpoint's, before they replace the run's own."""
    for path in reversed(checkpoints):
        try:
            manifest = read_manifest(path)
        except NewerCheckpointError:
            raise
        except CheckpointError:  # damaged: training passes it over
            continue
        check_profile(path, manifest, profile)
        return


def _existing(workspace: Workspace, name: str | None) -> Run | None:
    """The run of this name in the workspace, if there is one; a name that no run can have is refused."""
    if name is None:
        return None
    check_run_name(name)
    run = Run(workspace.runs / name)
    return run if run.config.is_file() else None


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number / 1e3:.0f} k"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{max(number, 1e6) / 1e6:.0f} MB"
