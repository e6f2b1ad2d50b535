"""The trainable decoder g_phi: PDAE's gradient estimator on top of the frozen encoder (arXiv 2212.12990,
section 4.2).
"""

from __future__ import annotations

from torch import Tensor, nn

from diffsiam.layers import Embedding
from diffsiam.unet import (
    Features,
    OutputHead,
    UNet,
    UNetConfig,
    defer_sums,
    middle_blocks,
    output_blocks,
    run_output_blocks,
)


class Decoder(nn.Module):
    """G(x_t, z_bar, t), an image-shaped estimate of grad log p(z_bar | x_t), which is exactly 0 at the start
    (zero output conv).

    It mirrors the frozen U-Net's middle and output blocks, reads the frozen encoder's skips and time
    embedding, and modulates every residual block by z after t.

    Args:
        config: architecture of the frozen U-Net.
        dim: d, length of z.
        dropout: in the decoder's residual blocks, while training.
    """

    def __init__(self, config: UNetConfig, dim: int, dropout: float = 0.0):
        super().__init__()
        self.label_emb = nn.Linear(dim, config.embedding_channels)
        self.shift_middle_block = middle_blocks(config, dropout, conditioned=True)
        self.shift_output_blocks = output_blocks(config, dropout, conditioned=True)
        self.shift_out = OutputHead(config.widths()[0], 3, config.norm)
        defer_sums((*self.shift_output_blocks[-1].children(), self.shift_out))

    def forward(self, features: Features, z_bar: Tensor) -> Tensor:
        """Features of the frozen encoder and z_bar (B, d) -> G (B, 3, H, W)."""
        return self.decode_embedded(features, self.label_emb(z_bar))

    def decode_embedded(self, features: Features, z: Embedding) -> Tensor:
        """:meth:`forward` with the embedding of z_bar already there."""
        h = self.shift_middle_block(features.skips[-1], features.time, z)
        return self.shift_out(run_output_blocks(self.shift_output_blocks, h, features, z))

    def start_from(self, frozen: UNet) -> None:
        """Copy the frozen middle and output blocks (``decoder.init = frozen``); the z layers and the zero
        output conv stay as they are.
        """
        self.shift_middle_block.load_state_dict(frozen.middle_block.state_dict(), strict=False)
        self.shift_output_blocks.load_state_dict(frozen.output_blocks.state_dict(), strict=False)
        self.shift_out[0].load_state_dict(frozen.out[0].state_dict())
