"""Learning instances from one picture: new words first, then the network that reads them."""

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from transformers import CLIPTextModel

from lit_insert.diffusion.text import add_noise, draw_prompts, prompt_ids
from lit_insert.errors import InputError
from lit_insert.mifo.attention import AttentionRecorder, select_layers
from lit_insert.mifo.checkpoint import PLACEHOLDER, artifact_of
from lit_insert.mifo.evaluate import attention_figures, overlays
from lit_insert.mifo.latents import LatentCache
from lit_insert.mifo.monitor import CollapseMonitor
from lit_insert.mifo.objective import (
    AttentionLoss,
    attention_terms,
    gate,
    masked_error,
    token_columns,
    weights_at,
)
from lit_insert.mifo.prior import draw_class_pictures
from lit_insert.mifo.report import write_run_report
from lit_insert.mifo.settings import SynthesisSettings, changed
from lit_insert.mifo.sources import load_base
from lit_insert.mifo.tokens import TokenRows, attach_rows, start_rows
from lit_insert.mifo.tuning import Finetuning, Sketching, tune
from lit_insert.training.base import BaseModule, batch_length
from lit_insert.training.ema import EMA
from lit_insert.training.parameters import frozen, named_groups


class MifoModule(BaseModule):
    """Learn a word for each instance of one picture, so that look-alikes are not confused (Su et al. 2025).

    For ``token_steps`` steps only the words' rows of the embedding train; then, with an optimiser of its own, the
    UNet and the text encoder as well. The diffusion loss counts inside the instances named, the attention loss says
    where each word may look, and class pictures can keep what the base knew.

    Args:
        base: Stable Diffusion 1.x or 2.x: folder or hub id, or "pocket:text".
        token_steps: Steps of the first phase.
        attention: The loss on attention maps.
        finetuning: What trains in the second phase.
        prior_weight: Weight of the class pictures' loss, if the data has any.
        prior_from_start: Use them in the first phase too.
        class_guidance_scale: Weight of the prompt where the base draws them.
        max_instances: How many tokens there is room for.
        initializer_words: A phrase for each instance where its row starts; null for the mean of all words.
        token_spread: Noise on the starting rows, in deviations of the embedding table.
        end_tokens: Who sees the end token and the padding of the instances' captions while these are learned. They sum
            up all that was named; "nowhere" leaves it to the words alone to say what their instance is, which pictures
            with boxes can then keep apart.
        hidden_class_ends: With "nowhere", the share of class pictures' captions whose end is hidden too, in [0,1]; with
            0 a missing end sets the instances' captions apart from all others.
        decay_tokens: Give the rows weight decay too.
        gradient_checkpointing: Trade UNet time for memory.
        export_dtype: Number format of exported weights.
        sketching: How pictures are drawn while training.
        synthesis: How the result is best drawn with boxes, by the names of
            `lit_insert.mifo.settings.SynthesisSettings`; written into the export. The rest is the base's.
        optimizer: Makes the first phase's optimiser.
        lr_scheduler: Makes its scheduler, stepped every step.
        finetune_optimizer: Makes the second phase's optimiser; by default as ``optimizer``.
        finetune_lr_scheduler: Makes its scheduler, which starts at 0 with the phase.
        noise_seed: Seed of the rows' start and of the noise drawn while training.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    reached: Tensor

    def __init__(
        self,
        base: str,
        token_steps: int = 600,
        attention: AttentionLoss = AttentionLoss(),  # noqa: B008
        finetuning: Finetuning = Finetuning(),  # noqa: B008
        prior_weight: float = 1.0,
        prior_from_start: bool = False,
        class_guidance_scale: float = 7.5,
        max_instances: int = 8,
        initializer_words: list[str] | None = None,
        token_spread: float = 1.0,
        end_tokens: Literal["everywhere", "nowhere"] = "everywhere",
        hidden_class_ends: float = 0.5,
        decay_tokens: bool = False,
        gradient_checkpointing: bool = False,
        export_dtype: Literal["float32", "float16", "bfloat16"] = "float16",
        sketching: Sketching = Sketching(),  # noqa: B008
        synthesis: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        finetune_optimizer: OptimizerCallable | None = None,
        finetune_lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "finetune_optimizer", "finetune_lr_scheduler"])
        self.factories = {1: (optimizer, lr_scheduler), 2: (finetune_optimizer or optimizer, finetune_lr_scheduler)}
        # A checkpoint rebuilds the module from plain values.
        self.attention = AttentionLoss(**attention) if isinstance(attention, Mapping) else attention
        self.finetuning = Finetuning(**finetuning) if isinstance(finetuning, Mapping) else finetuning
        self.sketching = Sketching(**sketching) if isinstance(sketching, Mapping) else sketching
        for name in ("attention", "finetuning", "sketching"):
            self.hparams[name] = dataclasses.asdict(getattr(self, name))
        self.base, self.token_steps = base, token_steps
        self.prior_weight, self.prior_from_start = prior_weight, prior_from_start
        self.class_guidance_scale = class_guidance_scale
        if not 0 <= hidden_class_ends <= 1:
            raise InputError(f"hidden_class_ends is {hidden_class_ends}; give a share from 0 to 1")
        self.end_tokens, self.hidden_class_ends = end_tokens, hidden_class_ends
        changed(SynthesisSettings(), synthesis or {}, "model.synthesis.")  # a wrong name ends the run now, not later
        self.initializer_words, self.token_spread = initializer_words, token_spread
        self.decay_tokens, self.export_dtype = decay_tokens, export_dtype
        self.max_instances, self.placeholder = max_instances, PLACEHOLDER
        parts = load_base(base)
        self.scheduler, self.tokenizer = parts.scheduler, parts.tokenizer
        self.vae, self.unet, self.text_encoder = frozen(parts.vae), frozen(parts.unet), frozen(parts.text_encoder)
        self._attach()
        self.tuned = tune(self.unet, self.text_encoder, self.finetuning)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        spots = {1: self.attention.layers, 2: self.attention.finetune_layers or self.attention.layers}
        layers = {k: select_layers(self.unet, v) if self.attention.mode != "none" else [] for k, v in spots.items()}
        self.recorders = {phase: AttentionRecorder(chosen) for phase, chosen in layers.items()}
        self.figure_layers = select_layers(self.unet, ["all"])
        self.monitor = CollapseMonitor()
        self.register_buffer("reached", torch.ones((), dtype=torch.int64))
        self.latents = LatentCache()
        self.enter(1)

    def _attach(self) -> None:
        names = [self.placeholder.format(i) for i in range(self.max_instances)]
        attach_rows(self.tokenizer, self.text_encoder, names)

    @property
    def rows(self) -> TokenRows:
        """The rows that the new words have."""
        return self.text_encoder.get_input_embeddings()

    @property
    def rows_name(self) -> str:
        """Their name as a parameter."""
        return next(name for name, p in self.named_parameters() if p is self.rows.rows)

    # Phases

    @property
    def phase(self) -> int:
        """1 while only words train, then 2."""
        return int(self.reached)

    def enter(self, phase: int) -> None:
        """Let train what trains in a phase, and make its optimiser the one that `configure_optimizers` makes."""
        self.reached.fill_(phase)
        self.rows.rows.requires_grad_(True)
        for name in self.tuned:
            self.get_parameter(name).requires_grad_(phase == 2)
        self.optimizer_factory, self.lr_scheduler_factory = self.factories[phase]

    def setup(self, stage: str) -> None:
        """Give the words their starting rows, and draw missing class pictures.

        Raises:
            InputError: If there are more instances than rows, or weights are averaged.
        """
        super().setup(stage)
        trainer: Any = self.trainer
        if any(isinstance(c, EMA) and c.decay for c in trainer.callbacks):
            raise InputError(
                "ema.decay must be 0: what trains changes between the phases, so an average would mix them"
            )
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "tokens"):
            return
        if data.placeholder != self.placeholder:
            raise InputError(f"data.placeholder is {data.placeholder!r}; this model's tokens are {self.placeholder!r}")
        if not self.rows.used:
            words = self.initializer_words
            start_rows(
                self.rows, self.tokenizer, data.num_instances, words, seed=self.noise_seed, spread=self.token_spread
            )
        if stage == "fit" and data.class_prompts and self.prior_weight:
            if self.trainer.is_global_zero:
                self.to(self.trainer.strategy.root_device)
                draw_class_pictures(
                    self,
                    data.class_prompts,
                    data.class_images,
                    data.class_folder,
                    data.size,
                    guidance_scale=self.class_guidance_scale,
                )
            self.trainer.strategy.barrier("class pictures")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin the second phase when it is due, with an optimiser of its own."""
        if self.phase == 2 or self.trainer.global_step < self.token_steps:
            return
        self.enter(2)
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy):  # it averages the gradients of what trained when it was set up
            strategy.model = self
            strategy.configure_ddp()
        strategy.setup_optimizers(self.trainer)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The rows, and in the second phase what of the UNet and the text encoder trains."""
        parts = [part for part in ("text_encoder", "unet") if any(n.startswith(f"{part}.") for n in self.tuned)]
        groups = named_groups(self, dict.fromkeys([self.rows_name, *(parts if self.phase == 2 else [])], 1.0))
        groups[0] |= {"name": "tokens"} | ({} if self.decay_tokens else {"weight_decay": 0.0})
        return groups

    # Objective

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Masked denoising error, attention loss and, with class pictures, theirs."""
        count = batch_length(batch)
        images, ids, captions = [batch["image"]], list(batch["id"]), list(batch["caption"])
        with_prior = "prior_image" in batch and (self.phase == 2 or self.prior_from_start) and self.prior_weight > 0
        if with_prior:
            images.append(batch["prior_image"])
            ids += batch["prior_id"]
            captions += batch["prior_caption"]
        latents = self.latents.draw(self.vae, torch.cat(images), ids, generator)
        noised = add_noise(self.scheduler, latents, generator)
        tokens = prompt_ids(self.tokenizer, captions).to(latents.device)
        states = self.text_encoder(tokens).last_hidden_state
        step = self.trainer.global_step if self._trainer is not None else 0
        weights = weights_at(self.attention, step)
        counts = gate(self.attention, noised.timesteps[:count])
        recorder = self.recorders[self.phase]
        needed = any(weights) and bool(counts.any())
        watching: AbstractContextManager[Any] = recorder.attached(self.unet) if needed else nullcontext()
        with watching:
            visible = self.visible(tokens, count, generator)
            predicted = self.unet(noised.latents, noised.timesteps, states, encoder_attention_mask=visible)
            predicted = predicted.sample.float()
        masks, instances = batch["masks"], batch["instances"]
        diffusion = masked_error(predicted[:count], noised.wanted[:count], masks).mean()
        columns = token_columns(tokens[:count], self.rows.first, instances)[..., None, None]
        maps = [
            grid.gather(1, columns.expand(-1, -1, *grid.shape[2:]))
            for grid in (recorder.grid(layer)[:count] for layer in recorder.maps)
        ] if needed else []  # fmt: skip
        recorder.clear()
        terms = attention_terms(maps, masks, instances >= 0, counts, weights, target=self.attention.target)
        if self.training:
            self.monitor.note(terms.inside if maps else torch.tensor(torch.nan), self._rewarded(step))
        losses = {
            "loss": diffusion + terms.loss,
            "diffusion": diffusion.detach(),
            "attention": terms.loss.detach(),
            "inside": predicted.new_tensor(self.monitor.inside),
        }
        if with_prior:
            prior = (predicted[count:] - noised.wanted[count:]).square().mean()
            losses["loss"] = losses["loss"] + self.prior_weight * prior
            losses["prior"] = prior.detach()
        return losses

    def visible(
        self, tokens: Tensor, count: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Which tokens (B,L) the UNet may see, boolean: as ``end_tokens`` says; None stands for all of them.

        From row ``count`` on these are class pictures' captions: there ``hidden_class_ends`` draws lots, and the empty
        caption, which guidance subtracts whole, is seen whole.
        """
        if self.end_tokens == "everywhere":
            return None
        end = tokens == self.tokenizer.eos_token_id
        hidden = end.cumsum(1) > 0
        if count is not None:
            lots = torch.rand(len(tokens) - count, generator=generator, device=tokens.device)
            hidden[count:] &= ((lots < self.hidden_class_ends) & ~end[count:, 1])[:, None]
        return ~hidden

    def _rewarded(self, step: int) -> bool:
        end = self.attention.reward_steps if self.attention.mode == "mifo_paper" else self.token_steps
        return step < end

    # Looking at it

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss, and where the tokens look."""
        super().validation_step(batch, batch_idx)
        figures = attention_figures(self, batch, self.figure_layers, self._generator(-1 - batch_idx))
        self.log_dict({f"val/{k}": v for k, v in figures.items()}, batch_size=batch_length(batch), sync_dist=True)

    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """A row for each order of the tokens: the picture, where each token looks, and pictures of the prompts."""
        looks = overlays(self, batch, self.figure_layers, generator)
        caption = list(batch["caption"])
        names = [c.removeprefix("a photo of ") for c in caption]
        drawn = [self.draw(caption, generator)]
        drawn += [self.draw([p.replace("{}", n) for n in names], generator) for p in self.sketching.prompts]
        return [
            [image, *look, *pictures]
            for image, look, *pictures in zip(batch["image"], looks, *drawn, strict=True)
        ]  # fmt: skip

    def draw(self, prompts: list[str], generator: torch.Generator) -> Tensor:
        """Pictures (B,3,H,W) in [-1,1] of prompts, with no say on places; see `draw_prompts`."""
        how = {"num_inference_steps": self.sketching.num_inference_steps}
        return draw_prompts(self, prompts, generator, guidance_scale=self.sketching.guidance_scale, **how)

    def on_fit_end(self) -> None:
        """Write ``report.html`` into the run's folder."""
        folder = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero and (folder / "metrics.jsonl").is_file():
            write_run_report(folder, self.attention.mode, self.token_steps)

    # Keeping it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go to the checkpoint's phase, then check that its weights fit."""
        self.enter(int(checkpoint["state_dict"].get("reached", 1)))
        super().on_load_checkpoint(checkpoint)

    def export(self, folder: str | Path) -> None:
        """Write the words and what has changed of the base; see `MifoArtifact`.

        Raises:
            InputError: If nothing has been learned.
        """
        names = [self.rows_name, *(self.tuned if self.phase == 2 else [])]
        learned = {name: self.get_parameter(name).detach() for name in names}
        learned |= {name: value for name, value in self.named_buffers() if name.endswith(".used")}
        artifact_of(learned, self.hparams).save(folder)
