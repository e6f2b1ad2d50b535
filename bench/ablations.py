"""Our step with one lever less, or with one more that the engine has not pulled: each changes one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import diffsiam.convolution
import diffsiam.objective
import diffsiam.upsampling
import engine.parallel
import engine.step
import kernels.philox
from bench.contenders import Batch, Ours
from diffsiam.attention_routines import attend_sdpa
from diffsiam.layers import Projected, projections
from diffsiam.objective import DiffSiam, Prediction
from engine.ema import Ema
from engine.step import Policy
from kernels.noise_jump.op import noise_jump


def _nothing(_: Any) -> None:
    pass


@dataclass(frozen=True)
class Lever:
    """One change of the step.

    Attributes:
        policy: of the policy that it is built with.
        around: a context in which it is built, and every step computed.
        install: of the step when it is built.
        device: type of the device for which it is one; None: any.
    """

    policy: Callable[[Policy], Policy] = lambda policy: policy
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    install: Callable[[Ours], None] = _nothing
    device: str | None = None


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _views_apart(encoder: Any, view_1: Tensor, view_2: Tensor) -> tuple[Tensor, Tensor]:
    return encoder(view_1), encoder(view_2)


def _read_loss(ours: Ours) -> None:
    step = ours.step

    def reading(batch: Batch) -> Tensor:
        loss = step(batch)
        loss.item()
        return loss

    ours.step = reading  # type: ignore[method-assign]


def _update_each_tensor(ours: Ours) -> None:
    optimizer = ours.trainer.optimizer
    step = optimizer.step
    for group in optimizer.param_groups:
        group.update(fused=False, foreach=False)

    def each(*arguments: Any) -> Any:
        optimizer.found_inf = None  # which only fused kernels take
        return step(*arguments)

    optimizer.step = each


def _average_each_tensor(ours: Ours) -> None:
    ema = ours.ema

    @torch.no_grad()
    def update(step: int) -> None:
        for name, shadow in ema._shadow.items():
            shadow.lerp_(ema._params[name].detach().float(), 1 - ema.decay)
        for name, mirror in ema._mirror.items():
            mirror.copy_(ema._buffers[name])

    assert isinstance(ema, Ema)
    ema.update = update  # type: ignore[method-assign]


def _encode_twice(ours: Ours) -> None:
    """What two networks cost that share no encoder."""
    if (frozen := ours.task.frozen) is not None:
        encode = frozen.encode
        frozen.encode = lambda x, t: [encode(x, t) for _ in range(2)][-1]  # type: ignore[method-assign]


def _with_predict(predict: Callable[[DiffSiam], Any]) -> Callable[[Ours], None]:
    def install(ours: Ours) -> None:
        module = ours.trainer.module
        assert isinstance(module, DiffSiam)
        if module.decoder is not None:
            module.predict = predict(module)  # type: ignore[method-assign]

    return install


def _on_two_streams(module: DiffSiam) -> Callable[..., Prediction]:
    """The frozen decoder beside the trained one. On a CPU there is one stream: one after the other."""
    cuda = next(module.parameters()).is_cuda
    side = torch.cuda.Stream() if cuda else None

    def predict(
        x_0: Tensor, z_bar: Tensor, level: Tensor, time: Tensor, positions: Tensor, seed: int
    ) -> Prediction:
        assert module.decoder is not None
        x_level, eps = noise_jump(x_0, level, module.schedule.alpha_bar, seed, positions)
        with torch.no_grad():
            features = module.frozen.encode(x_level, time)
            if side is not None:
                side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), torch.no_grad():
                eps_theta = module.frozen.decode(features)
        g = module.decoder(features, z_bar)
        if side is not None:
            torch.cuda.current_stream().wait_stream(side)
            eps_theta.record_stream(torch.cuda.current_stream())
        return Prediction(x_level, eps, eps_theta, g)

    return predict


def _from_time_tables(module: DiffSiam) -> Callable[..., Prediction]:
    """The frozen model's time embedding and all its projections looked up, for every t of the schedule."""
    frozen, device = module.frozen, module.schedule.alpha_bar.device
    with torch.no_grad():
        rows = frozen.embed(torch.arange(len(module.schedule.alpha_bar), device=device))
        tables = projections(frozen, "emb_layers", rows)

    def predict(
        x_0: Tensor, z_bar: Tensor, level: Tensor, time: Tensor, positions: Tensor, seed: int
    ) -> Prediction:
        assert module.decoder is not None
        x_level, eps = noise_jump(x_0, level, module.schedule.alpha_bar, seed, positions)
        with torch.no_grad():
            features = frozen.encode_embedded(x_level, Projected(tables, time))
            eps_theta = frozen.decode(features)
        return Prediction(x_level, eps, eps_theta, module.decoder(features._replace(time=rows[time]), z_bar))

    return predict


def _frozen_in_graphs(ours: Ours) -> None:
    """The frozen halves as CUDA graphs, whose results the next step overwrites."""
    frozen, step = ours.task.frozen, ours.step
    if frozen is None:
        return
    for half in ("encode", "decode"):
        original = getattr(frozen, half)
        original = getattr(original, "_torchdynamo_orig_callable", original)
        setattr(frozen, half, torch.compile(original, dynamic=False, mode="reduce-overhead"))

    def marked(batch: Batch) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return step(batch)

    ours.step = marked  # type: ignore[method-assign]


@contextmanager
def _searching_algorithms() -> Iterator[None]:
    with _replaced(torch.backends.cudnn, "benchmark", True):
        yield


ABLATIONS: dict[str, Lever] = {
    "without bf16 frozen weights": Lever(
        policy=lambda policy: replace(policy, frozen_dtype=torch.float32), device="cuda"
    ),
    "without channels_last weights": Lever(around=lambda: _replaced(engine.parallel, "lay_out", _nothing)),
    "without the chosen attention (SDPA)": Lever(policy=lambda policy: replace(policy, attend=attend_sdpa)),
    "without upsampling on the small image": Lever(
        around=lambda: _replaced(diffsiam.upsampling, "_pays", lambda *_: False), device="cpu"
    ),
    "without weight gradients as products": Lever(
        around=lambda: _replaced(diffsiam.convolution, "has_tiles", lambda: False), device="cpu"
    ),
    "without packed frozen weights": Lever(
        around=lambda: _replaced(engine.step, "pack", _nothing), device="cpu"
    ),
    "without draws in a compiled loop": Lever(
        around=lambda: _replaced(kernels.philox, "use_cpu_path", lambda *_: False), device="cpu"
    ),
    "without both views in one pass": Lever(
        around=lambda: _replaced(diffsiam.objective, "encode_views", _views_apart)
    ),
    "without a shared frozen encoder": Lever(install=_encode_twice),
    "without a fused optimizer": Lever(install=_update_each_tensor),
    "without a foreach average": Lever(install=_average_each_tensor),
    "with the loss read in every step": Lever(install=_read_loss),
    "with two streams": Lever(install=_with_predict(_on_two_streams)),
    "with time tables": Lever(install=_with_predict(_from_time_tables)),
    "with cudnn.benchmark": Lever(around=_searching_algorithms, device="cuda"),
    "with the frozen halves in CUDA graphs": Lever(install=_frozen_in_graphs, device="cuda"),
}
# Views that are encoded apart have batch statistics of their own: another loss, by the method's own freedom.
OTHER_LOSS = ("without both views in one pass",)
