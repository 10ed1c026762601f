"""Tiny generators with random weights, built in place."""

import torch
from diffusers import CMStochasticIterativeScheduler
from torch import nn

from lit_insert.consistency.network import build_unet
from lit_insert.consistency.pipeline import ConsistencyPipeline
from lit_insert.consistency.sources import ModelFacts

SIZE = 16


def tiny_unet(seed=0, **changes):
    """A UNet whose every weight is random, zero-initialised ones too; the global generator stays as it was."""
    sizes = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,), "head_dim": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = build_unet(SIZE, **{**sizes, "norm_groups": 4, **changes})
        for p in unet.parameters():
            nn.init.normal_(p, std=0.15)
    return unet.eval()


def tiny_pipeline(grid=40, facts=None, **changes):
    """A pipeline around it."""
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=grid)
    return ConsistencyPipeline(tiny_unet(**changes), scheduler, facts or ModelFacts())
