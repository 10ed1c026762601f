from scripts import run

# Geng et al. 2024, written out once more: preconditioning with the boundary at 0, pairs, weights, Euclidean distance.
NETWORKS = """
import torch


class ECMPrecond(torch.nn.Module):
    def __init__(self, img_resolution, img_channels, model_type):
        super().__init__()
        self.model = globals()[model_type](img_resolution=img_resolution, in_channels=img_channels)

    def forward(self, x, t):
        both = 0.25 + t**2
        made = self.model(x / both.sqrt(), t.log().flatten() / 4, class_labels=None)
        return 0.25 / both * x + 0.5 * t / both.sqrt() * made
"""
LOSS = """
import torch


class ECMLoss:
    def update_schedule(self, stage):
        self.gap = 0.5 ** (stage + 1)

    def __call__(self, net, images):
        t = (-1.1 + 2 * torch.randn(len(images), 1, 1, 1)).exp()
        noise = torch.randn_like(images)
        r = (t - t * self.gap * (1 + 8 / (1 + t.exp()))).clamp(min=0)
        with torch.no_grad():
            wanted = torch.where(r > 0, net(images + r * noise, r.clamp(min=1e-6)), images)
        distance = (net(images + t * noise, t) - wanted).flatten(1).norm(dim=1)
        return distance / (WEIGHT).flatten()
"""


def agreement(folder, weight):
    """What the benchmark says of a peer with that divisor."""
    (folder / "training").mkdir(parents=True)
    for name, text in {"__init__": "", "networks": NETWORKS, "loss": LOSS.replace("WEIGHT", weight)}.items():
        (folder / "training" / f"{name}.py").write_text(text)
    return run("consistency_agreement", f"--peer={folder}", "--n=16", "--json")["rows"]


def test_ect_from_the_same_draws_has_the_gradient_of_its_paper(tmp_path):
    rows = agreement(tmp_path, "t - r")
    assert [row["stage"] for row in rows] == [1, 2, 3, 4]
    assert all(row["cosine"] > 0.99 and 0.85 < row["norm_ratio"] < 1.1 for row in rows)
    assert all(abs(row["loss"] / row["peer_loss"] - 1) < 0.05 for row in rows)


def test_another_weighting_shows(tmp_path):
    last = agreement(tmp_path, "t")[-1]  # in the first stage most r are 0
    assert last["norm_ratio"] > 2
    assert last["loss"] > 2 * last["peer_loss"]


def test_a_peer_of_another_objective_is_one_line(tmp_path):
    (tmp_path / "consistency_models").mkdir()
    (tmp_path / "consistency_models" / "consistency_models.py").touch()
    assert "give a checkout of locuslab/ect" in run("consistency_agreement", f"--peer={tmp_path}", status=1)
