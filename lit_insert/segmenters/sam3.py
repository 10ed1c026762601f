"""SAM 3 (Carion et al. 2025, arXiv 2511.16719): every single thing that a noun phrase names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Sam3Model, Sam3Processor

from lit_insert.artifacts.weights import load_component, load_processor
from lit_insert.errors import InputError
from lit_insert.images import Picture
from lit_insert.segmenters.base import Features, Instance, Instances, best_first, check_request, chunks, upright

_AT_ONCE = 2  # masks that are stretched together; forty at 12 megapixels would take gigabytes


@dataclass
class RawInstances:
    """A chunk of prompts as the network answers, in float32 on the CPU, Q queries each.

    Attributes:
        scores: (P,Q) in [0,1], presence included.
        boxes: (P,Q,4), left, top, right, bottom in units of the picture's sides; may leave it.
        masks: (P,Q,h,w) logits.
        presence: (P,) in [0,1].
        semantic: (P,h,w) logits of everything that the prompt names.
    """

    scores: Tensor
    boxes: Tensor
    masks: Tensor
    presence: Tensor
    semantic: Tensor


class Sam3Segmenter:
    """SAM 3 behind the protocol of `lit_insert.segmenters.base.Segmenter`.

    The vision encoder, nine tenths of the work, runs once a picture; prompts follow in chunks. Outputs are brought to
    float32 before anything is computed with them: bfloat16 boxes are off by up to 21 pixels at 4000x3000.

    Args:
        model: The network.
        processor: Its processor; it must squash pictures to the size that the network was made for.
        name: What to call it in results.
        chunk: Prompts that go through the decoder at once; each takes 66 MB of mask logits at full size.

    Raises:
        InputError: If the processor's size is not the network's.
    """

    def __init__(self, model: Sam3Model, processor: Sam3Processor, name: str = "sam3", chunk: int = 4) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.processor: Any = processor
        self.name, self.chunk = name, chunk
        self.longest = min(32, int(model.config.text_config.max_position_embeddings))
        size = model.config.vision_config.backbone_config.image_size
        given = dict(processor.image_processor.size)
        if (given.get("height"), given.get("width")) != (size, size):
            raise InputError(f"{name}: its processor makes {given}, but its network reads {size}x{size} pixels only")

    @classmethod
    def from_folder(cls, folder: str | Path, *, name: str = "sam3", dtype: torch.dtype = torch.float32) -> Self:
        """Load an exported model with its processor.

        Raises:
            InputError: If a part is missing or broken.
        """
        model = load_component(Sam3Model, folder, ".", dtype=dtype)
        return cls(model, load_processor(Sam3Processor, folder, "SAM 3 processor"), name)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device; returns the segmenter."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, image: Picture, name: str | None = None) -> Features:
        """The feature pyramid of a picture."""
        picture = upright(image)
        pixels = self.processor.image_processor(picture, return_tensors="pt").pixel_values
        seen = self.model.get_vision_features(pixels.to(self.model.device, self.model.dtype))
        return Features((picture.height, picture.width), seen)

    def _tokens(self, prompts: list[str]) -> Any:
        tokenizer = self.processor.tokenizer
        for prompt, own in zip(prompts, tokenizer(prompts).input_ids, strict=True):
            if len(own) > self.longest:
                raise InputError(
                    f"prompt {prompt[:60]!r}: longer than the {self.longest} tokens that {self.name} reads"
                )
        padded = tokenizer(prompts, padding="max_length", max_length=self.longest, return_tensors="pt")
        return padded.to(self.model.device)

    @torch.no_grad()
    def raw(self, image: Picture | Features, prompts: Sequence[str]) -> Iterator[RawInstances]:
        """The network's answers, a chunk of prompts at a time.

        Raises:
            InputError: If a prompt is longer than the text tower reads.
        """
        features = image if isinstance(image, Features) else self.encode(image)
        for some in chunks(prompts, self.chunk):
            tokens = self._tokens(some)
            seen = type(features.data)(
                fpn_hidden_states=[t.expand(len(some), -1, -1, -1) for t in features.data.fpn_hidden_states],
                fpn_position_encoding=[t.expand(len(some), -1, -1, -1) for t in features.data.fpn_position_encoding],
            )
            # The mask goes along with the tokens: without it the decoder attends to the padding.
            answer = self.model(vision_embeds=seen, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            presence = answer.presence_logits.float().sigmoid()
            yield RawInstances(
                scores=(answer.pred_logits.float().sigmoid() * presence).cpu(),
                boxes=answer.pred_boxes.float().cpu(),
                masks=answer.pred_masks.float().cpu(),
                presence=presence[:, 0].cpu(),
                semantic=answer.semantic_seg[:, 0].float().cpu(),
            )

    def heatmaps(self, image: Picture | Features, prompts: Sequence[str]) -> Tensor:
        """The semantic head's probability times the presence; see the protocol."""
        prompts = check_request(prompts)
        features = image if isinstance(image, Features) else self.encode(image)
        found = [torch.zeros(0, *features.size)]
        for answer in self.raw(features, prompts):
            small = answer.semantic.sigmoid() * answer.presence[:, None, None]
            found.append(_stretch(small, features.size))
        return torch.cat(found)

    def instances(
        self,
        image: Picture | Features,
        prompts: Sequence[str],
        *,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        max_instances: int = 100,
    ) -> list[Instances]:
        """The queries whose score is above the threshold and whose mask is not empty; see the protocol."""
        prompts = check_request(prompts, threshold, mask_threshold, max_instances)
        features = image if isinstance(image, Features) else self.encode(image)
        found: list[Instances] = []
        for answer in self.raw(features, prompts):
            for i in range(len(answer.presence)):
                things = _pick(answer, i, features.size, threshold, mask_threshold, max_instances)
                found.append(Instances(prompts[len(found)], float(answer.presence[i]), things))
        return found


def _pick(
    answer: RawInstances,
    row: int,
    size: tuple[int, int],
    threshold: float,
    mask_threshold: float,
    most: int,
) -> list[Instance]:
    """One prompt's instances, straight to run lengths, a few masks at a time."""
    height, width = size
    scores = answer.scores[row]
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > threshold][:most]
    boxes = answer.boxes[row] * torch.tensor([width, height, width, height], dtype=torch.float32)
    found: list[Instance | None] = []
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        masks = (_stretch(answer.masks[row, some].sigmoid(), size) > mask_threshold).numpy()
        for query, mask in zip(some.tolist(), masks, strict=True):
            left, top, right, bottom = boxes[query].tolist()
            found.append(Instance.from_mask(mask, float(scores[query]), (left, top, right, bottom)))
    return best_first(found, most)


def _stretch(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N,h,w) to (N,H,W), bilinear, as the library does."""
    return torch.nn.functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
