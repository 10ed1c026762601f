"""The diffusion transformer with a wide shallow head, DiT^DH (Zheng et al. 2025), pure torch on diffusers' bricks."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import (
    GaussianFourierProjection,
    TimestepEmbedding,
    apply_rotary_emb,
    get_1d_rotary_pos_embed,
    get_2d_sincos_pos_embed,
)
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.nn import functional as F

from lit_insert.errors import InputError

EPS = 1e-6
FREQUENCIES = 256
Rotation = tuple[Tensor, Tensor]


def rotations(head_dim: int, grid: int) -> Rotation:
    """Cosines and sines of a 2-D rotary embedding, each (grid², head_dim): rows turn the first half, columns the rest.

    Diffusers' own two-dimensional function puts the columns first; published weights have it this way round.
    """
    cos, sin = get_1d_rotary_pos_embed(head_dim // 2, torch.arange(grid, dtype=torch.float32), use_real=True)

    def both(table: Tensor) -> Tensor:
        rows, columns = table[:, None].expand(-1, grid, -1), table[None].expand(grid, -1, -1)
        return torch.cat([rows, columns], -1).reshape(grid * grid, head_dim)

    return both(cos), both(sin)


class SwiGLU(nn.Module):
    """Gated feed-forward: the first half of ``w12``, through SiLU, times the second.

    Args:
        width: Of the tokens.
        hidden: Of each half.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,L,D) to (N,L,D)."""
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class SelfAttention(nn.Module):
    """Multi-head attention with rotary positions, a bias on q, k and v, and no norm on them.

    Args:
        width: Of the tokens.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(N,L,D) to (N,L,D)."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = apply_rotary_emb(q, rotation), apply_rotary_emb(k, rotation)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(n, length, width))


class DiTBlock(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by a condition; zero gates at the start.

    Args:
        width: Of the tokens and of the condition.
        heads: Attention heads.
        mlp_ratio: 3/2 of the feed-forward's hidden width over the tokens' (it has three matrices instead of two).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, EPS)
        self.attn = SelfAttention(width, heads)
        self.norm2 = RMSNorm(width, EPS)
        self.mlp = SwiGLU(width, int(2 / 3 * int(width * mlp_ratio)))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, rotation: Rotation) -> Tensor:
        """Tokens (N,L,D); condition (N,1,D) for all tokens alike or (N,L,D) for each."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(6, -1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rotation)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiTDH(ModelMixin, ConfigMixin):
    """Velocity v(x_t, t, class) of a flow over feature maps (Zheng et al. 2025, "DiT^DH").

    A deep narrow encoder turns the noisy map, the time and the class into a condition for every token; a wide shallow
    head, which sees the noisy map too, makes the velocity from it.

    Args:
        sample_size: Side of the feature map.
        in_channels: Its channels C.
        num_classes: Number of classes; one more row of the table stands for "no class". 0 for none.
        encoder_width: Width of the encoder's tokens.
        encoder_layers: Its blocks.
        encoder_heads: Its attention heads.
        head_width: Width of the head's tokens; at least C, or the network cannot fit even one picture.
        head_layers: Its blocks.
        head_heads: Its attention heads.
        mlp_ratio: Size of the feed-forwards; see `DiTBlock`.

    Raises:
        InputError: If the head is narrower than C, or a width does not divide.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("DiTBlock",)
    rotation_parts: tuple[str, ...] = ("encoder_cos", "encoder_sin", "head_cos", "head_sin")
    position: Tensor

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        in_channels: int = 768,
        num_classes: int = 1000,
        encoder_width: int = 1152,
        encoder_layers: int = 28,
        encoder_heads: int = 16,
        head_width: int = 2048,
        head_layers: int = 2,
        head_heads: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if head_width < in_channels:
            raise InputError(
                f"head_width is {head_width}, less than the latent's {in_channels} channels; such a head cannot fit "
                f"even one picture: give {in_channels} or more"
            )
        for name, width, heads in (("encoder", encoder_width, encoder_heads), ("head", head_width, head_heads)):
            if width % (4 * heads):
                raise InputError(f"{name}_width {width} is no multiple of four times {name}_heads ({heads})")
        self.x_embedder = nn.Conv2d(in_channels, head_width, 1)
        self.s_embedder = nn.Conv2d(in_channels, encoder_width, 1)
        self.time_proj = GaussianFourierProjection(FREQUENCIES, scale=1.0, log=False, set_W_to_weight=False)
        self.time_embedding = TimestepEmbedding(2 * FREQUENCIES, encoder_width)
        self.class_embedding = nn.Embedding(num_classes + 1, encoder_width)
        self.encoder_blocks = nn.ModuleList(
            DiTBlock(encoder_width, encoder_heads, mlp_ratio) for _ in range(encoder_layers)
        )
        same = encoder_width == head_width
        self.s_projector = nn.Identity() if same else nn.Linear(encoder_width, head_width)
        self.head_blocks = nn.ModuleList(DiTBlock(head_width, head_heads, mlp_ratio) for _ in range(head_layers))
        self.norm_out = RMSNorm(head_width, EPS)
        self.modulation_out = nn.Linear(head_width, 2 * head_width)
        self.proj_out = nn.Linear(head_width, in_channels)
        grid = sample_size
        position = get_2d_sincos_pos_embed(encoder_width, grid, base_size=grid, output_type="pt").float()
        self.register_buffer("position", position[None], persistent=False)
        tables = (*rotations(encoder_width // encoder_heads, grid), *rotations(head_width // head_heads, grid))
        for name, table in zip(self.rotation_parts, tables, strict=True):
            self.register_buffer(name, table, persistent=False)
        self.gradient_checkpointing = False
        self.initialise()

    @property
    def null_class(self) -> int:
        """The row of the class table that stands for "no class"."""
        return int(self.config["num_classes"])

    def initialise(self) -> None:
        """Start as published: all that is added or put out is zero, so that the velocity is 0 everywhere."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_embedding.weight, std=0.02)
        for linear in (self.time_embedding.linear_1, self.time_embedding.linear_2):
            nn.init.normal_(linear.weight, std=0.02)
        blocks = (*self.encoder_blocks, *self.head_blocks)
        for zero in (*(b.modulation for b in blocks), self.modulation_out, self.proj_out):
            for parameter in zero.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        """Predict the velocity e - z.

        Args:
            hidden_states: Noisy features (N,C,S,S), normalised.
            timestep: Times (N,) in [0,1]; 1 is pure noise.
            class_labels: (N,) int64; ``num_classes`` stands for "no class". None: no class for all.
            return_dict: Give an object with ``sample``, else a tuple of it.

        Raises:
            InputError: If the grid or the channels are not the model's.
        """
        n, channels, height, width = hidden_states.shape
        side = self.config["sample_size"]
        if (channels, height, width) != (self.config["in_channels"], side, side):
            raise InputError(
                f"features are {channels}x{height}x{width}; this transformer takes "
                f"{self.config['in_channels']}x{side}x{side}"
            )
        if class_labels is None:
            class_labels = torch.full((n,), self.null_class, device=hidden_states.device)
        time = self.time_embedding(self.time_proj(timestep.float()).to(hidden_states.dtype))
        condition = F.silu(time + self.class_embedding(class_labels))[:, None]
        s = self.s_embedder(hidden_states).flatten(2).transpose(1, 2) + self.position.to(hidden_states.dtype)
        s = self._through(self.encoder_blocks, s, condition, (self.encoder_cos, self.encoder_sin))
        s = self.s_projector(F.silu(time[:, None] + s))
        x = self.x_embedder(hidden_states).flatten(2).transpose(1, 2)
        x = self._through(self.head_blocks, x, s, (self.head_cos, self.head_sin))
        shift, scale = self.modulation_out(F.silu(s)).chunk(2, -1)
        x = self.proj_out(self.norm_out(x) * (1 + scale) + shift)
        sample = x.transpose(1, 2).reshape(n, channels, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _through(self, blocks: nn.ModuleList, x: Tensor, condition: Tensor, rotation: Any) -> Tensor:
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, condition, rotation)
            else:
                x = block(x, condition, rotation)
        return x
