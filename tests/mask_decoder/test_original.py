"""The former layout, to the last parameter; on the meta device, where weights take no memory."""

from pathlib import Path

import torch
import yaml

from lit_insert.mask_decoder.network import HieraFPN
from lit_insert.mask_decoder.original import OriginalDecoder

CONFIG = Path(__file__).parents[2] / "configs/mask_decoder/original_123m.yaml"


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_three_parts():
    config = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]["network"]
    with torch.device("meta"):
        network = HieraFPN(**config)
        output = network(torch.empty(2, 3, 256, 256))
    assert count(network.backbone) == 50_855_818
    assert count(network.bottleneck) == 70_878_720
    assert count(network.decoder) == 1_391_617
    assert count(network) == 123_126_155
    assert output.logits.shape == (2, 1, 256, 256)
    idle = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert idle == {f"backbone.head.{n}" for n in ("norm.weight", "norm.bias", "fc.weight", "fc.bias")}


def test_logits_are_made_at_a_quarter_of_the_size():
    torch.manual_seed(0)
    decoder = OriginalDecoder([8, 16, 24, 32], 16, 8)
    maps = [torch.randn(1, c, s, s) for c, s in ((8, 16), (16, 8), (24, 4), (32, 2))]
    small = []
    decoder.conv_out.register_forward_hook(lambda module, inputs, output: small.append(output))
    logits = decoder(maps, torch.zeros(1, 3, 64, 64))
    assert small[0].shape == (1, 1, 16, 16)
    wanted = torch.nn.functional.interpolate(small[0], (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(logits, wanted)


def test_its_presence_is_the_largest_logit():
    torch.manual_seed(0)
    network = HieraFPN(
        "hiera_tiny_224", {"embed_dim": 8, "stages": [1, 1, 1, 1]}, 64, decoder_type="original", presence="max"
    )
    output = network(torch.randn(2, 3, 64, 64))
    assert torch.equal(output.presence_logits, output.logits.flatten(1).amax(1))
