"""The LightningModule that trains the pocket text-to-image base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lit_insert import pocket
from lit_insert.diffusion.frozen import load_part, resolve_base
from lit_insert.diffusion.text import add_noise, draw_prompts, prompt_ids
from lit_insert.embedding_optimizer.objective import Denoised, weighted_loss
from lit_insert.metrics.insertion import InsertionJudge
from lit_insert.metrics.prompted import PromptedObjects
from lit_insert.mifo.sources import write_settings
from lit_insert.pocket.words import word_tokenizer
from lit_insert.training.base import BaseModule
from lit_insert.training.parameters import frozen

# How boxes hold best on it, chosen on val scenes: the padding after a short prompt says as much as the words do.
SYNTHESIS: dict[str, Any] = {
    "end_tokens": "nowhere",
    "separate_words": True,
    "guidance": {"layers": ["mid", "up:8"], "iterations": 3, "step_size": [5.0, 2.0], "stop_below": 0.0},
    "refinement": {"layers": ["up:16"]},
}


class TextToImageModule(BaseModule):
    """A small Stable Diffusion for captioned scenes: UNet and text encoder learn together, the autoencoder is given.

    The UNet starts from the weights of the base's own UNet wherever name and shape fit, which already knows how to
    paint the scenes; new attention blocks start as the identity. A base with a text encoder goes on with that.

    Args:
        base: Folder with vae/, unet/ and scheduler/, or "pocket"; with text_encoder/ and tokenizer/ too if it has been
            trained before.
        max_length: Longest prompt in tokens; that of the base where it has a text encoder.
        text_layers: Layers of a new text encoder, each of the width of the UNet's cross-attention.
        caption_dropout: Probability of an empty caption.
        object_weight: Extra loss weight of the latent cells that things cover.
        guidance_scale: Weight of the prompt in pictures drawn while training.
        num_inference_steps: DDIM steps of those pictures.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of noise, timesteps and dropout.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel

    def __init__(
        self,
        base: str = "pocket",
        max_length: int = 32,
        text_layers: int = 2,
        caption_dropout: float = 0.1,
        object_weight: float = 4.0,
        guidance_scale: float = 3.0,
        num_inference_steps: int = 25,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        folder = resolve_base(base)
        self.caption_dropout, self.object_weight = caption_dropout, object_weight
        self.sampling: dict[str, Any] = {
            "guidance_scale": guidance_scale,
            "num_inference_steps": num_inference_steps,
        }
        self.vae = frozen(load_part(AutoencoderKL, folder, "vae"))
        self.scheduler = DDIMScheduler.from_config(
            DDIMScheduler.load_config(folder, subfolder="scheduler"), steps_offset=1
        )
        unet = load_part(UNet2DConditionModel, folder, "unet")
        if Path(folder, "text_encoder").is_dir():
            self.unet = unet.train()
            self.tokenizer = load_part(CLIPTokenizer, folder, "tokenizer")
            self.text_encoder = load_part(CLIPTextModel, folder, "text_encoder").train()
        else:
            self.unet = text_unet(unet)
            self.tokenizer = word_tokenizer(max_length=max_length)
            self.text_encoder = new_text_encoder(self.tokenizer, self.unet.config["cross_attention_dim"], text_layers)
        self._judge: PromptedObjects | None = None

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Denoising error of the scenes under their captions, some of them dropped."""
        with torch.no_grad():
            posterior = self.vae.encode(batch["image"]).latent_dist
            latents = posterior.sample(generator) * self.vae.config["scaling_factor"]
        noised = add_noise(self.scheduler, latents, generator)
        ids = prompt_ids(self.tokenizer, ["", *batch["caption"]]).to(self.device)
        dropped = torch.rand(len(latents), generator=generator, device=generator.device) < self.caption_dropout
        states = self.text_encoder(torch.where(dropped[:, None], ids[:1], ids[1:])).last_hidden_state
        predicted = self.unet(noised.latents, noised.timesteps, states).sample.float()
        denoised = Denoised((predicted - noised.wanted).square(), noised.timesteps)
        return weighted_loss(denoised, self.scheduler, mask=batch["mask"], mask_weight=self.object_weight)

    # Pictures

    def draw(self, captions: list[str], generator: torch.Generator) -> Tensor:
        """Pictures (B,3,H,W) in [-1,1] of captions, by DDIM with classifier-free guidance."""
        return draw_prompts(self, captions, generator, **self.sampling)

    def on_validation_epoch_start(self) -> None:
        """Get the judge ready; it is no part of the model."""
        judge = InsertionJudge.from_pretrained(pocket.path("judge"))
        self.__dict__["_judge"] = PromptedObjects(judge).to(self.device)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss, and whether pictures of the captions show what these name."""
        super().validation_step(batch, batch_idx)
        if self._judge is not None:
            pictures = self.draw(list(batch["caption"]), self._generator(-1 - batch_idx))
            self._judge.update(pictures, batch["labels"])

    def on_validation_epoch_end(self) -> None:
        """Log how many of the things that captions name are there: their shape, colour, both."""
        if self._judge is not None and self._judge.update_called:
            self.log_dict({f"val/{k}": v for k, v in self._judge.compute().items()}, sync_dist=True)

    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of a scene and three pictures of its caption."""
        pictures = [self.draw(list(batch["caption"]), generator) for _ in range(3)]
        return [list(row) for row in zip(batch["image"], *pictures, strict=True)]

    # Artefact

    def export(self, folder: str | Path) -> None:
        """Write a Stable Diffusion pipeline folder, with how it likes to be sampled."""
        StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
        write_settings(folder, {**self.sampling, **SYNTHESIS})


def new_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """A CLIP text model with random weights for a tokenizer's words.

    Args:
        tokenizer: Says how many words there are, and how long a prompt may be.
        width: Of the states.
        layers: Transformer layers.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config).train()
    # As small as CLIP draws them, rows are drowned by the words that matter most at first, colours, and the word for a
    # shape is lost in its own state before the UNet ever uses it.
    torch.nn.init.normal_(encoder.get_input_embeddings().weight)
    return encoder


@torch.no_grad()
def text_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A text-to-image UNet with the weights of another, and attention to the prompt at the finest grid on the way up.

    Input channels beyond those of the output, pooled conditioning, and whatever else does not fit are left out.

    Args:
        unet: The one to start from.
    """
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    config |= {
        "in_channels": config["out_channels"],
        "addition_embed_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",) * len(config["up_block_types"]),
        "attention_head_dim": (2, *[config["attention_head_dim"]] * (len(config["up_block_types"]) - 1)),
    }
    new = UNet2DConditionModel(**config)
    state = unet.state_dict()
    state["conv_in.weight"] = state["conv_in.weight"][:, : config["in_channels"]]
    fitting = {k: state[k] for k, v in new.state_dict().items() if k in state and state[k].shape == v.shape}
    missing, _ = new.load_state_dict(fitting, strict=False)
    for name in missing:
        if ".proj_out." in name:
            new.get_parameter(name).zero_()
    return new.train()
