"""What a run will do, worked out and checked before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from threedgp.config.profile import override_profile, save_profile
from threedgp.config.rules import batch_split
from threedgp.config.schema import Profile
from threedgp.config.workspace import Workspace
from threedgp.data.dataset import open_training_set
from threedgp.errors import UsageError
from threedgp.models.build import build_discriminator, build_generator
from threedgp.runs.catalog import checkpoint_nimg
from threedgp.runs.run import Run
from threedgp.training.launch import LaunchOptions, record_data, training_data

STATE_COPIES = {"G": 5, "D": 4}  # weights, gradients, two Adam moments, and for G the weight average; float32


@dataclass(frozen=True)
class Plan:
    """A checked plan; `rows` is its table."""

    run: str
    resumes_at: int | None
    profile: Profile
    data: Path
    images: int
    options: LaunchOptions
    per_process: int
    micro_batch: int
    parameters: dict[str, int]
    notes: list[str] = field(default_factory=list)

    @property
    def state_bytes(self) -> int:
        """Memory of weights, gradients and optimisers of one process; activations come on top."""
        return sum(4 * STATE_COPIES[name] * count for name, count in self.parameters.items())

    def rows(self) -> list[tuple[str, str]]:
        profile, training, options = self.profile, self.profile.training, self.options
        classes = f", {profile.data.num_classes} classes" if profile.data.num_classes else ""
        where = {"cuda": "GPUs", "cpu": "CPU processes"}[options.device]
        machines = f" on each of {options.nodes} machines" if options.nodes > 1 else ""
        start = "new" if self.resumes_at is None else f"continues at {self.resumes_at / 1000:g} thousand images"
        micro = "" if self.micro_batch == self.per_process else f", {self.micro_batch} at a time"
        iterations = -(-1000 * training.kimg // training.batch_size)
        losses = [profile.loss.adversarial, f"R1 {profile.loss.gamma:g}"]
        losses += ["distillation"] * (profile.loss.distillation.weight > 0)
        losses += ["depth"] * training.use_depth + ["learned cameras"] * training.learn_camera
        return [
            ("run", f"{self.run} ({start})"),
            ("profile", f"{profile.name}: {profile.description}"),
            ("data", f"{self.data}: {self.images:,} images{', mirrored' if profile.data.mirror else ''}{classes}"),
            ("size", f"{profile.data.resolution}x{profile.data.resolution}{self._patch_text()}"),
            (
                "networks",
                ", ".join(f"{name} {count / 1e6:.1f} M parameters" for name, count in self.parameters.items()),
            ),
            ("loss", ", ".join(losses)),
            ("length", f"{training.kimg:g} thousand images, {iterations:,.0f} iterations"),
            ("processes", f"{options.processes} {where}{machines}, precision {profile.precision}"),
            ("batch", f"{training.batch_size} = {options.world_size} x {self.per_process}{micro}"),
            ("memory", f"{self.state_bytes / 1e9:.2f} GB per process for weights and optimisers, plus activations"),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The plan for `--json`."""
        return {
            "run": self.run,
            "resumes_at_nimg": self.resumes_at,
            "data": str(self.data),
            "images": self.images,
            "launch": asdict(self.options),
            "per_process": self.per_process,
            "micro_batch": self.micro_batch,
            "parameters": self.parameters,
            "state_bytes": self.state_bytes,
            "profile": self.profile.model_dump(),
            "notes": self.notes,
        }

    def _patch_text(self) -> str:
        patch = self.profile.training.patch
        return f" in patches of {patch.resolution}x{patch.resolution}" if patch.enabled else ""


def choose_launch(
    *,
    gpus: int | None = None,
    procs: int | None = None,
    nodes: int = 1,
    rendezvous: str | None = None,
    data: str | None = None,
    wandb: str | None = None,
) -> LaunchOptions:
    """Decide where to train: the GPUs asked for, one GPU if there is any, else the CPU.

    Raises:
        UsageError: options contradict each other, or there are fewer GPUs than asked for.
    """
    if gpus is not None and procs is not None:
        raise UsageError("--gpus and --procs exclude each other: --procs starts processes on CPUs.")
    if nodes > 1 and rendezvous is None:
        raise UsageError(
            "--nodes needs --rendezvous HOST:PORT, the same on every machine: one of them and a free port."
        )
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is not None and gpus > there:
        raise UsageError(f"--gpus {gpus}: this machine has {there} usable GPUs. On CPUs use --procs.")
    if gpus is not None or (procs is None and there):
        return LaunchOptions(gpus or 1, "cuda", nodes, rendezvous, data, wandb)
    return LaunchOptions(procs or 1, "cpu", nodes, rendezvous, data, wandb)


def plan_run(workspace: Workspace, profile: Profile, options: LaunchOptions, name: str | None = None) -> Plan:
    """Check that data, profile, batch and run fit together, without starting or writing anything.

    Raises:
        ThreeDGPError: of the kind that says what does not fit.
    """
    existing = Run(workspace.runs / name) if name and (workspace.runs / name / "config.yaml").is_file() else None
    checkpoints = existing.checkpoints() if existing else []
    per_process, micro_batch, _ = batch_split(profile, options.world_size)
    data = training_data(workspace, profile, existing, options.data)
    dataset = open_training_set(profile, data)
    with torch.device("meta"):
        networks = {"G": build_generator(profile), "D": build_discriminator(profile)}
    notes = []
    if options.device == "cpu" and profile.gpus > 1:
        notes.append(f"this profile was chosen for {profile.gpus} GPUs; on a CPU it will take very long.")
    if options.device == "cpu" and options.world_size > (os.cpu_count() or 1):
        notes.append("there are more processes than cores.")
    return Plan(
        run=name or f"{profile.name}-NUMBER",
        resumes_at=checkpoint_nimg(checkpoints[-1]) if checkpoints else None,
        profile=profile,
        data=data,
        images=len(dataset.names),
        options=options,
        per_process=per_process,
        micro_batch=micro_batch,
        parameters={key: sum(p.numel() for p in network.parameters()) for key, network in networks.items()},
        notes=notes,
    )


def open_run(workspace: Workspace, profile: Profile, options: LaunchOptions, name: str | None = None) -> Run:
    """Make the run folder, or open the one of that name to go on with it.

    Raises:
        UsageError: the run of that name has another profile.
    """
    if name and (workspace.runs / name / "config.yaml").is_file():
        run = Run(workspace.runs / name)
        if run.profile != profile:
            raise UsageError(
                f"Run '{name}' was started with other settings. Continue it with `3dgp resume {name}` "
                "(and --set to change settings), or choose another --run name."
            )
        return run
    data = training_data(workspace, profile, None, options.data)
    run = Run.create(workspace, profile, name)
    record_data(run, data)
    return run


def change_profile(run: Run, overrides: Iterable[str], *, save: bool) -> Profile:
    """The run's profile with overrides applied; written back to the run folder if `save`."""
    overrides = list(overrides)
    if not overrides:
        return run.profile
    profile = override_profile(run.profile, overrides)
    if save:
        save_profile(profile, run.config)
    return profile


def outcome(run: Run) -> dict[str, Any]:
    """Where a run stands, for people and `--json`."""
    checkpoints = run.checkpoints()
    nimg = checkpoint_nimg(checkpoints[-1]) if checkpoints else 0
    return {
        "run": run.name,
        "folder": str(run.folder),
        "kimg": nimg / 1000,
        "finished": nimg >= 1000 * run.profile.training.kimg,
        "checkpoint": checkpoints[-1].name if checkpoints else None,
    }
