"""The adapter: image tokens of a reference object in, text-conditioning tokens out."""

from typing import Literal, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from lit_insert.embedding_optimizer.ip_adapter import IPAdapter

Mode = Literal["perceiver", "legacy", "ip", "ip_plus"]
Feature = Literal["last", "penultimate", "pooled"]
NullKind = Literal["learned", "zeros", "text_empty"]


class _Defaults(NamedTuple):
    feature: Feature
    num_tokens: int
    depth: int
    null_kind: NullKind


DEFAULTS: dict[str, _Defaults] = {
    "perceiver": _Defaults("last", 77, 2, "learned"),
    "legacy": _Defaults("last", 77, 2, "zeros"),
    "ip": _Defaults("pooled", 4, 2, "text_empty"),
    "ip_plus": _Defaults("penultimate", 16, 4, "text_empty"),
}


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
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

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
        noise = torch.randn(num_tokens, output_dim, generator=torch.Generator().manual_seed(query_seed), device="cpu")
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

    Modes:

    * ``perceiver``: a resampler; K learned queries read the N image tokens through ``depth`` cross-attention
      layers, and the result is projected and normalised with a learned gain, so that it starts at the scale of
      text states. It is deterministic.
    * ``legacy``: the 14 tensors of the project that this method comes from.
    * ``ip``, ``ip_plus``: an IP-Adapter. The tokens are those of the empty prompt followed by the image's, which
      the UNet meets with keys and values of their own once :meth:`attach` has been called.

    It also owns the one *null embedding* that stands for "no object": dropped conditions in training and the
    unconditional rows of guidance in sampling both come from :meth:`null`.

    Args:
        input_dim: Width of the image tokens (1024 for CLIP ViT-L/14; 768 for its pooled embedding).
        output_dim: Width of the text tokens (768 for Stable Diffusion 1.x).
        num_tokens: Number of tokens produced from the image; 77 by default, 4 for "ip" and 16 for "ip_plus".
        hidden_dim: Width of the resampler; ``output_dim`` by default.
        depth: Number of resampler layers; 2 by default, 4 for "ip_plus".
        heads: Attention heads of the resampler; for "ip_plus" they are 64 wide.
        ffn_ratio: Feed-forward width in multiples of ``hidden_dim``.
        feature: Which image tokens are read: "last" or "penultimate" hidden states, or the "pooled" embedding;
            by default "last", for "ip" pooled and for "ip_plus" penultimate.
        null_kind: What "no object" is: "learned", "zeros", or "text_empty" (the text encoder's states of the empty
            prompt, saved with the weights; set by :meth:`set_null`). Learned by default, for "legacy" zeros, for
            the ip modes text_empty.
        mode: "perceiver", "legacy", "ip" or "ip_plus".
        query_seed: Seed of the fixed queries in legacy mode.
        layer_dims: Widths of the UNet's cross-attention layers, for the ip modes.
        text_tokens: Number of empty-prompt tokens before the image's, for the ip modes.
        input_tokens: Number of image tokens read, for "ip_plus" (257 for CLIP ViT-L/14).

    Raises:
        ValueError: If a choice is unknown, does not fit the mode, or ``heads`` does not divide ``hidden_dim``.
    """

    null_embedding: Tensor
    null_features: Tensor

    @register_to_config
    def __init__(
        self,
        input_dim: int = 1024,
        output_dim: int = 768,
        num_tokens: int | None = None,
        hidden_dim: int | None = None,
        depth: int | None = None,
        heads: int = 12,
        ffn_ratio: float = 4.0,
        feature: Feature | None = None,
        null_kind: NullKind | None = None,
        mode: Mode = "perceiver",
        query_seed: int = 0,
        layer_dims: list[int] | None = None,
        text_tokens: int = 77,
        input_tokens: int = 257,
    ) -> None:
        super().__init__()
        _check("mode", mode, tuple(DEFAULTS))
        feature = feature or DEFAULTS[mode].feature
        null_kind = null_kind or DEFAULTS[mode].null_kind
        num_tokens, depth = num_tokens or DEFAULTS[mode].num_tokens, depth or DEFAULTS[mode].depth
        _check("feature", feature, ("last", "penultimate", "pooled"))
        _check("null_kind", null_kind, ("learned", "zeros", "text_empty"))
        self.register_to_config(feature=feature, null_kind=null_kind, num_tokens=num_tokens, depth=depth)
        hidden = hidden_dim or output_dim
        decoupled = mode in ("ip", "ip_plus")
        if mode == "legacy":
            self.legacy = LegacyPooling(input_dim, output_dim, num_tokens, query_seed)
        elif decoupled:
            if null_kind != "text_empty":
                raise ValueError(
                    f"null_kind is {null_kind!r}; mode {mode} keeps the empty prompt's states: use text_empty"
                )
            if (feature == "pooled") != (mode == "ip"):
                raise ValueError(f"feature is {feature!r}; mode ip reads pooled, ip_plus last or penultimate")
            self.ip = IPAdapter(
                input_dim, output_dim, num_tokens, layer_dims or [], mode == "ip_plus", hidden, depth, heads, ffn_ratio
            )
            # What stands for "no image": zeros for the pooled embedding; plus takes an all-zero picture's states.
            length = input_tokens if mode == "ip_plus" else 1
            self.register_buffer("null_features", torch.zeros(1, length, input_dim))
        else:
            if hidden % heads:
                raise ValueError(f"heads={heads} does not divide hidden_dim={hidden}")
            self.proj_in = nn.Linear(input_dim, hidden)
            self.queries = nn.Parameter(torch.randn(1, num_tokens, hidden) * 0.02)
            self.layers = nn.ModuleList(PerceiverLayer(hidden, heads, ffn_ratio) for _ in range(depth))
            self.proj_out = nn.Linear(hidden, output_dim)
            self.norm_out = nn.LayerNorm(output_dim)
        empty = torch.zeros(1, text_tokens if decoupled else num_tokens, output_dim)
        if null_kind == "learned":
            self.null_embedding = nn.Parameter(empty)
        else:
            # A legacy file holds the 14 tensors and nothing else.
            self.register_buffer("null_embedding", empty, persistent=null_kind == "text_empty")

    @property
    def feature(self) -> str:
        """Which image tokens :meth:`encode_image` returns."""
        return str(self.config["feature"])

    @property
    def is_ip_adapter(self) -> bool:
        """Whether the UNet needs :meth:`attach` before it can read the tokens."""
        return self.config["mode"] in ("ip", "ip_plus")

    def forward(self, image_tokens: Tensor) -> Tensor:
        """Map image tokens (B, N, input_dim) to conditioning tokens (B, K, output_dim).

        K is ``num_tokens``, in the ip modes ``text_tokens + num_tokens``.
        """
        if self.config["mode"] == "legacy":
            return self.legacy(image_tokens)
        if self.is_ip_adapter:
            image = self.ip(image_tokens)
            text = self.null_embedding.to(image.dtype).expand(len(image), -1, -1)
            return torch.cat([text, image], dim=1)
        tokens = self.proj_in(image_tokens)
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        for layer in self.layers:
            queries = layer(queries, tokens)
        return self.norm_out(self.proj_out(queries))

    def null(self, batch_size: int) -> Tensor:
        """The embedding of "no object", (batch_size, K, output_dim)."""
        null = self(self.null_features) if self.is_ip_adapter else self.null_embedding
        return null.expand(batch_size, -1, -1)

    @torch.no_grad()
    def set_null(self, states: Tensor) -> None:
        """Store states (1, K, output_dim) as the null embedding; in the ip modes, (1, text_tokens, output_dim).

        Raises:
            ValueError: If the shape differs.
        """
        if states.shape != self.null_embedding.shape:
            raise ValueError(f"null states have shape {tuple(states.shape)}, not {tuple(self.null_embedding.shape)}")
        self.null_embedding.copy_(states)

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Let a UNet read this adapter's tokens; only the ip modes have anything to do.

        Raises:
            ValueError: If the UNet's cross-attention is not what the adapter was made for.
        """
        if self.is_ip_adapter:
            self.ip.attach(unet)

    def set_scale(self, scale: float) -> None:
        """Strength λ of the image in the ip modes: 1 as trained, 0 as if there were no adapter.

        Raises:
            ValueError: In another mode.
        """
        if not self.is_ip_adapter:
            raise ValueError(f"mode {self.config['mode']} has no scale; only the ip modes do")
        self.ip.scale = float(scale)

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


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(choices)}")
