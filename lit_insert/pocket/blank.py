"""Write an untrained pocket base, from which ``configs/pocket/insert.yaml`` trains.

``python -m lit_insert.pocket.blank --vae runs/pocket_vae/export --out runs/pocket_blank``
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection


def write_blank(vae: str | Path, out: str | Path, seed: int = 0) -> None:
    """Write vae/ (trained), and unet/, image_encoder/ with random weights, scheduler/ and feature_extractor/.

    Args:
        vae: Folder of a trained AutoencoderKL.
        out: Folder to write.
        seed: Seed of the random weights.
    """
    torch.manual_seed(seed)
    out = Path(out)
    autoencoder = AutoencoderKL.from_pretrained(vae)
    channels = autoencoder.config["latent_channels"]
    autoencoder.save_pretrained(out / "vae")
    UNet2DConditionModel(
        sample_size=16,
        in_channels=2 * channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        # The pooled tokens also modulate every residual block.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    ).save_pretrained(out / "unet")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=4,
            projection_dim=64,
        )
    ).save_pretrained(out / "image_encoder")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        out / "feature_extractor"
    )
    DDPMScheduler(
        1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    ).save_pretrained(out / "scheduler")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--vae", required=True, help="folder of the trained autoencoder")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    write_blank(**vars(parser.parse_args()))
