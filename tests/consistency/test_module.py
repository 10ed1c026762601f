import lightning.pytorch as pl
import pytest
import torch
from diffusers import ConsistencyModelPipeline
from tiny import NETWORK, Pictures, seeded

from lit_insert.consistency.module import ConsistencyModule, EDMModule
from lit_insert.consistency.network import consistency_function
from lit_insert.consistency.pairs import PairSchedule
from lit_insert.consistency.pipeline import ConsistencyPipeline
from lit_insert.consistency.sampling import multistep
from lit_insert.consistency.start import load_start
from lit_insert.errors import InputError
from lit_insert.images import image_grid
from lit_insert.training.checkpoint import RunCheckpoint
from lit_insert.training.ema import EMA

STEPS = 6
SCHEDULES = {
    "cd": PairSchedule(total_steps=STEPS, s0=6),
    "ct": PairSchedule(total_steps=STEPS, s0=2, s1=12),
    "ict": PairSchedule(total_steps=STEPS, s0=4, s1=16),
    "ect": PairSchedule(total_steps=STEPS, stages=3),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """An exported diffusion model."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    torch.manual_seed(5)
    net = EDMModule(NETWORK)
    for p in net.unet.parameters():
        p.data += 0.05 * torch.randn_like(p)
    net.export(folder)
    return str(folder)


def adam(parameters):
    return torch.optim.RAdam(parameters, lr=1e-3)


def module(objective, teacher, **options):
    torch.manual_seed(0)
    source = {"cd": {"teacher": teacher}, "ect": {"init": teacher}}.get(objective, {"network": dict(NETWORK)})
    given = {"schedule": SCHEDULES[objective], "optimizer": adam, **source, **options}
    return ConsistencyModule(objective, **given)


def trainer(tmp_path, *callbacks, **options):
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": bool(callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_steps": STEPS,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **{**settings, **options})


def batch(n=4, classes=0):
    data = Pictures(classes=classes)
    samples = [data.sample(i, 0) for i in range(n)]
    return {k: [s[k] for s in samples] if k == "id" else torch.stack([s[k] for s in samples]) for k in samples[0]}


@pytest.mark.parametrize("objective", ["edm", *SCHEDULES])
def test_the_gradient_reaches_all_that_trains_and_nothing_else(teacher, objective):
    net = EDMModule(dict(NETWORK)) if objective == "edm" else module(objective, teacher)
    net.train()
    for seed in range(2):  # a network starts with zeros that let no gradient past them
        losses = net.compute_loss(batch(), seeded(seed))
        losses["loss"].backward()
    assert losses["loss"].dtype == torch.float32
    for name, p in net.named_parameters():
        trains = name.startswith("unet.")
        assert p.requires_grad is trains, name
        assert (p.grad is not None) is trains, name
        assert not trains or bool(p.grad.any()), name


def test_students_start_as_their_teacher(teacher):
    start = load_start(teacher).unet.state_dict()
    for objective in ("cd", "ect"):
        net = module(objective, teacher)
        assert all(torch.equal(v, start[k]) for k, v in net.unet.state_dict().items())
    net = module("cd", teacher)
    assert all(torch.equal(v, start[k]) for k, v in net.target.state_dict().items())
    other = module("ict", teacher, network={**NETWORK, "dropout": 0.2}, init=teacher)
    assert all(torch.equal(v, start[k]) for k, v in other.unet.state_dict().items())
    assert other.unet.config.dropout == 0.2


def test_the_target_follows_once_per_optimiser_step(teacher, tmp_path):
    moves = []
    net = module("ct", teacher)
    plain = net.move_target
    net.move_target = lambda decay: (moves.append(decay), plain(decay))
    before = [p.clone() for p in net.target.parameters()]
    trainer(tmp_path, accumulate_grad_batches=2).fit(net, Pictures())
    assert moves == [SCHEDULES["ct"].filled("ct").decay("ct", k) for k in range(STEPS)]
    assert any(not torch.equal(a, b) for a, b in zip(before, net.target.parameters(), strict=True))
    student, target = torch.ones(3), torch.zeros(3)
    net.unet, net.target = torch.nn.ParameterList([student]), torch.nn.ParameterList([target])
    plain(0.9)
    assert torch.allclose(net.target[0].detach(), torch.full((3,), 0.1))


def state(folder):
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return {**checkpoint["state_dict"], **{f"ema.{k}": v for k, v in checkpoint["callbacks"]["EMA"]["shadow"].items()}}


@pytest.mark.parametrize(("objective", "accumulate"), [("cd", 1), ("ct", 2), ("ict", 2), ("ect", 1)])
def test_resuming_is_exact(teacher, tmp_path, objective, accumulate):
    def run(folder, steps, resume=None):
        callbacks = (EMA(0.9), RunCheckpoint(every_n_steps=1))
        net = module(objective, teacher, **({} if objective == "cd" else {"network": {**NETWORK, "dropout": 0.3}}))
        fit = trainer(folder, *callbacks, max_steps=steps, accumulate_grad_batches=accumulate)
        fit.fit(net, Pictures(), ckpt_path=resume)
        assert fit.global_step == steps
        return state(folder)

    whole = run(tmp_path / "whole", STEPS)
    run(tmp_path / "part", 3)
    resumed = run(tmp_path / "rest", STEPS, tmp_path / "part/checkpoints/last.ckpt")
    assert whole.keys() == resumed.keys()
    assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == []
    assert any(k.startswith("target.") for k in whole) is (objective in ("cd", "ct"))
    assert not any(k.startswith("teacher.") for k in whole)


def test_a_checkpoint_without_its_target_network_is_refused(teacher, tmp_path):
    trainer(tmp_path, RunCheckpoint(every_n_steps=1), max_steps=1).fit(module("ct", teacher), Pictures())
    path = tmp_path / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("target.")}
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="target network"):
        trainer(tmp_path).fit(module("ct", teacher), Pictures(), ckpt_path=path)


@pytest.mark.parametrize(("compiled", "unknown", "seen"), [(False, 3, 3), (False, 1, 1), (True, 3, 3), (True, 1, 2)])
def test_rows_with_a_known_target_cost_no_evaluation(teacher, compiled, unknown, seen):
    net = module("ect", teacher, compile=compiled)
    calls = []
    net.unet.register_forward_hook(lambda m, args, out: calls.append(len(out[0])))
    pairs = net.schedule.draw("ect", 0, torch.rand(8), torch.linspace(-2, 2, 8), net.noise)
    pairs = pairs._replace(lower=torch.where(torch.arange(8) < unknown, 0.5 * pairs.sigma, 0.0))
    net.schedule = FixedPairs(pairs)
    net.train()
    net.compute_loss(batch(8), seeded(0))["loss"].backward()
    assert calls == [8, seen]


class FixedPairs:
    """A schedule that always draws the same."""

    def __init__(self, pairs):
        self.pairs = pairs

    def draw(self, *_):
        return self.pairs

    def levels(self, *_):
        return 1


def test_schedules_stand_still_after_their_end(teacher):
    net = module("ict", teacher).train()
    assert net.schedule.levels("ict", 10 * STEPS) == 17
    assert net.schedule.levels("ict", STEPS) == 17


def test_validation_compares_at_the_end_of_the_schedule(teacher):
    net = module("ct", teacher)
    assert "levels" in net.train().compute_loss(batch(), seeded())
    evaluated = net.eval().compute_loss(batch(), seeded())
    again = module("ct", teacher, schedule=PairSchedule(total_steps=1, s0=12, s1=12)).eval()
    again.unet.load_state_dict(net.unet.state_dict())
    assert evaluated["loss"].item() == pytest.approx(again.compute_loss(batch(), seeded())["loss"].item())


def test_validation_compares_one_step_samples_with_the_pictures(teacher, tmp_path):
    net = module("cd", teacher)
    fit = trainer(tmp_path, limit_val_batches=None)
    fit.validate(net, Pictures(length=12), verbose=False)
    first = fit.callback_metrics["val/wasserstein"].item()
    assert first > 0
    fit.validate(net, Pictures(length=12), verbose=False)
    assert fit.callback_metrics["val/wasserstein"].item() == first
    for p in net.unet.parameters():
        p.data *= 3
    fit.validate(net, Pictures(length=12), verbose=False)
    assert fit.callback_metrics["val/wasserstein"].item() != first


def test_compiled_networks_are_the_same_networks(teacher, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: compiled.append(call) or call)
    weights = []
    for flag in (False, True):
        net = module("cd", teacher, compile=flag)
        trainer(tmp_path, max_steps=2).fit(net, Pictures())
        weights.append(net.state_dict())
        assert len(compiled) == 3 * flag  # student, target and teacher
    # With fixed shapes rows of a known target are evaluated too, which rounds the others differently.
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize("objective", ["cd", "ict"])
def test_two_processes_make_the_step_of_one(teacher, tmp_path, objective):
    class Keep(pl.Callback):
        def on_train_end(self, trainer, net):
            torch.save({n: p.detach() for n, p in net.named_parameters()}, tmp_path / f"{trainer.world_size}.pt")

    def run(size, **options):
        fit = trainer(tmp_path, max_steps=3, **options)
        fit.callbacks.append(Keep())
        fit.fit(module(objective, teacher), Pictures(batch_size=size))

    run(4)
    run(2, devices=2, strategy="ddp_fork")
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=2e-5), name


def test_the_exported_model_is_diffusers_own(teacher, tmp_path):
    net = module("ict", teacher, sigmas={"2": [80.0, 0.7]}, num_classes=3)
    trainer(tmp_path, max_steps=2).fit(net, Pictures(classes=3))
    net.export(tmp_path / "model")
    pipe = ConsistencyModelPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    noise, label = torch.randn(2, 3, 8, 8, generator=seeded(3)), torch.tensor([0, 2])
    theirs = pipe(batch_size=2, class_labels=label, latents=noise, output_type="pt").images
    ours = multistep(consistency_function(net.unet.eval(), net.noise), noise, [80.0], label=label)
    assert torch.allclose(ours / 2 + 0.5, theirs, atol=1e-5)
    assert "# Consistency model, improved training from data, 8 pixels" in (tmp_path / "model/README.md").read_text()
    start = load_start(tmp_path / "model")
    assert start.facts.kind == "consistency"
    assert start.facts.sigmas == {"2": [80.0, 0.7]}


def test_a_distilled_model_is_sampled_at_the_levels_that_it_learnt(teacher, tmp_path):
    net = module("cd", teacher)
    trained = net.noise.sigmas(6).tolist()
    trainer(tmp_path, RunCheckpoint(dirpath=tmp_path / "c", every_n_steps=2), max_steps=2).fit(net, Pictures())
    net.export(tmp_path / "model")
    for source in (tmp_path / "model", tmp_path / "c" / "last.ckpt"):
        pipe = ConsistencyPipeline.from_pretrained(source)
        for steps in (1, 2, 4):
            assert pipe.levels(steps) == net.sigmas_for(steps)
            assert set(pipe.levels(steps)) <= set(trained)


def test_classes_that_never_came_are_not_claimed(teacher, tmp_path):
    data = Pictures(length=8, classes=2)  # of the model's four
    net = module("ict", teacher, num_classes=4, label_dropout=0.5)
    trainer(tmp_path, RunCheckpoint(every_n_steps=1), max_steps=2).fit(net, data)
    assert net.facts().labels == [0, 1]
    assert net.facts().null_label == 4
    start = load_start(tmp_path / "checkpoints/last.ckpt")
    assert start.facts.labels == [0, 1]
    assert start.num_classes == 4


def test_classes_of_data_and_model_are_compared(teacher, tmp_path):
    for classes, names in ((0, "no classes"), (5, "5 classes")):
        with pytest.raises(InputError, match=names):
            trainer(tmp_path).fit(module("ict", teacher, num_classes=4), Pictures(classes=classes))


def test_pictures_while_training(teacher):
    made = module("cd", teacher).eval().sample_grid(batch(2), seeded())
    assert [len(row) for row in made] == [4, 4]
    assert image_grid(made).size[0] > 0
    made = EDMModule(dict(NETWORK), num_inference_steps=3).eval().sample_grid(batch(2), seeded())
    assert [len(row) for row in made] == [2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "cd"}, "cd needs a teacher"),
        ({"objective": "ect", "teacher": "x"}, "takes no teacher"),
        ({"objective": "ict"}, "network is missing"),
        ({"objective": "ict", "network": {"image_size": 8, "chanels": 3}}, "chanels"),
        ({"objective": "ict", "network": NETWORK, "sigmas": {"2": [80.0]}}, "1 levels are given for 2 steps"),
        ({"objective": "ict", "network": NETWORK, "label_dropout": 1.0}, "label_dropout"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ConsistencyModule(**options)


def test_a_consistency_model_is_no_teacher(teacher, tmp_path):
    module("ict", teacher).export(tmp_path / "model")
    with pytest.raises(InputError, match="is a consistency model"):
        ConsistencyModule("cd", teacher=str(tmp_path / "model"))
    with pytest.raises(InputError, match="null class"):
        ConsistencyModule("cd", teacher=teacher, guidance_scale=2.0)
    with pytest.raises(InputError, match="classes"):
        ConsistencyModule("ect", init=teacher, num_classes=3)
