"""One run from its config: build, say what will happen, train, report."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffsiam.objective import DiffSiam
from diffsiam.subsets import profile_boundaries
from diffsiam.unet import UNet
from diffsiam.weights import Parts
from engine import checkpoint, faults, screen
from engine.build import build_frozen, build_schedule, build_subsets
from engine.config import Config
from engine.config_checks import micro_batch
from engine.config_file import cautions, dump
from engine.data import resident
from engine.data.broken import Quarantine
from engine.data.fetching import fetch
from engine.data.held_out import split
from engine.data.pipeline import route
from engine.data.source import Source
from engine.data.sources import open_source
from engine.errors import UsageError
from engine.hang import HangWatch
from engine.loop import train, watch_for_hangs, zero_stage
from engine.parallel import Ranks, naming_the_lost, ranks_here, start_ranks
from engine.preempt import Interrupted, Preemption
from engine.published import demand_same_file, read_frozen, record
from engine.report import rooms
from engine.report.live import write_page
from engine.report.started import write_started
from engine.resume import check_resumable
from engine.runlock import run_lock
from engine.step import Policy, choose_policy, is_of_compiling, prepare_frozen
from engine.tasks import Pretraining, Representation, Task
from engine.together import reading

LATER_SECONDS = 60.0


def run(config: Config) -> bool:
    """Train what the config describes, from its newest checkpoint if there is one, and report. Returns
    whether it is done; False: it was asked to stop.

    The process group stays up for another run in this process; :func:`engine.parallel.stop_ranks` ends it.

    Raises:
        UsageError, DataError, CheckpointError, NumericsError, RankError: see :mod:`engine.errors`.
    """
    data = config.data
    with Preemption() as preemption, ExitStack() as stack:
        whole = open_source(data.source, data.path, data.px, config.seed, data.count, data.split)
        source, held_out = split(whole, data.held_out)
        # A collective fails after the watch has said where this rank is.
        ranks = start_ranks(max(config.run.timeout, config.run.timeout_slow) + LATER_SECONDS)
        micro_batch(config, ranks.world)
        stack.enter_context(naming_the_lost(ranks))
        hang = stack.enter_context(watch_for_hangs(config, ranks))
        _lock(stack, _run_dir(config), ranks)
        return _train_and_report(config, source, held_out, ranks, preemption, hang)


def _lock(stack: ExitStack, run_dir: Path, ranks: Ranks) -> None:
    """Hold the run's lock on rank 0 until ``stack`` closes; where it is refused, every rank leaves."""
    refusal = None
    if ranks.is_main:
        try:
            stack.enter_context(run_lock(run_dir))
        except UsageError as error:
            refusal = error
    if ranks.any(refusal is not None):
        raise refusal or UsageError(f"rank 0 could not lock {run_dir}")


def _latest(run_dir: Path, ranks: Ranks) -> checkpoint.Checkpoint | None:
    """The newest checkpoint, which must be the same on all ranks."""
    found = checkpoint.latest(run_dir)
    step = torch.tensor([found.step if found else -1], device=ranks.device)
    if ranks.any(bool(ranks.broadcast(step.clone()) != step)):
        raise UsageError(
            f"not every rank finds the same checkpoint in {run_dir}; run.dir must lie on a file system that "
            "all hosts share"
        )
    return found


def _train_and_report(
    config: Config,
    source: Source,
    held_out: Source | None,
    ranks: Ranks,
    preemption: Preemption,
    hang: HangWatch,
) -> bool:
    faults.point("start")
    run_dir = _run_dir(config)
    data = source.fingerprint() if ranks.is_main else None  # rank 0 writes checkpoints and warnings
    resumed = _latest(run_dir, ranks)
    if resumed:
        check_resumable(resumed, config)
    policy = choose_policy(config, ranks.device, ranks.broadcast)
    parts = read_frozen(config)
    weights = None if parts is None else record(parts)
    if resumed:
        demand_same_file(resumed.state.get("weights"), weights)
    original = build_frozen(config, parts)
    frozen = None if original is None else prepare_frozen(original, policy)

    quarantine = Quarantine(source, config.data.broken, run_dir / "quarantine.jsonl")
    residence = resident.choose(
        config.data.resident, source, config.data.px, _recipe(config), ranks.device, ranks_here(ranks.world)
    )
    boundaries = (
        resumed.stated("boundaries") if resumed else _boundaries(config, frozen, source, ranks, quarantine)
    )
    with reading(ranks):
        kept = _pixels(held_out, config) if ranks.is_main and config.task == "diffusion" else None
    task: Task = (
        Pretraining(config, policy, kept, source.framing)
        if config.task == "diffusion"
        else Representation(config, policy, frozen, boundaries, parts, start=original)
    )
    state = {
        "config": config.to_dict(),
        "boundaries": boundaries,
        "data": data,
        "framing": source.framing,
        "weights": weights,
    }
    if ranks.is_main:
        (run_dir / "config.json").write_text(dump(config))
        rows = _rows(config, source, residence, ranks, policy, resumed, boundaries, parts)
        screen.block(rows, "DiffSiam" if frozen is not None else "training")
        write_started(run_dir, rows, ranks.world)
        for text in cautions(config):
            screen.warn(text)
        if resumed and resumed.stated("data") != data:
            screen.warn(
                "the images are not those of the checkpoint (their names, sizes or number): training goes on "
                "with these, in another order"
            )
        if config.report.factors and frozen is not None:
            with suppress(Interrupted), preemption.interruptible():
                rooms.before(frozen, build_schedule(config).to(ranks.device), config.data.px, run_dir)

    if residence.where != "off":
        there = ranks.device if residence.where == "device" else torch.device("cpu")
        with reading(ranks), suppress(Interrupted), preemption.interruptible():
            source = resident.load(source, config.data.px, there, config.data.threads, quarantine)
    if preemption.agreed(ranks.sum_on_host):
        screen.line("stopped before the first step; run the same command to go on")
        return False
    try:
        average = train(config, task, source, ranks, policy, resumed, state, quarantine, preemption, hang)
    except Exception as error:
        if not (preemption.requested() and is_of_compiling(error)):
            raise
        screen.line("stopped: the request ended compilers too; run the same command to go on as saved")
        return False
    if average is None:
        return False
    if not ranks.is_main:
        return True
    try:
        with hang.phase("reporting"), preemption.interruptible():
            faults.point("report")
            task.export(average, run_dir)
            if isinstance(average, DiffSiam):
                _report(average, config, run_dir, source, ranks)
            if config.report.page and (page := write_page(run_dir)):
                screen.line(f"open in a browser: {page}")
    except Interrupted:
        screen.line("trained and saved, stopped before the report; run the same command for it")
        return False
    screen.line(f"done: {run_dir}/checkpoints, metrics.jsonl" + (", grids/" if config.log.grid_every else ""))
    return True


def _report(average: DiffSiam, config: Config, run_dir: Path, source: Source, ranks: Ranks) -> None:
    """What the config asks to be measured and drawn of a trained encoder."""
    if config.report.factors:
        rooms.after(average, run_dir, config)
    if config.report.explorer and average.decoder is not None:
        _explore(config, run_dir, source, ranks)


def _explore(config: Config, run_dir: Path, source: Source, ranks: Ranks) -> None:
    """The pictures of the report's explorer and, where the images come with labels, the map of them."""
    from engine.report import labels, lattice

    if not lattice.is_affordable(config.data.px, ranks.device):
        screen.line(
            f"report.explorer: at {config.data.px} px it takes a CPU hours; "
            f"`diffsiam report {run_dir} --explorer` makes it all the same"
        )
        return
    lattice.render(run_dir, config.report.guidance_scale)
    if labels.come_with(source):
        labels.measure_labels(run_dir, None)


def _pixels(held_out: Source | None, config: Config) -> Tensor | None:
    """All images that are held out, uint8 (N, px, px, 3)."""
    return (
        None
        if held_out is None
        else torch.from_numpy(
            fetch(
                held_out,
                config.data.px,
                range(len(held_out)),
                quarantine=Quarantine(held_out, config.data.broken),
            )
        )
    )


def _run_dir(config: Config) -> Path:
    assert config.run.dir is not None, "filled in when the config was read"
    return Path(config.run.dir)


def _recipe(config: Config) -> str | None:
    """Of the two views, None where a run makes none."""
    views = config.task == "diffsiam" and config.simsiam.weight > 0
    return config.data.augment if views else None


PROFILE_IMAGES, PROFILE_TIMES = 64, 25


def _boundaries(
    config: Config, frozen: UNet | None, source: Source, ranks: Ranks, quarantine: Quarantine | None = None
) -> list[int] | None:
    """Subset boundaries of choice "profile": given, or measured on the frozen model and the first images; the
    same on every rank.
    """
    if config.subsets.choice != "profile" or frozen is None:
        return None
    if config.subsets.boundaries is not None:
        return list(config.subsets.boundaries)
    from diffsiam.evaluation.profile import error_profile
    from kernels.noise_jump.ref import to_unit_range

    with reading(ranks):
        first = fetch(source, config.data.px, range(min(PROFILE_IMAGES, len(source))), quarantine=quarantine)
    images = torch.from_numpy(first).to(ranks.device)
    times = np.unique(np.linspace(0, config.schedule.steps - 1, PROFILE_TIMES).round().astype(int)).tolist()
    schedule = build_schedule(config).to(ranks.device)
    try:
        error = error_profile(frozen, schedule, to_unit_range(images), config.seed, times)
        boundaries = profile_boundaries(times, error, config.subsets.n, build_subsets(config).times)
    except ValueError as problem:
        raise UsageError(f"subsets.choice=profile: {problem}; use subsets.choice=time_tied") from problem
    return ranks.broadcast(torch.tensor(boundaries, device=ranks.device)).tolist()


def _rows(
    config: Config,
    source: Source,
    residence: resident.Residence,
    ranks: Ranks,
    policy: Policy,
    resumed: checkpoint.Checkpoint | None,
    boundaries: list[int] | None,
    parts: Parts | None,
) -> list[tuple[str, str]]:
    """What will run, for the screen."""
    cuda = ranks.device.type == "cuda"
    device = torch.cuda.get_device_name(ranks.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    world = "1 rank" if ranks.world == 1 else f"{ranks.world} ranks"
    rows = [
        (
            "task",
            f"{config.task}, method {config.method}"
            if config.task == "diffsiam"
            else "diffusion model (pretraining)",
        ),
        (
            "data",
            f"{source.describe()}, "
            + ("" if source.px == config.data.px else f"to {config.data.px} px, ")
            + route(source, config.data.px, _recipe(config), cuda)
            + (f"; data.source={config.data.source} found {source.name}" if config.data.path else ""),
        ),
        ("resident", f"{residence.where}: {residence.reason}"),
        ("device", f"{device}, {world}, ZeRO {zero_stage(config, ranks)}"),
        *policy.reasons,
        (
            "optimizer",
            f"{config.optimizer.name} (fused), lr {config.optimizer.lr:g}, batch {config.train.batch_size}",
        ),
        (
            "steps",
            f"{resumed.step if resumed else 0} to {config.train.steps}"
            + (f", from {resumed.path}" if resumed else ""),
        ),
        ("run", str(_run_dir(config))),
    ]
    if config.needs_frozen:
        described = "" if parts is None else f", {parts.describe()}"
        rows.insert(2, ("frozen model", f"{config.frozen.weights}{described}"))
    if boundaries is not None:
        rows.insert(
            3, ("subsets", f"{config.subsets.n}, boundaries at t = {', '.join(map(str, boundaries))}")
        )
    return rows
