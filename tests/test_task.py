"""A method in timm's own training loop, driven as timm's train.py drives its tasks."""

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.utils import dispatch_clip_grad

import timm_arat
from timm_arat.task import RobustTask


def build(**cfg) -> RobustTask:
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=10, layers=(1, 1), channels=(8, 16))
    model.pretrained_cfg.update(cfg)
    return RobustTask(timm_arat.ARAT(model, attack=timm_arat.PGD(eps=0.1, steps=1), weight=5.0), verbose=False)


def normalised(x: torch.Tensor, task: RobustTask) -> torch.Tensor:
    config = resolve_model_data_config(task.get_eval_model())
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return (x - mean) / std


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(16, 3, 32, 32, generator=generator), torch.randint(10, (16,), generator=generator)


def test_some_steps_as_timms_loop_takes_them(batch):
    """Forward under autocast, scaler with clipping, EMA, validation of the plain model, a checkpoint and back."""
    task = build(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    x, y = batch
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="momentum", lr=0.05, weight_decay=5e-4)
    task.setup_ema(decay=0.5)
    losses = []
    for step in range(6):
        task.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = task(normalised(x, task), y)
        result["loss"].backward()
        dispatch_clip_grad(task.get_clip_parameters(), value=1.0, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step)
        losses.append(result["loss"].item())
        assert result["output"].shape == (16, 10)
    assert losses[-1] < losses[0]

    model = task.get_eval_model().eval()
    assert model is task.method.model
    state = task.get_checkpoint_state()
    assert {"state_dict", "task_state"} <= state.keys() and "predictors.0.0.weight" in state["task_state"]
    fresh = build(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    fresh.load_checkpoint_state(state["state_dict"], state["task_state"])
    loaded = fresh.method.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in task.method.state_dict().items())
    averaged = task.get_eval_model(ema=True)
    assert not torch.equal(averaged.conv1.weight, model.conv1.weight)
    evaluator = task.create_evaluator()
    with torch.no_grad():
        evaluator.update(model(normalised(x, task)), y)
    assert evaluator.compute().keys() >= {"top1", "loss"}


def test_a_checkpoint_of_the_loop_becomes_a_plain_model_as_the_docstring_says(batch, tmp_path):
    task = build()
    task(*batch)["loss"].backward()  # both branches have statistics of their own
    torch.save(task.get_checkpoint_state(), tmp_path / "model_best.pth.tar")
    model = timm.create_model("resnet20_cifar", num_classes=10, layers=(1, 1), channels=(8, 16))
    plain_keys = model.state_dict().keys()
    timm_arat.convert_split_norm(model)
    timm.models.load_checkpoint(model, str(tmp_path / "model_best.pth.tar"))
    timm_arat.merge_split_norm(model)
    assert model.state_dict().keys() == plain_keys
    with torch.no_grad():
        assert torch.equal(model.eval()(batch[0]), task.get_eval_model().eval()(batch[0]))


def test_it_sees_the_pixels_that_the_loader_normalised(batch):
    task, x = build(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)), batch[0]
    seen = []
    task.method.perturb = lambda images, y: (seen.append(images), (images, images))[1]
    task(normalised(x, task), batch[1])
    torch.testing.assert_close(seen[0], x, atol=1e-6, rtol=0)
    assert seen[0].min() >= 0 and seen[0].max() <= 1


def test_state_of_another_method_is_refused():
    task = build()
    with pytest.raises(ValueError, match="another method"):
        task.load_task_state({"stranger": torch.zeros(1)})


def test_images_that_were_normalised_otherwise_are_refused(batch):
    task = build(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    x, y = batch
    with pytest.raises(ValueError, match=r"outside \[0, 1\] after std and mean are taken back"):
        task(255 * normalised(x, task), y)


def test_an_epoch_begins_for_the_method_too(monkeypatch):
    task, begun = build(), []
    monkeypatch.setattr(timm_arat.ARAT, "begin_epoch", lambda self: begun.append(1))
    task.eval()
    assert not begun
    task.train()
    assert begun
