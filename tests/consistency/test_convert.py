"""The converter against a UNet with ADM's tensor names, written here from the paper's description."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_insert.consistency.convert import main, read_layout
from lit_insert.consistency.pipeline import ConsistencyPipeline

WIDTHS, BLOCKS, EMB, HEAD, CLASSES = (32, 64), 2, 128, 32, 5


class Res(nn.Module):
    def __init__(self, cin, cout, resample=None, scale_shift=True):
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(32, cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(EMB, (1 + scale_shift) * cout))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, cout), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(cout, cout, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x, emb):
        h = self.in_layers[:2](x)
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.resample == "up":
            h, x = (F.interpolate(t, scale_factor=2, mode="nearest") for t in (h, x))
        h, e = self.in_layers[2](h), self.emb_layers(emb)[..., None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


class Attn(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv, self.proj_out = nn.GroupNorm(32, c), nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

    def forward(self, x, emb):
        flat = x.flatten(2)
        q, k, v = (t.unflatten(1, (-1, HEAD)) for t in self.qkv(self.norm(flat)).chunk(3, 1))
        weights = torch.einsum("nhct,nhcs->nhts", q, k).div(math.sqrt(HEAD)).softmax(-1)
        made = torch.einsum("nhts,nhcs->nhct", weights, v).flatten(1, 2)
        return (flat + self.proj_out(made)).view_as(x)


class Conv(nn.Module):
    """A convolution that changes the size."""

    def __init__(self, c, down):
        super().__init__()
        setattr(self, "op" if down else "conv", nn.Conv2d(c, c, 3, 2 if down else 1, 1))

    def forward(self, x, emb):
        return self.op(x) if hasattr(self, "op") else self.conv(F.interpolate(x, scale_factor=2))


class First(nn.Conv2d):
    def forward(self, x, emb):
        return super().forward(x)


class Adm(nn.Module):
    """Two levels, attention on the inner one; every weight random."""

    def __init__(self, updown=True, scale_shift=True, classes=CLASSES, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        a, b = WIDTHS

        def res(cin, cout, resample=None):
            return Res(cin, cout, resample, scale_shift)

        def change(c, way):
            return res(c, c, way) if updown else Conv(c, way == "down")

        self.time_embed = nn.Sequential(nn.Linear(a, EMB), nn.SiLU(), nn.Linear(EMB, EMB))
        if classes:
            self.label_emb = nn.Embedding(classes, EMB)
        blocks = [[First(3, a, 3, padding=1)], [res(a, a)], [res(a, a)], [change(a, "down")]]
        blocks += [[res(a, b), Attn(b)], [res(b, b), Attn(b)]]
        self.input_blocks = nn.ModuleList(nn.ModuleList(x) for x in blocks)
        self.middle_block = nn.ModuleList([res(b, b), Attn(b), res(b, b)])
        blocks = [[res(2 * b, b), Attn(b)], [res(2 * b, b), Attn(b)], [res(b + a, b), Attn(b), change(b, "up")]]
        blocks += [[res(b + a, a)], [res(2 * a, a)], [res(2 * a, a)]]
        self.output_blocks = nn.ModuleList(nn.ModuleList(x) for x in blocks)
        self.out = nn.Sequential(nn.GroupNorm(32, a), nn.SiLU(), nn.Conv2d(a, 3, 3, padding=1))
        for p in self.parameters():
            nn.init.normal_(p, std=0.15)

    @torch.no_grad()
    def forward(self, x, time, labels=None):
        half = WIDTHS[0] // 2
        angles = time[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
        emb = emb if labels is None else emb + self.label_emb(labels)
        kept = []
        for block in self.input_blocks:
            for part in block:
                x = part(x, emb)
            kept.append(x)
        for part in self.middle_block:
            x = part(x, emb)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for part in block:
                x = part(x, emb)
        return self.out(x)


def convert(file, out, *more):
    main([str(file), "--image_size", "16", f"--head_dim={HEAD}", f"--out={out}", *more])
    return ConsistencyPipeline.from_pretrained(out)


@pytest.mark.parametrize("options", [{}, {"updown": False, "scale_shift": False, "classes": None}])
def test_the_converted_network_computes_the_same(tmp_path, options):
    adm = Adm(**options)
    torch.save(adm.state_dict(), tmp_path / "model.pt")
    unet = convert(tmp_path / "model.pt", tmp_path / "out").unet
    generator = torch.Generator().manual_seed(1)
    x, time = torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([-173.3, 1095.5])
    labels = torch.tensor([0, 4]) if "classes" not in options else None
    with torch.no_grad():
        made = unet(x, time, class_labels=labels).sample
    expected = adm(x, time, labels)
    assert expected.std() > 0.1
    assert torch.allclose(made, expected, atol=1e-5, rtol=1e-4)


def test_what_the_tensors_do_not_tell_is_kept(tmp_path, capsys):
    torch.save({k: v.half() for k, v in Adm().state_dict().items()}, tmp_path / "ema.pt")
    pipeline = convert(tmp_path / "ema.pt", tmp_path / "out", "--kind=edm", "--grid=201")
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert pipeline.is_teacher
    assert pipeline.classes == list(range(CLASSES))
    assert pipeline.scheduler.config["num_train_timesteps"] == 201
    assert pipeline.unet.dtype == torch.float32


def refused(tmp_path, capsys, state, *more):
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(SystemExit) as end:
        convert(tmp_path / "bad.pt", tmp_path / "out", *more)
    assert end.value.code == 2
    assert not (tmp_path / "out").exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_every_tensor_must_have_its_place_both_ways(tmp_path, capsys):
    state = Adm().state_dict()
    lacking = {k: v for k, v in state.items() if k != "middle_block.1.proj_out.bias"}
    assert "no tensor middle_block.1.proj_out.bias" in refused(tmp_path, capsys, lacking)
    extra = {**state, "middle_block.3.weight": torch.zeros(2)}
    assert "1 tensors have no place in the network (first: middle_block.3.weight)" in refused(tmp_path, capsys, extra)
    wrong = {**state, "out.2.weight": torch.zeros(3, 16, 3, 3)}
    assert "conv_out.weight has shape" in refused(tmp_path, capsys, wrong)
    partly = {k: v for k, v in state.items() if not k.startswith("input_blocks.5.1.")}
    assert "attention in some of its blocks only" in refused(tmp_path, capsys, partly)
    assert "not a UNet with ADM's tensor names" in refused(tmp_path, capsys, {"weight": torch.zeros(1)})
    assert "not a plain dictionary of tensors" in refused(tmp_path, capsys, {"step": 3})
    assert "kind is 'vae'" in refused(tmp_path, capsys, state, "--kind=vae")
    wide = {**state, "time_embed.0.weight": torch.zeros(EMB, 64)}
    assert "diffusers' UNet has no such form" in refused(tmp_path, capsys, wide)


def test_the_layout_is_read_off():
    layout = read_layout(Adm(updown=False).state_dict(), "here")
    assert layout == ([32, 64], BLOCKS, [False, True], "conv", True, CLASSES)
