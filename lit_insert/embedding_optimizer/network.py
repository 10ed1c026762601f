"""The adapter: image tokens of a reference object in, text-conditioning tokens out."""

from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

Feature = Literal["last", "penultimate", "pooled"]
Null = Literal["learned", "zeros", "text_empty"]


class PerceiverLayer(nn.Module):
    """Pre-norm cross-attention from the queries to (tokens ‖ queries), then a feed-forward (Jaegle et al. 2021).

    Args:
        dim: Width of tokens and queries.
        heads: Attention heads.
        ffn_ratio: Hidden width of the feed-forward, in multiples of ``dim``.
    """

    def __init__(self, dim: int, heads: int, ffn_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_tokens = nn.LayerNorm(dim)
        self.norm_queries = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        hidden = int(dim * ffn_ratio)
        self.ffn = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Update queries (B,K,dim) from tokens (B,N,dim)."""
        normed = self.norm_queries(queries)
        context = torch.cat([self.norm_tokens(tokens), normed], dim=1)
        q = self.to_q(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(context).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries = queries + self.to_out(attended)
        return queries + self.ffn(queries)


class LegacyPooling(nn.Module):
    """The 14-tensor adapter of the project this method comes from, so that its ``emb_opt.pt`` loads strictly.

    A linear projection, attention pooling by K queries that are Gaussian noise rather than parameters, and four
    linear layers with ReLU between them. Here the noise is drawn once from ``query_seed``: outputs are
    deterministic and do not depend on the rest of the batch.

    Args:
        input_dim: Width of the image tokens.
        output_dim: Width of the text tokens.
        num_tokens: Number of text tokens K.
        query_seed: Seed of the queries.
    """

    queries: Tensor

    def __init__(self, input_dim: int, output_dim: int, num_tokens: int, query_seed: int) -> None:
        super().__init__()
        self.projection_layer = nn.Linear(input_dim, output_dim)
        self.attention_pooling = nn.MultiheadAttention(output_dim, 8, batch_first=True)
        self.mlp_fc1 = nn.Linear(output_dim, output_dim)
        self.mlp_fc2 = nn.Linear(output_dim, output_dim)
        self.mlp_fc3 = nn.Linear(output_dim, output_dim)
        self.mlp_fc4 = nn.Linear(output_dim, output_dim)
        noise = torch.randn(
            num_tokens, output_dim, generator=torch.Generator().manual_seed(query_seed), device="cpu"
        )
        self.register_buffer("queries", noise, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,N,input_dim) → (B,K,output_dim)."""
        tokens = self.projection_layer(tokens)
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        x, _ = self.attention_pooling(queries, tokens, tokens, need_weights=False)
        for layer in (self.mlp_fc1, self.mlp_fc2, self.mlp_fc3):
            x = layer(x).relu()
        return self.mlp_fc4(x)


class EmbeddingOptimizer(ModelMixin, ConfigMixin):
    """Translate a reference image's CLIP tokens into conditioning tokens for a text-conditioned UNet.

    A perceiver resampler: K learned queries read the N image tokens through ``depth`` cross-attention layers; the
    result is projected and normalised with a learned gain, so that it starts at the scale of text states. It is
    deterministic. ``mode="legacy"`` holds the original project's layers instead.

    It also owns the one *null embedding* that stands for "no object": dropped conditions in training and the
    unconditional rows of guidance in sampling both come from :meth:`null`.

    Args:
        input_dim: Width of the image tokens (1024 for CLIP ViT-L/14).
        output_dim: Width of the text tokens (768 for Stable Diffusion 1.x).
        num_tokens: Number of text tokens produced.
        hidden_dim: Width of the resampler; ``output_dim`` by default.
        depth: Number of perceiver layers.
        heads: Attention heads of the resampler.
        ffn_ratio: Feed-forward width in multiples of ``hidden_dim``.
        feature: Which image tokens are read: "last" or "penultimate" hidden states, or the "pooled" embedding.
        null: "learned", "zeros", or "text_empty" (the text encoder's states of the empty prompt, saved with the
            weights; set by :meth:`set_null`).
        mode: "perceiver" or "legacy".
        query_seed: Seed of the fixed queries in legacy mode.

    Raises:
        ValueError: If a choice is unknown or ``heads`` does not divide ``hidden_dim``.
    """

    null_embedding: Tensor

    @register_to_config
    def __init__(
        self,
        input_dim: int = 1024,
        output_dim: int = 768,
        num_tokens: int = 77,
        hidden_dim: int | None = None,
        depth: int = 2,
        heads: int = 12,
        ffn_ratio: float = 4.0,
        feature: Feature = "last",
        null: Null = "learned",
        mode: Literal["perceiver", "legacy"] = "perceiver",
        query_seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("feature", feature, ("last", "penultimate", "pooled")),
            ("null", null, ("learned", "zeros", "text_empty")),
            ("mode", mode, ("perceiver", "legacy")),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; use one of {', '.join(choices)}")
        hidden = hidden_dim or output_dim
        if hidden % heads and mode == "perceiver":
            raise ValueError(f"heads={heads} does not divide hidden_dim={hidden}")
        if mode == "legacy":
            self.legacy = LegacyPooling(input_dim, output_dim, num_tokens, query_seed)
        else:
            self.proj_in = nn.Linear(input_dim, hidden)
            self.queries = nn.Parameter(torch.randn(1, num_tokens, hidden) * 0.02)
            self.layers = nn.ModuleList(PerceiverLayer(hidden, heads, ffn_ratio) for _ in range(depth))
            self.proj_out = nn.Linear(hidden, output_dim)
            self.norm_out = nn.LayerNorm(output_dim)
        empty = torch.zeros(1, num_tokens, output_dim)
        if null == "learned":
            self.null_embedding = nn.Parameter(empty)
        else:
            # A legacy file holds the 14 tensors and nothing else.
            self.register_buffer("null_embedding", empty, persistent=null == "text_empty")

    @property
    def feature(self) -> str:
        """Which image tokens :meth:`encode_image` returns."""
        return str(self.config["feature"])

    def forward(self, image_tokens: Tensor) -> Tensor:
        """Map image tokens (B, N, input_dim) to conditioning tokens (B, num_tokens, output_dim)."""
        if self.config["mode"] == "legacy":
            return self.legacy(image_tokens)
        tokens = self.proj_in(image_tokens)
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        for layer in self.layers:
            queries = layer(queries, tokens)
        return self.norm_out(self.proj_out(queries))

    def null(self, batch_size: int) -> Tensor:
        """The embedding of "no object", (batch_size, num_tokens, output_dim)."""
        return self.null_embedding.expand(batch_size, -1, -1)

    @torch.no_grad()
    def set_null(self, states: Tensor) -> None:
        """Store states (1, num_tokens, output_dim) as the null embedding.

        Raises:
            ValueError: If the shape differs.
        """
        if states.shape != self.null_embedding.shape:
            raise ValueError(
                f"null states have shape {tuple(states.shape)}, not {tuple(self.null_embedding.shape)}"
            )
        self.null_embedding.copy_(states)

    def encode_image(self, image_encoder: nn.Module, pixel_values: Tensor) -> Tensor:
        """Image tokens of the kind this adapter reads.

        Args:
            image_encoder: A CLIP vision model.
            pixel_values: (B, 3, S, S), CLIP-normalised.

        Returns:
            (B, N, D): N = 1 + patches for "last" and "penultimate", 1 for "pooled".
        """
        out = image_encoder(pixel_values, output_hidden_states=self.feature == "penultimate")
        if self.feature == "last":
            return out.last_hidden_state
        if self.feature == "penultimate":
            return out.hidden_states[-2]
        pooled = out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output
        return pooled[:, None]
