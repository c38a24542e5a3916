"""A model ready to answer: its manifest, its sessions on the chosen provider, and the lane that its runs queue in."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from service.errors import DeviceUnavailable, InferenceFailed, SpecInvalid
from service.repository.parity import load_cases
from service.repository.spec import ModelSpec
from service.repository.store import BuiltModel
from service.runtime.machine import usable_cores
from service.runtime.providers import Choice
from service.runtime.scheduler import Lane
from service.runtime.session import OrtSession, Session
from service.settings import Settings
from service.tasks.task import ModelInfo, Tensors, Timing

CLASS_OUTPUTS = frozenset({"logits", "scores"})
"""Outputs whose last axis is one number a class, where the model has labels."""


@dataclass
class LoadedModel:
    """Implements `service.tasks.task.Model`. `folder` is where it was built; `note` why `provider` is not a faster one."""

    spec: ModelSpec
    sessions: dict[str, Session]
    digest: str
    lane: Lane
    folder: Path = field(default_factory=Path)
    note: str | None = None
    warm: bool = False
    labels: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.labels = self.spec.read_labels()

    @property
    def info(self) -> ModelInfo:
        provider = self.sessions["model"].provider
        return ModelInfo(name=self.spec.name, version=self.spec.version, digest=self.digest, provider=provider)

    def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
        """Run one graph through the lane; see the protocol."""
        done = self.lane.run(graph, feeds, timing.deadline)
        timing.add("queue", done.queue_ms)
        timing.add("inference", done.inference_ms)
        return done.outputs

    def warm_up(self) -> None:
        """Run every graph once on the stored parity input; nothing to do when that was done.

        Raises InferenceFailed when a number is not finite, SpecInvalid when the labels are not as many as the graph's classes.
        """
        cases = {} if self.warm else load_cases(self.spec)
        for graph, case in cases.items():
            outputs = self.sessions[graph].run(case.feeds)
            for name, tensor in outputs.items():
                if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                    raise InferenceFailed(f"{self.spec.name}: warm-up gave a {name!r} that is not finite")
                if self.labels and name in CLASS_OUTPUTS and tensor.shape[-1] != len(self.labels):
                    found = f"{len(self.labels)} labels for {tensor.shape[-1]} classes"
                    raise SpecInvalid(f"{self.spec.folder / str(self.spec.labels)}: {found}; one line a class is needed")
        self.warm = True

    def close(self) -> None:
        self.lane.close()


def load(built: BuiltModel, choice: Choice, settings: Settings) -> LoadedModel:
    """Open a built model's graphs on `choice` and give it a lane sized for this machine.

    Small models run on one thread each, as many at a time as there are cores; styles take all cores for one picture.
    Raises DeviceUnavailable when VISION_DEVICE=cuda and onnxruntime fell back to another provider.
    """
    spec, cores = built.spec, settings.cores or usable_cores()
    painter = spec.task == "stylize"
    threads = settings.threads or (cores if painter else 1)
    workers = 1 if painter else settings.parallel or cores
    sessions: dict[str, Session] = {
        graph: OrtSession(path, choice, threads=threads, keep_memory=not painter) for graph, path in built.graphs.items()
    }
    fallen = {session.provider for session in sessions.values()} - {choice.provider}
    if settings.device == "cuda" and fallen:
        raise DeviceUnavailable(
            f"VISION_DEVICE=cuda, but {spec.name} was put on {', '.join(fallen)}; `vision-service doctor` says more"
        )

    def run(graph: str, feeds: Tensors) -> Tensors:
        return sessions[graph].run(feeds)

    on_gpu = choice.provider != "CPUExecutionProvider"
    lane = Lane(
        spec.name,
        run,
        workers=1 if on_gpu else workers,
        queue_length=settings.queue_length,
        max_batch=spec.batching.max_batch if on_gpu else 1,  # on a CPU batching gains nothing
    )
    return LoadedModel(spec, sessions, built.digest, lane, built.folder, choice.note)
