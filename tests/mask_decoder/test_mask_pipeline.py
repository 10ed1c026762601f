import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mask import DET, PLAIN, batch

from lit_insert.data.mask_source import MaskedPicture
from lit_insert.data.paired import PairedTransform
from lit_insert.errors import InputError
from lit_insert.mask_decoder.module import MaskDecoderModule
from lit_insert.mask_decoder.network import HieraFPN
from lit_insert.mask_decoder.pipeline import MaskPipeline


def photo(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    network = HieraFPN(**PLAIN)
    with torch.no_grad():
        network.decoder.head.weight.mul_(20)  # so that masks of noise have both values
    return MaskPipeline(network)


@pytest.mark.parametrize("size", [(333, 250), (250, 333), (64, 64), (5, 200), (9, 9)])
def test_masks_have_the_photo_s_size(pipeline, size):
    output = pipeline(photo(*size))
    assert output.mask.size == size
    assert output.mask.mode == "L"
    assert set(np.unique(output.mask)) <= {0, 255}
    probability = output.probabilities[0]
    assert (probability.shape, probability.dtype) == (size[::-1], np.float32)
    assert 0 <= probability.min() <= probability.max() <= 1
    assert ((probability > 0.5) == (np.asarray(output.mask) == 255)).all()
    assert 0 <= output.presence[0] <= 1


def test_results_do_not_depend_on_company(pipeline):
    photos = [photo(70, 40, 1), photo(33, 90, 2), photo(64, 64, 3)]
    together = pipeline(photos, batch_size=2)
    for i, one in enumerate(photos):
        alone = pipeline(one)
        np.testing.assert_allclose(together.probabilities[i], alone.probabilities[0], atol=1e-5)
        assert together.presence[i] == pytest.approx(alone.presence[0], abs=1e-5)


@pytest.mark.parametrize("size", [(333, 250), (64, 64), (30, 50)])
def test_the_network_sees_what_it_saw_in_validation(pipeline, size):
    picture = photo(*size)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    masked = MaskedPicture(pixels, torch.zeros(size[::-1], dtype=torch.uint8), "a")
    transform = PairedTransform((64, 64))
    expected = transform(transform.shrink(masked))["image"]
    torch.testing.assert_close(pipeline.canvas(picture), expected)


def test_paths_tensors_and_lying_photos(pipeline, tmp_path):
    upright = photo(40, 60)
    upright.save(tmp_path / "a.png")
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "b.png", exif=exif)
    tensor = torch.from_numpy(np.array(upright)).permute(2, 0, 1) / 127.5 - 1
    expected = pipeline(upright).probabilities[0]
    for given in (tmp_path / "a.png", str(tmp_path / "b.png"), tensor, tensor[None]):
        np.testing.assert_allclose(pipeline(given).probabilities[0], expected, atol=1e-6)


def test_flip_is_symmetric(pipeline):
    picture = photo(64, 64)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, other = (pipeline(p, flip=True).probabilities[0] for p in (picture, mirrored))
    np.testing.assert_allclose(one, other[:, ::-1], atol=1e-5)
    assert np.abs(one - pipeline(picture).probabilities[0]).max() > 1e-4


def test_threshold_components_and_presence(pipeline):
    picture = photo(120, 80)
    whole = pipeline(picture)
    probability = whole.probabilities[0]
    middle = float(np.median(probability))
    cut = np.asarray(pipeline(picture, threshold=middle).mask) == 255
    assert (cut == (probability > middle)).all()
    assert 0.3 < cut.mean() < 0.7
    large = np.asarray(pipeline(picture, threshold=middle, components="largest").mask) == 255
    assert 0 < large.sum() <= cut.sum()
    assert not (large & ~cut).any()
    none = pipeline(picture, threshold=middle, min_presence=min(1.0, whole.presence[0] + 1e-3))
    assert not np.asarray(none.mask).any()
    np.testing.assert_array_equal(none.probabilities[0], probability)


def test_logits_are_enlarged_not_masks(pipeline):
    big = pipeline(photo(512, 512)).probabilities[0]
    blocks = big.reshape(64, 8, 64, 8)
    assert np.ptp(blocks, axis=(1, 3)).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "threshold is 1"),
        ({"threshold": -0.1}, "threshold"),
        ({"min_presence": 1.5}, "min_presence"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"components": "two"}, "components"),
        ({"min_area": -1.0}, "min_area"),
    ],
)
def test_settings_out_of_range(pipeline, options, message):
    with pytest.raises(InputError, match=message):
        pipeline(photo(8, 8), **options)


def test_numbers_that_overflow_are_an_error(pipeline):
    torch.manual_seed(0)
    broken = MaskPipeline(HieraFPN(**PLAIN))
    with torch.no_grad():
        broken.network.decoder.head.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="overflowed"):
        broken(photo(8, 8))


def test_exported_folder_round_trip_and_bfloat16(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = MaskPipeline.from_pretrained(tmp_path / "m")
    picture = photo(50, 70)
    expected = pipeline(picture).probabilities[0]
    np.testing.assert_array_equal(loaded(picture).probabilities[0], expected)
    half = MaskPipeline.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert np.abs(half(picture).probabilities[0] - expected).mean() < 0.1


def test_broken_folders(pipeline, tmp_path):
    folder = tmp_path / "m"
    pipeline.save_pretrained(folder)
    weights, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    whole, text = weights.read_bytes(), config.read_text()

    def refused(message):
        with pytest.raises(InputError, match=message) as caught:
            MaskPipeline.from_pretrained(folder)
        assert "\n" not in str(caught.value)

    weights.write_bytes(whole[:-8])
    refused("truncated")
    weights.write_bytes(whole)
    config.write_text(text.replace("HieraFPN", "UNet2DModel"))
    refused("is a UNet2DModel, not a mask decoder")
    config.write_text(json.dumps(json.loads(text) | {"decoder_channels": 32}))
    refused("wrong shape|cannot load")
    config.write_text("{")
    refused("not a mask decoder")


@pytest.mark.parametrize("options", [{}, {"freeze_encoder": True}, {"loss": {"presence": 0.0}}])
def test_training_checkpoints(tmp_path, options):
    torch.manual_seed(0)
    if "freeze_encoder" in options:
        HieraFPN(**PLAIN).save_pretrained(tmp_path / "encoder")
        options = options | {"encoder_weights": str(tmp_path / "encoder")}
    module = MaskDecoderModule(PLAIN, **options)
    checkpoint = {"state_dict": dict(module.state_dict()), "hyper_parameters": dict(module.hparams), "callbacks": {}}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    loaded = MaskPipeline.from_pretrained(tmp_path / "last.ckpt")
    pixels = module.network.normalize(batch(2)["image"])
    with torch.no_grad():
        expected = module.network.eval()(pixels).logits
        assert torch.equal(loaded.network(pixels).logits, expected)
    checkpoint["state_dict"].pop("network.decoder.head.weight")
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="1 tensors are missing"):
        MaskPipeline.from_pretrained(tmp_path / "last.ckpt")


def test_checkpoint_of_another_method(tmp_path):
    torch.save({"state_dict": {"unet.w": torch.zeros(1)}, "hyper_parameters": {"base": "pocket"}}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="not a checkpoint of a mask decoder"):
        MaskPipeline.from_pretrained(tmp_path / "a.ckpt")


def test_a_fresh_process_needs_no_lightning(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "m")
    code = (
        "import sys; from lit_insert import MaskPipeline; from PIL import Image; "
        f"p = MaskPipeline.from_pretrained({str(tmp_path / 'm')!r}); "
        "assert p(Image.new('RGB', (30, 20))).mask.size == (30, 20); "
        "bad = {'lightning', 'pytorch_lightning'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)


def test_encoders_of_any_size_are_letterboxed_too():
    torch.manual_seed(0)
    output = MaskPipeline(HieraFPN(**DET))(photo(100, 30))
    assert output.mask.size == (100, 30)
