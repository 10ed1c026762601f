"""IP-Adapter (Ye et al. 2023): the image's tokens get keys and values of their own, beside the text's.

Each cross-attention layer computes attn(Q, K_text, V_text) + λ·attn(Q, K_image, V_image) (equation 5), with new,
bias-free ``to_k_ip`` and ``to_v_ip`` that start as copies of the text's. Text and image tokens travel together as one
sequence [text ‖ image], so that loss, guidance and sampling loop are those of any other adapter.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_DIM = 64  # of the resampler, in every published IP-Adapter file


class ImageKeysValues(nn.Module):
    """Projections of the image tokens for one cross-attention layer.

    Args:
        token_dim: Width of the tokens.
        layer_dim: Width of the layer's keys and values.
    """

    def __init__(self, token_dim: int, layer_dim: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(token_dim, layer_dim, bias=False)
        self.to_v_ip = nn.Linear(token_dim, layer_dim, bias=False)


class DecoupledAttention:
    """Attention processor for tokens [text ‖ image].

    It refers to the adapter's weights without owning them: the UNet's own state stays what it was.

    Args:
        adapter: Gives λ (``scale``) and the number of image tokens.
        projections: The adapter's keys and values for this layer.
    """

    def __init__(self, adapter: "IPAdapter", projections: ImageKeysValues) -> None:
        self.adapter, self.projections = adapter, projections

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Attend from hidden states (B,L,C) to tokens (B,T+n,X); returns (B,L,C)."""
        split = encoder_hidden_states.shape[1] - self.adapter.num_tokens
        text, image = encoder_hidden_states[:, :split], encoder_hidden_states[:, split:]

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query = heads(attn.to_q(hidden_states))
        out = F.scaled_dot_product_attention(query, heads(attn.to_k(text)), heads(attn.to_v(text)))
        if self.adapter.scale:
            key, value = self.projections.to_k_ip(image), self.projections.to_v_ip(image)
            out = out + self.adapter.scale * F.scaled_dot_product_attention(query, heads(key), heads(value))
        out = out.transpose(1, 2).flatten(2).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](out))


class _TextOnly:
    """Hook of a UNet that also pools its tokens into the time embedding: the image's are not for that."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0][:, : -self.num_tokens], *inputs[1:]


class IPAdapter(nn.Module):
    """Image projection and per-layer keys and values of an IP-Adapter.

    Args:
        input_dim: Width of the image features: the pooled embedding's, or the hidden states' for ``plus``.
        output_dim: Width of the text tokens.
        num_tokens: Number of image tokens.
        layer_dims: Width of each cross-attention layer of the UNet, in the UNet's order.
        plus: Read all hidden states through a resampler instead of the pooled embedding through one layer.
        hidden_dim: Width of that resampler.
        depth: Its number of layers.
        heads: Its attention heads, of 64 each.
        ffn_ratio: Its feed-forward width in multiples of ``hidden_dim``.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tokens: int,
        layer_dims: list[int],
        plus: bool,
        hidden_dim: int,
        depth: int,
        heads: int,
        ffn_ratio: float,
    ) -> None:
        super().__init__()
        self.num_tokens, self.scale = num_tokens, 1.0
        self.image_proj: nn.Module = (
            IPAdapterPlusImageProjection(
                embed_dims=input_dim,
                output_dims=output_dim,
                hidden_dims=hidden_dim,
                depth=depth,
                dim_head=HEAD_DIM,
                heads=heads,
                num_queries=num_tokens,
                ffn_ratio=ffn_ratio,
            )
            if plus
            else ImageProjection(input_dim, output_dim, num_tokens)
        )
        self.layers = nn.ModuleList(ImageKeysValues(output_dim, dim) for dim in layer_dims)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B,N,input_dim), N = 1 unless ``plus``, to image tokens (B,num_tokens,output_dim)."""
        pooled = isinstance(self.image_proj, ImageProjection)
        return self.image_proj(features[:, 0] if pooled else features)

    def projections(self) -> list[ImageKeysValues]:
        """Keys and values by layer, in the UNet's order."""
        return list(self.layers)  # type: ignore[arg-type]

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Put the decoupled attention into a UNet's cross-attention layers.

        Raises:
            ValueError: If the UNet has other cross-attention layers than this adapter was made for.
        """
        layers = cross_attention_layers(unet)
        dims = [layer.to_k.out_features for layer in layers]
        own = [p.to_k_ip.out_features for p in self.projections()]
        if dims != own:
            raise ValueError(f"the IP-Adapter is for cross-attention of widths {own}, the UNet has {dims}")
        for layer, projections in zip(layers, self.projections(), strict=True):
            layer.set_processor(DecoupledAttention(self, projections))
        if unet.config.get("addition_embed_type") == "text":
            hooks = unet.add_embedding._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if isinstance(hook, _TextOnly)]:
                del hooks[key]
            unet.add_embedding.register_forward_pre_hook(_TextOnly(self.num_tokens))

    @torch.no_grad()
    def copy_text_projections(self, unet: UNet2DConditionModel) -> None:
        """Start ``to_k_ip`` and ``to_v_ip`` from the UNet's ``to_k`` and ``to_v``."""
        for layer, projections in zip(cross_attention_layers(unet), self.projections(), strict=True):
            projections.to_k_ip.weight.copy_(layer.to_k.weight)
            projections.to_v_ip.weight.copy_(layer.to_v.weight)


def cross_attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """The UNet's cross-attention layers, in the order of diffusers' ``attn_processors``."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [unet.get_submodule(name) for name in names if name.endswith("attn2")]  # type: ignore[misc]
