"""Choices of a run: what the second phase trains, and how pictures are drawn on the way."""

from dataclasses import dataclass, field
from typing import Any, Literal

from lit_insert.diffusion.unet import select_parameters
from lit_insert.errors import InputError

_UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
_TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj"]


@dataclass
class Finetuning:
    """What trains in the second phase beside the tokens.

    Args:
        unet: "full", "lora" (low-rank updates of all attention layers), "attn2" (cross-attention), "attn2.kv" (its key
            and value projections) or "none".
        text_encoder: "full" (all but the embedding table), "lora" or "none".
        rank: Rank of low-rank updates.
        alpha: Their scale; they are multiplied by alpha/rank.
    """

    unet: Literal["full", "lora", "attn2", "attn2.kv", "none"] = "full"
    text_encoder: Literal["full", "lora", "none"] = "full"
    rank: int = 8
    alpha: float = 8.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"finetuning.rank is {self.rank}; give 1 or more")


@dataclass
class Sketching:
    """How pictures are drawn while training.

    Args:
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the prompt.
        prompts: What is drawn beside the caption; ``{}`` stands for all tokens, joined by "and".
    """

    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    prompts: list[str] = field(default_factory=list)


def tune(unet: Any, text_encoder: Any, choice: Finetuning) -> list[str]:
    """Add low-rank updates where asked for, and say what the second phase trains.

    Args:
        unet: Frozen; changed in place.
        text_encoder: Frozen, its new tokens attached; changed in place.
        choice: What trains.

    Returns:
        Parameter names, ``unet.…`` and ``text_encoder.…``.
    """
    names = []
    for part, model, kind, layers in (
        ("unet", unet, choice.unet, _UNET_LAYERS),
        ("text_encoder", text_encoder, choice.text_encoder, _TEXT_LAYERS),
    ):
        if kind == "lora":
            from peft import LoraConfig  # seconds to import, for those who use it

            model.add_adapter(
                LoraConfig(r=choice.rank, lora_alpha=choice.alpha, target_modules=layers, init_lora_weights="gaussian")
            )
            own = [n for n, _ in model.named_parameters() if ".lora_" in n]
        elif kind in ("attn2", "attn2.kv"):
            own = select_parameters(model, [], kind)
        elif kind == "full":
            rows = model.get_input_embeddings() if part == "text_encoder" else None
            embedding = {id(p) for p in rows.parameters()} if rows is not None else set()
            own = [n for n, p in model.named_parameters() if id(p) not in embedding]
        else:
            own = []
        model.requires_grad_(False)
        names += [f"{part}.{n}" for n in own]
    return names
