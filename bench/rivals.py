"""The training step as the published loops run it, to be timed beside ours.

Written from the formulas (PDAE, arXiv 2212.12990, Eq. 8-12; SimSiam, arXiv 2011.10566, Alg. 1; thesis Eq.
3.11) in the manner that those loops share: float32, NCHW, eager; attention that materialises its matrix;
adaptive group norm as separate operations; subset masks looked up in tables; one Adam update and one average
per tensor; the loss read by the host in every step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsiam.attention import AttentionBlock, set_attention
from diffsiam.convolution import Conv2d
from diffsiam.decoder import Decoder
from diffsiam.layers import ConvUp, ResBlock
from diffsiam.simsiam import SimSiam
from diffsiam.subsets import Subsets
from diffsiam.unet import OutputHead, UNet
from engine.config import Config


class Draws(NamedTuple):
    """What a step draws: t, level and k, each (B,) int64, and eps (B, 3, H, W)."""

    t: Tensor
    level: Tensor
    k: Tensor
    eps: Tensor


class Rival(ABC):
    """One training step written around the same networks: what all rivals share.

    Args:
        config: of the run; its optimizer, loss weights and rules are followed.
        encoder, decoder, simsiam, frozen: networks on the device, float32, which this object takes over;
            decoder and frozen, or simsiam, are None where the config trains without them.
        subsets: the split of z and the rule for k.
        autocast: compute dtype, None for float32.
    """

    def __init__(
        self,
        config: Config,
        encoder: nn.Module,
        decoder: Decoder | None,
        simsiam: SimSiam | None,
        frozen: UNet | None,
        subsets: Subsets,
        autocast: torch.dtype | None = None,
    ):
        self.config, self.subsets, self.autocast = config, subsets, autocast
        self.encoder, self.decoder, self.simsiam, self.frozen = encoder, decoder, simsiam, frozen
        self.device = next(encoder.parameters()).device
        trained = {"encoder": encoder, "decoder": decoder, "simsiam": simsiam}
        self.module = nn.ModuleDict({name: part for name, part in trained.items() if part is not None})
        for network in self.networks():
            in_published_manner(network)
        self.tables = noise_tables(config, self.device)
        self.seen, self.taught = mask_tables(subsets, self.device)

    optimizer: torch.optim.Optimizer

    def networks(self) -> list[nn.Module]:
        """The trained ones and the frozen one."""
        return [*self.module.values(), *([self.frozen] if self.frozen is not None else [])]

    def make_optimizer(self, **how: bool) -> torch.optim.Optimizer:
        """The config's optimizer in one of torch's implementations (``foreach``, ``fused``)."""
        o, parameters = self.config.optimizer, list(self.module.parameters())
        if o.name == "sgd":
            return torch.optim.SGD(parameters, o.lr, o.momentum, weight_decay=o.weight_decay, **how)
        return torch.optim.Adam(parameters, o.lr, o.betas, weight_decay=o.weight_decay, **how)

    def draw(self, batch: int) -> Draws:
        """Draws of torch's own generator, as published."""
        times, n = self.subsets.times, self.subsets.n
        t = torch.randint(0, times, (batch,), device=self.device)
        free = torch.randint(1, n + 1, (batch,), device=self.device)
        k = free if self.subsets.choice == "random" else self.subsets.at_time(t)
        jump = free if self.subsets.choice == "full" else k
        return Draws(t, t + jump if self.subsets.jump else t, k, self.noise(batch))

    def noise(self, batch: int) -> Tensor:
        """eps of a batch (B, 3, H, W)."""
        px = self.config.data.px
        return torch.randn(batch, 3, px, px, device=self.device)

    def images(self, x: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
        return _images(x)

    def loss(self, x_0: Tensor, views: list[Tensor], draws: Draws) -> Tensor:
        """Thesis Eq. 3.12 for uint8 images (B, H, W, 3), 0-d."""
        with torch.autocast(
            self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None
        ):
            total = torch.zeros((), device=self.device)
            if self.decoder is not None:
                total = total + self.config.loss.weight * self._compensation(self.images(x_0), draws)
            if self.simsiam is not None:
                total = total + self.config.simsiam.weight * self._invariance(*map(self.images, views))
            return total

    def _compensation(self, x_0: Tensor, draws: Draws) -> Tensor:
        assert self.decoder is not None
        assert self.frozen is not None
        time = draws.level if self.config.jump.time == "t_plus_k" else draws.t
        z = self.encoder(x_0)
        z_bar = z.detach() * self.seen[draws.k] + z * self.taught[draws.k]
        a_level, a_time = self._at("alpha_bar", draws.level), self._at("alpha_bar", time)
        x_level = a_level.sqrt() * x_0 + (1 - a_level).sqrt() * draws.eps
        drift, gain = a_level.sqrt() - a_time.sqrt(), (1 - a_level).sqrt()
        target = (drift * x_0 + gain * draws.eps) / (1 - a_time).sqrt()
        features = self.frozen.encode(x_level, time)
        predicted = self.frozen.decode(features) + self._at("shift", time) * self.decoder(features, z_bar)
        return (self._at("weight", time) * (target - predicted) ** 2).mean()

    def _invariance(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        assert self.simsiam is not None
        z_1, z_2 = (self.simsiam.projector(z) for z in self.encoder(torch.cat((view_1, view_2))).chunk(2))
        p_1, p_2 = self.simsiam.predictor(z_1), self.simsiam.predictor(z_2)
        agreement_1 = F.cosine_similarity(p_1.float(), z_2.detach().float(), dim=1).mean()
        agreement_2 = F.cosine_similarity(p_2.float(), z_1.detach().float(), dim=1).mean()
        return -(agreement_1 + agreement_2) / 2

    def _at(self, name: str, t: Tensor) -> Tensor:
        return self.tables[name][t][:, None, None, None]

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss."""
        loss.backward()

    def update(self) -> None:
        """One update of the parameters."""
        if self.config.optimizer.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimizer.grad_clip)
        self.optimizer.step()

    @abstractmethod
    def follow(self) -> None:
        """One update of the parameters' average."""

    @abstractmethod
    def step(self, x_0: Tensor, views: list[Tensor]) -> Tensor | float:
        """Draw, forward, backward, update, average; returns the loss."""

    def state(self) -> list[Tensor]:
        """All tensors that stay from step to step."""
        held = [t for network in self.networks() for t in (*network.parameters(), *network.buffers())]
        moments = [
            t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)
        ]
        return [*held, *moments]


class Published(Rival):
    """The training step in the published manner."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.optimizer = self.make_optimizer(foreach=False, fused=False)
        self.average = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def step(self, x_0: Tensor, views: list[Tensor]) -> float:
        """Draw, forward, backward, update, average; returns the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(x_0, views, self.draw(len(x_0)))
        self.backward(loss)
        self.update()
        self.follow()
        return loss.item()

    def follow(self) -> None:
        decay = self.config.train.ema_decay
        with torch.no_grad():
            for name, value in self.module.named_parameters():
                self.average[name].mul_(decay).add_(value, alpha=1 - decay)
            for name, buffer in self.module.named_buffers():
                self.average[name].copy_(buffer)

    def state(self) -> list[Tensor]:
        return [*super().state(), *self.average.values()]


def _images(x: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], contiguous."""
    return (x.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def noise_tables(config: Config, device: torch.device) -> dict[str, Tensor]:
    """abar_t, s_t and lambda_t for t in 0..T-1, float32."""
    s = config.schedule
    alpha = 1 - torch.linspace(s.beta_start, s.beta_end, s.steps, dtype=torch.float64)
    alpha_bar = alpha.cumprod(0)
    before = torch.cat((torch.ones(1, dtype=torch.float64), alpha_bar[:-1]))
    tables = {
        "alpha_bar": alpha_bar,
        "shift": -alpha.sqrt() * (1 - before) / (1 - alpha_bar).sqrt(),
        # SNR^gamma / (1 + SNR), with SNR = abar / (1 - abar)
        "weight": alpha_bar**config.loss.gamma * (1 - alpha_bar) ** (1 - config.loss.gamma),
    }
    return {name: table.float().to(device) for name, table in tables.items()}


def mask_tables(subsets: Subsets, device: torch.device) -> tuple[Tensor, Tensor]:
    """0/1 tables (n + 1, d) indexed by k: dims of z that are only seen, and dims that are seen and taught."""
    seen = torch.zeros(subsets.n + 1, subsets.ends[-1], device=device)
    taught = torch.zeros_like(seen)
    for k in range(1, subsets.n + 1):
        own = subsets.dims(k)
        taught[k, own] = 1
        if subsets.mask == "hierarchical":
            (seen if subsets.detach else taught)[k, : own.start] = 1
    return seen, taught


def in_published_manner(network: nn.Module) -> None:
    """Let residual blocks, heads, attention and convolutions compute as they were published; their weights
    stay.
    """
    set_attention(network, attend)
    for module in network.modules():
        if isinstance(module, AttentionBlock):
            module.forward = partial(attention, module)  # type: ignore[method-assign]
        if isinstance(module, Conv2d):
            module._conv_forward = partial(nn.Conv2d._conv_forward, module)  # type: ignore[method-assign]
        if isinstance(module, ResBlock):
            module.forward = partial(residual, module)  # type: ignore[method-assign]
        elif isinstance(module, ConvUp):
            module.forward = partial(_upsampled, module.conv)  # type: ignore[method-assign]
        elif isinstance(module, OutputHead):  # its layers one after the other
            module.forward = partial(nn.Sequential.forward, module)  # type: ignore[method-assign]


def _upsampled(conv: nn.Module, x: Tensor) -> Tensor:
    return conv(F.interpolate(x, scale_factor=2))


def attention(block: AttentionBlock, x: Tensor) -> Tensor:
    """Guided diffusion's attention block: 1x1 convolutions over (B, C, tokens)."""
    batch, channels, height, width = x.shape
    heads, order = block.heads, block.new_order
    qkv = F.conv1d(block.norm(x).flatten(2), block.qkv.weight, block.qkv.bias)
    qkv = qkv.view(batch, *((3, heads) if order else (heads, 3)), channels // heads, height * width)
    q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(1 if order else 2))
    h = block.attend(q, k, v).transpose(-1, -2).reshape(batch, channels, height * width)
    return x + F.conv1d(h, block.proj_out.weight, block.proj_out.bias).view(x.shape)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(c)) v for (B, heads, tokens, c), with the matrix in memory."""
    scale = q.shape[-1] ** -0.25
    weight = torch.einsum("bhtc,bhsc->bhts", q * scale, k * scale)
    return torch.einsum("bhts,bhsc->bhtc", weight.float().softmax(-1).to(v.dtype), v)


def residual(block: ResBlock, x: Tensor, time: Tensor, z: Tensor | None = None) -> Tensor:
    """Guided diffusion's residual block with PDAE's second modulation, one operation at a time."""
    h = block.in_layers[1](block.in_layers[0](x))
    if block.resample == "down":
        h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
    elif block.resample == "up":
        h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
    h = block.in_layers[2](h)
    scale, shift = block.emb_layers(time)[:, :, None, None].chunk(2, dim=1)
    h = block.out_layers[0](h) * (1 + scale) + shift
    if z is not None:
        scale, shift = block.emb_z_layers(z)[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return block.skip_connection(x) + block.out_layers[1:](h)
