import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_insert import FEW, components, picture, seeded

from lit_insert.embedding_optimizer.parts import load_parts
from lit_insert.embedding_optimizer.pipeline import InsertPipeline
from lit_insert.errors import InputError


@pytest.fixture
def exported(tmp_path):
    InsertPipeline(**components()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refusal(source, **options):
    with pytest.raises(InputError) as caught:
        InsertPipeline.from_pretrained(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_missing_adapter_is_an_error_never_random(exported):
    adapter = exported / "embedding_optimizer"
    weights = adapter / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-5])
    assert str(weights) in refusal(exported)
    weights.unlink()
    assert f"{adapter}: no weights" in refusal(exported)
    shutil.rmtree(adapter)
    assert "no embedding_optimizer/ folder" in refusal(exported)
    index = json.loads((exported / "model_index.json").read_text())
    del index["embedding_optimizer"]
    (exported / "model_index.json").write_text(json.dumps(index))
    assert "a base to train from, not a model to insert with" in refusal(exported)


def test_a_base_works_with_an_adapter_handed_in(exported):
    adapter = InsertPipeline.from_pretrained(exported).embedding_optimizer
    shutil.rmtree(exported / "embedding_optimizer")
    index = json.loads((exported / "model_index.json").read_text())
    del index["embedding_optimizer"]
    (exported / "model_index.json").write_text(json.dumps(index))
    pipe = InsertPipeline.from_pretrained(exported, embedding_optimizer=adapter)
    assert pipe.embedding_optimizer is adapter


def test_broken_parts_are_named(exported):
    for name in ("unet", "vae", "image_encoder"):
        shutil.move(exported / name, exported / "away")
        assert f"no {name}/ folder" in refusal(exported)
        shutil.move(exported / "away", exported / name)
    (exported / "model_index.json").write_text("{")
    assert "model_index.json: missing or broken" in refusal(exported)


def test_failed_save_keeps_the_previous_model(exported, monkeypatch):
    pipe = InsertPipeline.from_pretrained(exported)
    before = {p: p.read_bytes() for p in exported.rglob("*") if p.is_file()}

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipe.unet, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        pipe.save_pretrained(exported)
    assert {p: p.read_bytes() for p in exported.rglob("*") if p.is_file()} == before
    assert [p.name for p in exported.parent.iterdir()] == ["model"]


def checkpoint_of(exported, path, tuning, ema):
    """A training checkpoint of the base, with every trained weight moved; returns the trained parts."""
    adapter = {"num_tokens": 4, "heads": 4, "depth": 1}
    parts = load_parts(str(exported), adapter=adapter, unet=tuning)
    trained = {}
    with torch.no_grad():
        for name in parts.tuned:
            trained[f"unet.{name}"] = parts.unet.get_parameter(name).normal_(std=0.2, generator=seeded(1))
        for name, value in parts.embedding_optimizer.named_parameters():
            trained[f"embedding_optimizer.{name}"] = value.normal_(generator=seeded(2))
    state = {k: v.detach().clone() for k, v in trained.items()}
    checkpoint = {
        "state_dict": {k: torch.zeros_like(v) for k, v in state.items()} if ema else state,
        "callbacks": {"EMA": {"updates": 2, "shadow": state}} if ema else {},
        "hyper_parameters": {"base": str(exported), "adapter": adapter, "unet": tuning},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return parts


@pytest.mark.parametrize("target", ["attn2", "lora", "none"])
@pytest.mark.parametrize("ema", [False, True])
def test_checkpoint_gives_the_trained_model(exported, tmp_path, target, ema):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    parts = checkpoint_of(exported, path, {"target": target, "rank": 2}, ema)
    expected = InsertPipeline.from_parts(parts)
    for source in (path, tmp_path / "run"):
        loaded = InsertPipeline.from_pretrained(source, scheduler="ddim")
        expected.set_scheduler("ddim")
        expected.set_progress_bar_config(disable=True)
        loaded.set_progress_bar_config(disable=True)
        a, b = (
            p(picture(1), picture(2), generator=seeded(0), output_type="latent", **FEW).images[0]
            for p in (expected, loaded)
        )
        assert np.allclose(a, b, atol=1e-3)
    loaded.unet.load_state_dict(InsertPipeline.from_pretrained(exported).unet.state_dict())
    c = loaded(picture(1), picture(2), generator=seeded(0), output_type="latent", **FEW).images[0]
    assert np.allclose(a, c, atol=1e-2) == (target == "none")  # else the comparison above could not fail
    assert not any("lora" in name for name, _ in loaded.unet.named_parameters())
    loaded.save_pretrained(tmp_path / "again")
    InsertPipeline.from_pretrained(tmp_path / "again")


def test_checkpoints_that_do_not_fit_are_named(exported, tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoint_of(exported, path, {"target": "attn2"}, False)
    whole = torch.load(path, weights_only=True)

    def variant(**changes):
        torch.save({**whole, **changes}, path)
        return refusal(path)

    state = dict(whole["state_dict"])
    first = next(k for k in state if k.startswith("unet."))
    assert "1 tensors are missing" in variant(state_dict={k: v for k, v in state.items() if k != first})
    assert "fit nothing" in variant(state_dict={**state, "unet.extra": torch.zeros(1)})
    assert "not a checkpoint of the embedding optimizer" in variant(hyper_parameters={})
    assert "not a checkpoint of the embedding optimizer" in variant(state_dict={"vae.w": torch.zeros(1)})
    assert "no state_dict" in variant(state_dict={})
    torch.save(whole, path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert "a.ckpt: truncated" in refusal(path)


def test_hub_models_come_through_the_cache(exported, monkeypatch):
    from lit_insert.embedding_optimizer import sources

    seen = {}

    def pull(repo_id, **options):
        seen.update(options, repo_id=repo_id)
        return Path(exported)

    monkeypatch.setattr(sources, "pull_model", pull)
    pipe = InsertPipeline.from_pretrained("owner/model", revision="v1")
    assert seen == {"repo_id": "owner/model", "revision": "v1"}
    assert pipe.processing_resolution == 32
