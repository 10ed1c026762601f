import json

import pytest
import torch
from tiny_fusion import seeded

from lit_insert.errors import InputError
from lit_insert.fusion.artifact import FusionArtifact
from lit_insert.letterbox import Frame


def artifact():
    draw = seeded()
    return FusionArtifact(
        fused=torch.randn(4, 8, 8, generator=draw),
        base=torch.randn(4, 8, 8, generator=draw),
        union=torch.rand(8, 8, generator=draw),
        objects=torch.rand(32, 32, generator=draw),
        scene="scene.png",
        frame=Frame(2, 0, 28, 32),
        size=(28, 32),
        autoencoder="mae-4x1-32px-8x8",
        seed=7,
        notes=["a note"],
        placements=[{"object": 0, "window": [1, 2, 3, 4]}],
    )


def test_it_comes_back_as_it_was(tmp_path):
    mine = artifact()
    path = mine.save(tmp_path / "one.safetensors")
    assert {p.name for p in tmp_path.iterdir()} == {"one.safetensors", "one.json"}
    for name in ("one.safetensors", "one.json"):
        again = FusionArtifact.load(tmp_path / name)
        for key, value in vars(mine).items():
            other = getattr(again, key)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    artifact().save(path)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before


def test_a_file_of_the_original_program_is_read(tmp_path):
    original = {
        "fused_features": torch.randn(1, 4, 8, 8, generator=seeded()).half(),
        "union_mask": torch.rand(1, 1, 8, 8),
        "occupied_mask": torch.rand(1, 1, 8, 8),
        "global_scale": 0.3,
        "base_image": "assets/base.png",
        "objects_info": [{"path": "r.png", "text": "butterfly"}],
        "timestamp": "20260101_000000",
        "overlap_mode": "allow",
        "rerank_clip": False,
        "clip_model": None,
    }
    torch.save(original, tmp_path / "old.pt")
    found = FusionArtifact.load(tmp_path / "old.pt")
    assert torch.equal(found.fused, original["fused_features"][0].float())
    assert torch.equal(found.union, original["union_mask"][0, 0])
    assert (found.base, found.frame, found.objects, found.scene) == (None, None, None, "assets/base.png")
    found.check_space("whatever", (4, 8, 8))
    torch.save({**original, "union_mask": torch.rand(1, 1, 4, 4)}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="do not fit"):
        FusionArtifact.load(tmp_path / "bad.pt")
    torch.save({"fused_features": original["fused_features"]}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="no tensor 'union_mask'"):
        FusionArtifact.load(tmp_path / "bad.pt")
    torch.save({**original, "objects_info": artifact}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="refused, since loading them runs code"):
        FusionArtifact.load(tmp_path / "bad.pt")


def test_other_spaces_and_broken_files_are_refused(tmp_path):
    mine = artifact()
    mine.check_space("mae-4x1-32px-8x8", (4, 8, 8))
    for name, shape in (("mae-4x1-32px-8x8", (4, 16, 16)), ("dinov2-4x1-32px-8x8", (4, 8, 8))):
        with pytest.raises(InputError, match="made with mae-4x1-32px-8x8 4x8x8; the model here is"):
            mine.check_space(name, shape)
    path = mine.save(tmp_path / "one")
    about = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**about, "schema_version": 99}))
    with pytest.raises(InputError, match="schema_version 99"):
        FusionArtifact.load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"one\.json: missing"):
        FusionArtifact.load(path)
    with pytest.raises(InputError, match="no such file"):
        FusionArtifact.load(tmp_path / "none.safetensors")
    mine.fused[0, 0, 0] = float("nan")
    path = mine.save(tmp_path / "one")
    with pytest.raises(InputError, match="not all finite"):
        FusionArtifact.load(path)
    mine.union = torch.zeros(4, 4)
    mine.fused[0, 0, 0] = 0
    with pytest.raises(InputError, match="grid"):
        FusionArtifact.load(mine.save(tmp_path / "one"))
