import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import write_pipe, write_triplets
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from lit_insert.data.card import dataset_card, write_dataset_card
from lit_insert.data.check import check_data, report_of
from lit_insert.data.folder import read_metadata
from lit_insert.data.similarity import Clip, clip_similarity, summarise
from lit_insert.data.transforms import clip_processor
from lit_insert.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(capsys, monkeypatch, tmp_path):
    """Runs a script's main in a folder of its own; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        main = runpy.run_path(str(ROOT / "data" / name))["main"]
        code = main([str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return run


def test_a_sound_set(triplets):
    check = check_data(triplets)
    assert check.ok
    assert [(s.name, s.count, s.good, len(s.samples)) for s in check.splits] == [
        ("train", 12, 12, 4), ("val", 4, 4, 4), ("test", 3, 3, 3),
    ]  # fmt: skip
    assert check.as_dict()["splits"]["train"] == {"count": 12, "good": 12, "pictures": 12, "faults": {}}


def test_every_broken_file_is_named(triplets):
    broken = ["train/target/toy-0003.png", "train/mask/toy-0005.png", "val/object/toy-0101.png"]
    (triplets / broken[0]).write_bytes(b"")
    (triplets / broken[1]).unlink()
    (triplets / broken[2]).write_bytes((triplets / broken[2]).read_bytes()[:60])
    check = check_data(triplets)
    assert not check.ok
    assert {str(triplets / b) for b in broken} == {f for s in check.splits for f in s.faults}
    assert [s.good for s in check.splits] == [10, 3, 3]


def edit(folder, old, new):
    path = folder / "metadata.csv"
    path.write_text(path.read_text().replace(old, new))


def test_pictures_in_two_splits_are_found(triplets):
    edit(triplets / "val", "toy-0100,0100", "toy-0100,0004")
    check = check_data(triplets)
    assert check.problems == ["1 pictures are in train and in val, the first is toy/0004"]


def test_ids_in_two_splits_are_found(triplets):
    edit(triplets / "val", "toy-0100,0100", "toy-0004,0100")
    assert check_data(triplets).problems == ["triplet_id 'toy-0004' is in train and in val"]


def test_what_does_not_fit_together_is_found(triplets):
    Image.new("RGB", (20, 20)).save(triplets / "train/original/toy-0001.png")
    Image.new("L", (20, 20), 255).save(triplets / "train/mask/toy-0002.png")
    Image.new("L", (64, 64)).save(triplets / "train/mask/toy-0003.png")
    edit(triplets / "test", ",10,12,40,50,", ",10,12,400,50,")
    edit(triplets / "test", ",30,12,60,50,", ",30,12,30,50,")
    faults = {k: v for s in check_data(triplets).splits for k, v in s.faults.items()}
    assert faults["toy-0001"] == "original is (20, 20), target is (64, 64)"
    assert faults["toy-0002"] == "mask is (20, 20), target is (64, 64)"
    assert faults["toy-0003"] == "the mask is empty"
    assert any("is not within the target" in f for f in faults.values())


def test_bad_metadata_is_a_problem_not_a_crash(triplets):
    edit(triplets / "val", "target/toy-0101.png", "../train/target/toy-0001.png")
    check = check_data(triplets)
    assert not check.ok
    assert "leads out of" in check.problems[0]
    assert check.splits[0].good == 12


def test_parquet(tmp_path):
    write_pipe(tmp_path, 20)
    write_pipe(tmp_path, 6, "test", mask_order=range(5))
    with pytest.raises(InputError, match="give --masks"):
        check_data(tmp_path / "PIPE")
    check = check_data(tmp_path / "PIPE", tmp_path / "PIPE_Masks")
    assert [(s.name, s.count, s.good) for s in check.splits] == [("train", 20, 20), ("test", 6, 5)]
    assert check.problems[0] == "test: 1 of 6 rows have no mask"
    assert "are in train and in test" in check.problems[1]


def test_a_folder_of_pictures(tmp_path):
    (tmp_path / "some" / "deep").mkdir(parents=True)
    for name in ("a.png", "some/deep/b.jpg", "some/deep/c.jpg"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "some/deep/d.jpg").write_bytes(b"\xff\xd8")
    check = check_data(tmp_path)
    assert [(s.name, s.count, s.good) for s in check.splits] == [(".", 1, 1), ("some/deep", 3, 2)]
    assert list(check.splits[1].faults) == [str(tmp_path / "some/deep/d.jpg")]


def test_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no metadata, no parquet files and no pictures"):
        check_data(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        check_data(tmp_path / "none")


def test_the_page_shows_samples_and_faults(triplets, tmp_path):
    (triplets / "train/target/toy-0003.png").write_bytes(b"")
    page = report_of(check_data(triplets), triplets).save(tmp_path / "page.html").read_text()
    assert page.count("<img") == 4 * (4 + 4 + 3)
    assert "toy-0003.png" in page
    assert "the file is empty" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_script_tells_by_its_exit_code(triplets, tmp_path, script):
    code, out, _ = script("check_data.py", triplets, "--json")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    assert found["ok"] is True
    assert Path(found["report"]).name == "check_set.html"
    assert (tmp_path / "check_set.html").stat().st_size > 10_000
    (triplets / "val/object/toy-0101.png").unlink()
    code, _, err = script("check_data.py", triplets, "--report", tmp_path / "x.html")
    assert code == 1
    assert "toy-0101.png" in err
    code, _, err = script("check_data.py", tmp_path / "nowhere")
    assert code == 2
    assert err.splitlines()[-1] == f"error: {tmp_path / 'nowhere'}: no such folder"


VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 16, "projection_dim": 8}  # fmt: skip


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))
    for weight in model.parameters():
        weight.data.normal_()  # as initialised, a model hardly tells pictures apart
    model.save_pretrained(folder / "image_encoder")
    clip_processor(32).save_pretrained(folder / "feature_extractor")
    return folder


def test_similarity_of_objects_cut_from_their_target_is_one(triplets, vision_folder):
    rng = np.random.default_rng(0)
    for record in read_metadata(triplets / "train")[::2]:
        target = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        target.save(record.target)
        target.crop(record.box).save(record.object)
    clip = Clip(str(vision_folder))
    found = clip_similarity(read_metadata(triplets / "train"), clip, batch_size=5)
    assert list(found) == ["object / target crop", "object / another's crop"]
    assert found["object / target crop"]["p5"] > 0.999
    assert found["object / another's crop"]["p95"] < 0.995
    assert found["object / target crop"]["n"] == 12


def test_similarity_with_texts(triplets, tmp_path):
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path / "clip")
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
    model.save_pretrained(tmp_path / "clip")
    clip = Clip(str(tmp_path / "clip"))
    assert clip.text
    inputs = clip.tokenizer(["add number 1"], return_tensors="pt")
    expected = model.eval().text_projection(model.text_model(**inputs).pooler_output)
    cosine = torch.nn.functional.cosine_similarity(expected, clip.texts(["add number 1"]))
    assert cosine.item() == pytest.approx(1, abs=1e-5)
    assert clip.texts(["a very long text " * 20]).shape == (1, 8)
    found = clip_similarity(read_metadata(triplets / "train"), clip)
    assert found["object / text"]["n"] == 12
    assert -1 <= found["object / text"]["p5"] <= found["object / text"]["p95"] <= 1


def test_no_clip_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no CLIP model there"):
        Clip(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="is a bert model"):
        Clip(str(tmp_path))


def test_summary_of_known_numbers():
    assert summarise(torch.arange(101) / 100) == {
        "n": 101, "mean": 0.5, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95,
    }  # fmt: skip


def test_the_script_adds_similarity(triplets, vision_folder, tmp_path, script):
    code, out, _ = script("check_data.py", triplets, "--clip", vision_folder, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["similarity"]["object / target crop"]["n"] == 19
    assert "CLIP similarity" in (tmp_path / "check_set.html").read_text()
    code, _, err = script("check_data.py", triplets, "--clip", tmp_path / "none", "--report", tmp_path / "no.html")
    assert code == 2
    assert "no CLIP model there" in err
    assert not (tmp_path / "no.html").exists()


def test_the_card_tells_the_hub_about_the_splits(triplets):
    import yaml

    card = dataset_card(check_data(triplets), "me/photos", "cc-by-4.0", "Taken by me.")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["data_files"][1] == {"split": "validation", "path": "val/**"}
    assert "| train | 12 | 12 |" in card
    assert "Taken by me." in card
    assert write_dataset_card(triplets, card).read_text() == card
    assert check_data(triplets).ok
    with pytest.raises(FileNotFoundError):
        write_dataset_card(triplets / "train", card)


def test_a_dry_run_lists_files_and_writes_nothing(triplets, script):
    code, out, _ = script("push_dataset.py", triplets, "me/photos", "--license", "mit", "--dry_run")
    assert code == 0
    assert "would upload 79 files" in out
    assert "to me/photos (private)" in out
    assert "train/target/toy-0003.png" in out
    assert not (triplets / "README.md").exists()


def test_a_set_with_faults_is_not_uploaded(triplets, tmp_path, script):
    (triplets / "val/object/toy-0101.png").write_bytes(b"")
    code, _, err = script("push_dataset.py", triplets, "me/photos", "--license", "mit", "--dry_run")
    assert code == 2
    assert "has faults" in err
    write_triplets(tmp_path / "pictures-only", "train", 1)
    shutil.rmtree(tmp_path / "pictures-only/train/mask")
    (tmp_path / "pictures-only/train/metadata.csv").unlink()
    _, _, err = script("push_dataset.py", tmp_path / "pictures-only", "me/photos", "--license", "mit")
    assert "no triplets there" in err
