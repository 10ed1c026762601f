import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from tiny_text import components

from lit_insert.errors import InputError
from lit_insert.mifo.artifact import MifoArtifact
from lit_insert.mifo.tokens import attach_rows, start_rows

NAMES = ["<asset0>", "<asset1>", "<asset2>"]


@pytest.fixture
def parts():
    return components()


def test_rows_stand_for_new_ids_and_the_table_for_all_others(parts):
    tokenizer, encoder = parts["tokenizer"], parts["text_encoder"]
    ids = tokenizer(["a photo of <asset1> and <asset0>"], return_tensors="pt").input_ids
    plain = tokenizer(["a photo of a square"], padding="max_length", return_tensors="pt").input_ids
    before = encoder(plain).last_hidden_state
    rows = attach_rows(tokenizer, encoder, NAMES)
    after = tokenizer(["a photo of <asset1> and <asset0>"], return_tensors="pt").input_ids
    assert after.shape[1] < ids.shape[1]
    assert torch.equal(encoder(plain).last_hidden_state, before)
    start_rows(rows, tokenizer, 3, seed=1)
    found = rows(after)[0]
    at = [int((after[0] == rows.first + i).nonzero()) for i in (1, 0)]
    assert torch.equal(found[at], rows.rows[[1, 0]])
    encoder(after).last_hidden_state.sum().backward()
    assert rows.rows.grad[2].abs().sum() == 0
    assert rows.rows.grad[:2].abs().sum(1).min() > 0
    assert rows.table.weight.grad is None


def test_nothing_but_the_rows_changes_even_under_weight_decay(parts):
    rows = attach_rows(parts["tokenizer"], parts["text_encoder"], NAMES)
    start_rows(rows, parts["tokenizer"], 2)
    table, started = rows.table.weight.clone(), rows.rows.detach().clone()
    optimizer = torch.optim.AdamW([p for p in rows.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        rows(torch.tensor([[3, rows.first, rows.first + 1]])).square().sum().backward()
        optimizer.step()
    assert torch.equal(rows.table.weight, table)
    assert (rows.rows[:2] != started[:2]).all()


def test_rows_start_apart_reproducibly_and_near_their_words(parts):
    tokenizer = parts["tokenizer"]
    rows = attach_rows(tokenizer, parts["text_encoder"], NAMES)
    start_rows(rows, tokenizer, 2, seed=4)
    first = rows.rows.detach().clone()
    assert torch.nn.functional.cosine_similarity(first[0] - first.mean(0), first[1] - first.mean(0), dim=0) < 0.5
    start_rows(rows, tokenizer, 2, seed=4)
    assert torch.equal(rows.rows, first)
    start_rows(rows, tokenizer, 2, seed=5)
    assert not torch.equal(rows.rows, first)
    start_rows(rows, tokenizer, 2, ["red circle", "red circle"], spread=0.1)
    words = rows.table.weight[tokenizer("red circle", add_special_tokens=False).input_ids].mean(0)
    distance = (rows.rows[:2] - words).norm(dim=1)
    assert (distance < 0.2 * words.norm()).all()
    assert not torch.equal(rows.rows[0], rows.rows[1])
    assert rows.used == 2


def test_mistakes_are_told(parts):
    tokenizer = parts["tokenizer"]
    rows = attach_rows(tokenizer, parts["text_encoder"], NAMES)
    with pytest.raises(InputError, match="the tokenizer of the base has it already"):
        attach_rows(tokenizer, parts["text_encoder"], ["<asset1>"])
    with pytest.raises(InputError, match="4 instances, but max_instances is 3"):
        start_rows(rows, tokenizer, 4)
    with pytest.raises(InputError, match="1 entries, the folder 2"):
        start_rows(rows, tokenizer, 2, ["a"])


def test_diffusers_loads_the_token_files(parts, tmp_path):
    tokens = {"<asset0>": torch.randn(32), "<asset1>": torch.randn(32)}
    MifoArtifact("base", tokens).save(tmp_path / "out")
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    files = [tmp_path / "out/tokens" / f"asset{i}.safetensors" for i in (0, 1)]
    pipe.load_textual_inversion([load_file(f) for f in files], token=list(tokens))
    table = pipe.text_encoder.get_input_embeddings().weight
    for token, row in tokens.items():
        assert torch.equal(table[pipe.tokenizer.convert_tokens_to_ids(token)], row)
