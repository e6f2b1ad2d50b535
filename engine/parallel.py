"""Ranks, and the adapter to DeepSpeed: the only module that knows either.

Training state leaves and enters here as full, unsharded float32 tensors by name, whatever the ZeRO stage, so
that a checkpoint resumes at any world size and stage. Parameters stay float32 under torch_autocast; only
computation is bfloat16.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.errors import CheckpointError, RankError
from engine.host_memory import keep_freed_memory
from engine.numerics import Statistics, not_finite
from engine.optimizer import Adam, lay_out
from engine.peers import Peer, is_of_ranks, lost, this_process
from engine.sync_norm import synchronise_batch_norm

# Adam's and SGD's per-parameter state, as torch names it.
OPTIMIZER_STATE = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
BUCKET = 10_000_000  # elements; enough to hide a launch, and DeepSpeed's own half a billion takes 2 GB each


@dataclass(frozen=True)
class Ranks:
    """This process' place among the processes of the run."""

    rank: int
    world: int
    device: torch.device
    host_group: dist.ProcessGroup | None = None  # gloo, for CPU tensors
    peers: tuple[Peer, ...] = ()  # the processes of all ranks

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_on_host(self, tensor: Tensor) -> Tensor:
        """A CPU tensor summed over all ranks without waiting for a device, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.host_group)
        return tensor

    def worst(self, tensor: Tensor) -> Tensor:
        """The largest value over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def gathered(self, values: list[float]) -> Tensor:
        """Numbers of every rank on every rank: float64 (world, len(values)), on the host."""
        table = torch.zeros(self.world, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        return self.sum_on_host(table)

    def any(self, here: bool) -> bool:
        """Whether something holds on any rank: the same answer on all (collective)."""
        return bool(self.sum_on_host(torch.tensor([float(here)])).item())

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor on every rank, in place."""
        if self.world > 1:
            dist.broadcast(tensor, 0)
        return tensor


def ranks_here(world: int) -> int:
    """How many of ``world`` ranks share this host; all, where the launcher does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world))


START_SECONDS = 600.0  # for all ranks to arrive


def start_ranks(timeout: float = START_SECONDS) -> Ranks:
    """Join the process group that the launcher prepared; without a launcher this is the only rank.

    Args:
        timeout: seconds that a collective may take before it fails.

    Raises:
        RankError: not all ranks arrived.
    """
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
        )
    cuda = torch.cuda.is_available()
    if not cuda:
        keep_freed_memory()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # A shared-memory all-reduce that DeepSpeed compiles at start-up where it finds a compiler: seconds on
    # every new machine, and training does not use it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    limit = timedelta(seconds=timeout)
    try:
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", timeout=limit, verbose=False)
    except RuntimeError as error:
        if not is_of_ranks(error):
            raise
        said = " ".join(str(error).split())
        raise RankError(f"not all {os.environ['WORLD_SIZE']} ranks arrived: {said[:200]}") from error
    if not cuda and "OMP_NUM_THREADS" not in os.environ:
        # Each rank would start a thread per core, and they would wait for each other.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here(dist.get_world_size())))
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    world = dist.get_world_size()
    # On CPU the default group is gloo already.
    host_group = dist.new_group(backend="gloo", timeout=limit) if cuda and world > 1 else None
    assert not isinstance(host_group, int), "every rank is a member"
    peers: list[Any] = [this_process()] * world
    if world > 1:
        dist.all_gather_object(peers, this_process(), group=host_group)
    return Ranks(dist.get_rank(), world, device, host_group, tuple(peers))


@contextmanager
def naming_the_lost(ranks: Ranks) -> Iterator[None]:
    """Around everything that talks to other ranks.

    Raises:
        RankError: one of them is gone or stopped, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or not is_of_ranks(error):
            raise
        raise lost(error, ranks.rank, ranks.peers) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop_ranks() -> None:
    """Leave the process group, so that the interpreter ends without waiting for peers. DeepSpeed keeps what
    it saw of the group: a process joins one only.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def bucket_elements(module: nn.Module) -> int:
    """Elements of the buckets in which gradients are reduced, which are allocated whole: no more than there
    are gradients, and no less than the largest of them.
    """
    sizes = [p.numel() for p in module.parameters() if p.requires_grad]
    return min(sum(sizes), max(BUCKET, *sizes))


class Trainer:
    """A module, its optimizer and DeepSpeed's engine around both.

    Args:
        module: everything trainable. It is moved to the device; on several ranks its batch norms are
            synchronised.
        optimizer: "adam" or "sgd", with ``options`` for its constructor (without parameters).
        micro_batch, accumulation: images of one forward pass on this rank, and passes per optimizer step.
        zero: ZeRO stage 0..3.
        autocast: compute dtype, or None for float32.
        grad_clip: largest global gradient norm, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: str,
        options: dict[str, Any],
        ranks: Ranks,
        micro_batch: int,
        accumulation: int = 1,
        zero: int = 0,
        autocast: torch.dtype | None = None,
        grad_clip: float | None = None,
    ):
        import deepspeed

        self.kind, self.zero, self.ranks = optimizer, zero, ranks
        module.to(ranks.device)
        if ranks.world > 1:
            module = synchronise_batch_norm(module)
        parameters = [p for p in module.parameters() if p.requires_grad]
        # Fused: one launch a group instead of several a tensor. ZeRO flattens the parameters, which torch's
        # optimizers do not mind.
        make = {"adam": Adam, "sgd": torch.optim.SGD}[optimizer]
        settings = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": grad_clip or 0.0,
            "zero_optimization": {
                "stage": zero,
                "overlap_comm": zero > 0,
                "reduce_bucket_size": bucket_elements(module),
                "allgather_bucket_size": BUCKET,
            },
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {
                "enabled": autocast is not None,
                "dtype": str(autocast or torch.bfloat16).removeprefix("torch."),
            },
            "steps_per_print": 1 << 62,
        }
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=make(parameters, fused=True, **options),
            model_parameters=parameters,
            config=settings,
        )
        if zero == 0 and optimizer == "adam":
            lay_out(self.module)
        if ranks.world == 1:
            # At stage 0 DeepSpeed copies every gradient to and fro to average it with nobody.
            self.engine.enable_backward_allreduce = zero > 0
        # Torch's optimizers take a tensor that makes their kernels change nothing; DeepSpeed wraps them.
        self._inner = self.optimizer if zero == 0 else self.optimizer.optimizer
        self._statistics = Statistics(self.module)
        self._not_finite = torch.zeros((), device=ranks.device)
        # Now and not at the first step, which may be skipped: torch would take uninitialised memory for it.
        self._create_optimizer_state()

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro-batch; DeepSpeed divides by the accumulation and averages over ranks."""
        self._not_finite += ~loss.detach().isfinite()
        self.engine.backward(loss)

    def step(self) -> Tensor | None:
        """Update the parameters if this was the last micro-batch of its step.

        Returns:
            0-d on the device, not 0 where the update was left out on all ranks since a loss or a gradient of
            some rank is not finite; nobody has waited for it. None before the last micro-batch.
        """
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()
            return None
        skipped, self._not_finite = self._not_finite, torch.zeros_like(self._not_finite)
        if self.zero == 0:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            skipped = skipped + not_finite(gradients)
        skipped = self.ranks.worst(skipped).clamp(max=1.0)
        self._inner.found_inf = skipped
        self.engine.step()
        if self.zero > 0 and self.optimizer.overflow:  # DeepSpeed read the norm of the gradients itself
            skipped = torch.ones_like(skipped)
        self._statistics.settle(skipped)
        return skipped

    def local_parameters(self) -> dict[str, Tensor]:
        """What this rank holds of every parameter: all of it below ZeRO stage 3, its flat partition there."""
        return {name: getattr(p, "ds_tensor", p) for name, p in self.module.named_parameters()}

    def full_model(self) -> dict[str, Tensor]:
        """All parameters and buffers in float32, unsharded, on every rank (collective)."""
        return {**self._gathered(self.local_parameters()), **dict(self.module.named_buffers())}

    def full_like_parameters(self, local: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unshard tensors that follow :meth:`local_parameters` (such as their average); others pass
        (collective).
        """
        return self._gathered(local)

    def _gathered(self, local: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.zero < 3:
            return {name: tensor.detach() for name, tensor in local.items()}
        full = {}
        shapes = {name: _sharded(p).ds_shape for name, p in self.module.named_parameters()}
        for name, part in local.items():
            if name not in shapes:
                full[name] = part.detach()
                continue
            parts = [torch.empty_like(part) for _ in range(self.ranks.world)]
            dist.all_gather(parts, part.detach().contiguous())
            full[name] = torch.cat(parts)[: shapes[name].numel()].view(shapes[name])
        return full

    def local_like_parameters(self, full: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`full_like_parameters`: what this rank keeps of full tensors."""
        if self.zero < 3:
            return full
        parameters = dict(self.module.named_parameters())
        return {
            name: self._local(parameters[name], tensor) if name in parameters else tensor
            for name, tensor in full.items()
        }

    def _local(self, parameter: nn.Parameter, full: Tensor) -> Tensor:
        """This rank's flat partition of a full value under ZeRO stage 3, the last one filled up with 0."""
        size = _sharded(parameter).ds_tensor.numel()
        part = full.flatten()[self.ranks.rank * size : (self.ranks.rank + 1) * size]
        return torch.cat((part, part.new_zeros(size - part.numel())))

    def full_optimizer(self) -> dict[str, Tensor]:
        """The optimizer's state as "parameter/state" -> full float32 tensor, on every rank (collective)."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state = {}
        for name, p in self.module.named_parameters():
            for key in OPTIMIZER_STATE[self.kind]:
                value = (
                    self.optimizer.state[p][key] if self.zero == 0 else safe_get_full_optimizer_state(p, key)
                )
                state[f"{name}/{key}"] = value.detach()
        return state

    def load_optimizer(self, state: dict[str, Tensor], updates: int) -> None:
        """Restore what :meth:`full_optimizer` gave after so many updates: steps without those left out.

        Raises:
            CheckpointError: the state is that of other parameters.
        """
        keys = OPTIMIZER_STATE[self.kind]
        for name, p in self.module.named_parameters():
            for key in keys:
                value = state.get(f"{name}/{key}")
                shape = getattr(p, "ds_shape", p.shape)
                if value is None or value.shape != shape:
                    raise CheckpointError(
                        f"optimizer state {name}/{key} is missing or has another shape than {tuple(shape)}"
                    )
                self._set_optimizer_state(p, key, value.to(self.ranks.device))
        if self.kind == "adam":
            for held in self._inner.state.values():
                held["step"].fill_(updates)

    def _set_optimizer_state(self, p: nn.Parameter, key: str, value: Tensor) -> None:
        """One parameter's state from its full value."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.zero == 0:
            self.optimizer.state[p][key].copy_(value)
        elif self.zero < 3:
            safe_set_full_optimizer_state(p, value, key)
        else:
            # DeepSpeed's setter of full values reads past their end where the ranks do not divide them.
            safe_set_local_optimizer_state(p, self._local(p, value), key)

    def _create_optimizer_state(self) -> None:
        """Zeros, as torch's optimizers take at their first step; a resumed one needs them before."""
        for p in self._updated():
            self._inner.state[p] = {key: torch.zeros_like(p) for key in OPTIMIZER_STATE[self.kind]}
            if self.kind == "adam":
                self._inner.state[p]["step"] = torch.zeros((), device=p.device)
        if self.zero in (1, 2):
            # Ties each parameter to its slice of the flat state, once.
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _updated(self) -> list[Tensor]:
        """The tensors on this rank that torch's optimizer updates: the parameters, or flat float32 copies of
        this rank's partition of them.
        """
        if self.zero == 0:
            return list(self.module.parameters())
        if self.zero < 3:
            return list(self.optimizer.single_partition_of_fp32_groups)
        return list(self.optimizer.fp32_partitioned_groups_flat)

    def optimizer_bytes(self) -> int:
        """What the optimizer keeps on this rank after a step: its state and, from ZeRO stage 1, a float32
        copy of the weights that it updates.
        """
        held = self._updated()
        state = [value for p in held for value in self._inner.state[p].values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in (*state, *(held if self.zero else ())))


def _sharded(parameter: nn.Parameter) -> Any:
    """A parameter under ZeRO stage 3, which has a ``ds_shape`` and this rank's part as ``ds_tensor``."""
    return parameter
