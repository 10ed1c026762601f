"""Other people's consistency training, called in their checkouts: Kinyugo/consistency_models and locuslab/ect."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from lit_insert.consistency.edm import Denoiser
from lit_insert.consistency.karras import noise_condition
from lit_insert.errors import InputError

Loss = Callable[[nn.Module, Tensor, int], Tensor]


class Peer(NamedTuple):
    """A peer's training of a given network.

    Attributes:
        objective: Which of ours it corresponds to.
        net: The network as the peer wraps it.
        loss: ``(net, images, step)`` to the mean loss.
        function: Its consistency function, from the wrapped network.
    """

    objective: str
    net: nn.Module
    loss: Loss
    function: Callable[[nn.Module], Denoiser]


def objective_of(path: Path) -> str:
    """The objective that a checkout is of.

    Raises:
        InputError: If it is none of the known ones.
    """
    if (path / "consistency_models" / "consistency_models.py").is_file():
        return "ict"
    if (path / "training" / "loss.py").is_file():
        return "ect"
    raise InputError(f"--peer {path}: no checkout of Kinyugo/consistency_models or locuslab/ect")


def load_peer(path: Path, unet: UNet2DModel, *, steps: int, s1: int, stages: int) -> Peer:
    """A peer's objective, schedule and preconditioning around a network of ours.

    Args:
        path: The checkout.
        unet: diffusers' network; its time input is 250 ln sigma on both sides.
        steps: Optimiser steps of the run.
        s1: Last number of intervals, of iCT.
        stages: Number of stages, of ECT.
    """
    objective = objective_of(path)
    sys.path.insert(0, str(path))
    return _kinyugo(unet, steps, s1) if objective == "ict" else _ect(unet, steps, stages)


class Timed(nn.Module):
    """The network as Kinyugo's code calls it: with a noise level instead of c_noise."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """F(x, 250 ln sigma)."""
        return self.unet(x, noise_condition(sigma)).sample


def _kinyugo(unet: nn.Module, steps: int, s1: int) -> Peer:
    from consistency_models.consistency_models import (
        ImprovedConsistencyTraining,
        model_forward_wrapper,
        pseudo_huber_loss,
    )

    training = ImprovedConsistencyTraining(final_timesteps=s1)

    def loss(net: nn.Module, images: Tensor, step: int) -> Tensor:
        out = training(net, images, step, steps)
        return (pseudo_huber_loss(out.predicted, out.target) * out.loss_weights).mean()

    def function(net: nn.Module) -> Denoiser:
        return lambda x, sigma, label: model_forward_wrapper(net, x, sigma)

    return Peer("ict", Timed(unet), loss, function)


class QuarterLog(nn.Module):
    """The network as the ECT code calls it: its c_noise is ln(sigma)/4, and it passes labels."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, quarter_log: Tensor, class_labels: None, augment_labels: None = None) -> Tensor:
        """F(x, 250 ln sigma), in the precision that the code asserts."""
        return self.unet(x, 1000 * quarter_log).sample.to(x.dtype)


def _ect(unet: UNet2DModel, steps: int, stages: int) -> Peer:
    from training import networks
    from training.loss import ECMLoss

    # Their preconditioning finds the class of its network by name in this module.
    networks.GivenUNet = lambda **_: QuarterLog(unet)
    net = networks.ECMPrecond(img_resolution=unet.config["sample_size"], img_channels=3, model_type="GivenUNet")
    objective = ECMLoss()

    def loss(net: nn.Module, images: Tensor, step: int) -> Tensor:
        objective.update_schedule(min(step * stages // steps, stages - 1))
        with _without_cuda(images.device):
            return objective(net, images).mean()

    def function(net: nn.Module) -> Denoiser:
        return lambda x, sigma, label: net(x, sigma)

    return Peer("ect", net, loss, function)


def _without_cuda(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Their loss keeps the state of the CUDA generator for dropout; on a CPU give it the CPU's."""
    if device.type == "cuda":
        return contextlib.nullcontext()
    return mock.patch.multiple(torch.cuda, get_rng_state=torch.get_rng_state, set_rng_state=torch.set_rng_state)
