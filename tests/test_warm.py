"""Warm-started attacks: the grid of the augmentation, what is stored and where it comes back, resuming, refusals."""

from dataclasses import replace
from types import SimpleNamespace

import helpers_engine
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from helpers_engine import forget, fresh_accelerate, session_of  # noqa: F401  # a fixture
from safetensors.torch import load_file
from torch import Tensor, nn

from timm_arat import PGD
from timm_arat.data import load
from timm_arat.engine.batches import SeededBatches, stack
from timm_arat.engine.companions import Batch
from timm_arat.engine.companions.warm_start import WarmStart
from timm_arat.engine.config import TrainConfig
from timm_arat.engine.loop import Interrupted, Loop
from timm_arat.engine.signals import Signals
from timm_arat.engine.train import train
from timm_arat.methods import ARATConfig, DAJATConfig, MadryConfig, Method, StandardConfig, TRADESConfig

DATA = replace(helpers_engine.DATA, crop="pad4", hflip=0.5)
EPS = helpers_engine.EPS
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder, **changes) -> TrainConfig:
    """Two epochs of warm-started attacks on augmented images."""
    return helpers_engine.tiny(folder, **{"data": DATA, "warm_start": True, **changes})


def collated(batches: SeededBatches, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Images, indices and grids of one batch."""
    x, _, index, grid = zip(*batches.__getitems__(indices), strict=True)
    return torch.stack(x), torch.tensor(index), torch.stack(grid)


def images(**changes):
    return load(replace(DATA, **changes), input_size=(DATA.in_chans, 8, 8)).train


def warm_start(accelerator, folder, dataset) -> WarmStart:
    """The companion of a run of which it needs no more than this."""
    data = SimpleNamespace(train=dataset)
    return WarmStart(SimpleNamespace(accelerator=accelerator, method=None, folder=folder, data=data))


def store(folder, dataset) -> WarmStart:
    warm = warm_start(Accelerator(cpu=True), folder, dataset)
    warm.begin(0, resumed=False)
    return warm


def start_of(warm: WarmStart, x: Tensor, index: Tensor, grid: Tensor) -> Tensor:
    found = warm.start(Batch(x, torch.zeros(len(x)), index, grid))
    assert found is not None
    return found


@pytest.mark.parametrize("changes", [{}, {"crop": "none"}, {"hflip": 0.0}, {"crop": "none", "hflip": 0.0}], ids=str)
def test_the_grid_says_where_each_pixel_was(changes):
    dataset = images(**changes)
    indices = list(range(40))
    x, index, grid = collated(SeededBatches(dataset, seed=3, grids=True), indices)
    plain = torch.stack([dataset.plain()[i][0] for i in indices]).flatten(1)
    assert torch.equal(index, torch.tensor(indices))
    padded = F.pad(plain, (1, 0))  # zero is what the crop pads with
    assert torch.equal(padded.gather(1, grid.flatten(1).long()).view_as(x), x)
    moved = (grid != torch.arange(1, 65, dtype=torch.int32).view(1, 8, 8)).flatten(1).any(1)
    assert moved.any() == (changes != {"crop": "none", "hflip": 0.0})


def test_images_are_the_same_with_and_without_their_grids():
    dataset = images()
    off, on = SeededBatches(dataset, seed=3), SeededBatches(dataset, seed=3, grids=True)
    assert torch.equal(stack(off.__getitems__([5, 1, 7]))[0], stack(on.__getitems__([5, 1, 7]))[0])
    assert [len(item) for item in off.__getitems__([5, 1])] == [2, 2]


def test_perturbations_come_back_to_their_pixels_under_another_crop(tmp_path):
    dataset = images()
    warm = store(tmp_path, dataset)
    batches = SeededBatches(dataset, seed=0, grids=True)
    x, index, grid = collated(batches, list(range(9, 29)))
    assert start_of(warm, x, index, grid).isnan().all()
    delta = torch.empty_like(x).uniform_(-EPS, EPS)
    warm.keep(delta, index, grid)
    assert start_of(warm, x, index, grid).isnan().all()  # what this epoch reads stays
    expected = torch.full((20, 64), torch.nan)
    for image, numbers, values in zip(expected, grid.flatten(1), delta.flatten(1), strict=True):
        for number, value in zip(numbers.tolist(), values.tolist(), strict=True):
            if number:
                image[number - 1] = value

    warm.begin(1, resumed=False)
    batches.epoch = 1
    x, index, other = collated(batches, list(reversed(range(9, 29))))
    assert not torch.equal(other, grid)
    found = start_of(warm, x, index, other) - x
    wanted = F.pad(expected.flip(0), (1, 0), value=torch.nan).gather(1, other.flatten(1).long()).view_as(x)
    assert torch.equal(found.isnan(), wanted.isnan()) and 0 < wanted.isnan().float().mean() < 1
    # float16 to 2^-11 of eps, and x + delta - x to float32's rounding.
    torch.testing.assert_close(found, wanted, rtol=0, atol=EPS * 2**-11 + 2e-7, equal_nan=True)


def test_pixels_outside_the_crop_and_images_left_out_stay(tmp_path):
    dataset = images()
    warm = store(tmp_path, dataset)
    index = torch.tensor([0, 1])
    whole = torch.arange(1, 65, dtype=torch.int32).view(1, 1, 8, 8).expand(2, -1, -1, -1)
    left = F.pad(whole[..., :4], (4, 0))  # the left half of each image, moved to the right
    warm.keep(torch.full((2, 1, 8, 8), 0.5), index, whole)
    warm.begin(1, resumed=False)
    warm.keep(torch.full((1, 1, 8, 8), -0.25), index[:1], left[:1])
    warm.begin(2, resumed=False)
    first, second, third = warm.before[:3].view(3, 8, 8)
    assert (first[:, :4] == -0.25).all() and (first[:, 4:] == 0.5).all()
    assert (second == 0.5).all()
    assert third.isnan().all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["perturbations-2.bin", "perturbations-3.bin"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.GELU(), nn.Linear(64, 4)).eval()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_start_is_projected_and_nan_starts_as_ever(norm):
    eps = {"linf": 0.05, "l2": 0.5, "l1": 2.0}[norm]
    attack, model = PGD(norm=norm, eps=eps, steps=1, step_size=1e-9), network()
    x, y = torch.rand(8, 3, 8, 8), torch.randint(4, (8,))
    far = x + torch.randn_like(x)
    found = attack.perturb(model, x, y, start=far).x_adv
    length = torch.linalg.vector_norm((found - x).flatten(1), ord={"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
    assert found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(length, torch.full((8,), eps), rtol=1e-4, atol=0)
    if norm == "linf":
        projected = torch.minimum(torch.maximum(far, x - eps), x + eps).clamp(0, 1)
        torch.testing.assert_close(found, projected, rtol=0, atol=1e-6)
    torch.manual_seed(1)
    cold = attack.perturb(model, x, y).x_adv
    torch.manual_seed(1)
    assert torch.equal(attack.perturb(model, x, y, start=torch.full_like(x, torch.nan)).x_adv, cold)
    assert not torch.equal(cold, found)


def test_a_start_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="start must be of the images' shape"):
        PGD().perturb(network(), torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), start=torch.rand(1, 3, 8, 8))


def test_only_the_first_of_several_restarts_takes_the_start():
    model, x, y = network(), torch.rand(8, 3, 8, 8), torch.randint(4, (8,))
    best = PGD(eps=EPS, steps=20).perturb(model, x, y).x_adv
    one, several = PGD(eps=EPS, steps=1, step_size=1e-9), PGD(eps=EPS, steps=1, step_size=1e-9, restarts=3)
    assert torch.equal(several.perturb(model, x, y, start=best).x_adv, one.perturb(model, x, y, start=best).x_adv)
    clean = several.perturb(model, x, y, start=x).x_adv  # a random start beats the image itself
    assert not torch.allclose(clean, x, atol=1e-6)


def test_a_warm_step_reaches_a_higher_loss_than_a_cold_one(tmp_path):
    dataset = load(replace(DATA, image_size=32), input_size=(1, 32, 32)).train  # so that a crop moves little
    batches = SeededBatches(dataset, seed=0, grids=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for chosen in torch.randperm(len(dataset))[:1280].view(10, 128).tolist() * 5:
        x, index, _ = collated(batches, chosen)
        F.cross_entropy(model(x), dataset.labels[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().requires_grad_(False)

    warm = store(tmp_path, dataset)
    attack = PGD(eps=EPS, steps=1, step_size=EPS / 4)
    gains = []
    for epoch in range(5):
        batches.epoch = epoch
        x, index, grid = collated(batches, list(range(128)))
        y = dataset.labels[index]
        warm.begin(epoch, resumed=False)
        found, cold = (
            attack.perturb(model, x, y, start=start).x_adv for start in (start_of(warm, x, index, grid), None)
        )
        warm.keep(found - x, index, grid)
        clean = F.cross_entropy(model(x), y)
        gains.append([float(F.cross_entropy(model(x_adv), y) - clean) for x_adv in (found, cold)])
    (first_warm, first_cold), *_, (last_warm, last_cold) = gains
    assert first_warm < 1.1 * first_cold  # nothing to start from
    assert last_warm > 1.5 * last_cold > 0


def spy(monkeypatch) -> list[SimpleNamespace]:
    """What each training step starts from and ends with."""
    seen: list[SimpleNamespace] = []
    begins, around, perturb = WarmStart.start, WarmStart.around_step, Method.perturb

    def begin(self, batch):
        start = begins(self, batch)
        seen.append(SimpleNamespace(place=(batch.numbers, batch.grid), start=start))
        return start

    def watch(self, x, y, start=None, attack=None):
        assert start is seen[-1].start
        seen[-1].attack = attack
        return perturb(self, x, y, start, attack)

    def keep(self, batch, x, x_adv):
        seen[-1].x, seen[-1].x_adv = x, x_adv
        return around(self, batch, x, x_adv)

    monkeypatch.setattr(WarmStart, "start", begin)
    monkeypatch.setattr(Method, "perturb", watch)
    monkeypatch.setattr(WarmStart, "around_step", keep)
    return seen


@pytest.mark.parametrize("kind", [MadryConfig, TRADESConfig, ARATConfig])
def test_an_epoch_starts_where_the_one_before_ended(tmp_path, monkeypatch, kind):
    # So short a step that the end is the start.
    attack = PGD(eps=EPS, steps=1, step_size=1e-9, warmup_epochs=1)
    seen = spy(monkeypatch)
    train(tiny(tmp_path / "run", method=kind(), attack=attack, data=replace(DATA, crop="none")))
    half = len(seen) // 2
    stored = {}
    for step in seen[:half]:
        assert step.start.isnan().all()
        for index, grid, delta in zip(*step.place, step.x_adv - step.x, strict=True):
            stored[int(index)] = torch.zeros(64).scatter_(0, grid.flatten().long() - 1, delta.flatten())
    for step in seen[half:]:
        rows = [row for row, index in enumerate(step.place[0].tolist()) if index in stored]
        assert len(rows) > 100  # all but those of a last, partial batch
        delta = torch.stack([stored[int(step.place[0][row])] for row in rows])
        delta = delta.gather(1, step.place[1][rows].flatten(1).long() - 1).view(len(rows), 1, 8, 8)
        wanted = (step.x[rows] + delta).clamp(0, 1)
        torch.testing.assert_close(step.x_adv[rows], wanted, rtol=0, atol=EPS * 2**-11 + 2e-7)
        assert float(delta.abs().max()) < step.attack.radius  # it is not the projection that makes them agree
    assert not list((tmp_path / "run").glob("perturbations-*"))


def test_the_first_epoch_is_that_of_a_run_without(tmp_path):
    for name, on in (("on", True), ("off", False)):
        train(tiny(tmp_path / name, epochs=1, warm_start=on))
        forget()
    on, off = (load_file(tmp_path / name / "weights/last.safetensors") for name in ("on", "off"))
    assert all(torch.equal(on[key], off[key]) for key in on)


@pytest.mark.parametrize("stop_at", [(0, 4), (1, 3)])
def test_a_run_killed_in_an_epoch_resumes_to_the_same_weights(tmp_path, monkeypatch, stop_at):
    train(tiny(tmp_path / "whole", epochs=3))
    forget()
    config = tiny(tmp_path / "run", epochs=3)

    class Killed(Exception):
        pass

    def stop(self, epoch, done):
        """A checkpoint at `stop_at`; two more steps, whose perturbations it does not know; then the end."""
        if (epoch, done) == stop_at:
            self._save(epoch, done)
        if (epoch, done) == (stop_at[0], stop_at[1] + 2):
            raise Killed

    monkeypatch.setattr(Loop, "_checkpoint_if_due", stop)
    with pytest.raises(Killed):
        train(config)
    monkeypatch.undo()
    forget()
    torch.rand(3)  # the resumed process stands elsewhere in its generator
    train(replace(config, resume=True))
    found, wanted = (load_file(tmp_path / name / "weights/last.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_run_whose_perturbations_are_gone_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(Signals, "stop", True)  # as if Ctrl-C came before the first step
    with pytest.raises(Interrupted):
        train(tiny(tmp_path))
    monkeypatch.undo()
    (tmp_path / "perturbations-0.bin").unlink()
    forget()
    with pytest.raises(ValueError, match="perturbations-0.bin is gone.*another --output"):
        train(tiny(tmp_path, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": replace(DATA, crop="rrc")}, "set pad4 or none"),
        ({"method": StandardConfig()}, "standard has no attack"),
        ({"method": ARATConfig(noisy_clean=True)}, "noisy_clean"),
        ({"twin": ARATConfig(noisy_clean=True)}, "noisy_clean"),
        ({"method": DAJATConfig(views=1)}, "set method.views=0"),
    ],
)
def test_what_cannot_be_warm_started_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny(tmp_path, **changes))


def test_several_nodes_are_refused(tmp_path, monkeypatch):
    accelerator = SimpleNamespace(num_processes=4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="4 processes on nodes of 2 each.*train on one node"):
        warm_start(accelerator, tmp_path, images())


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    warm = warm_start(Accelerator(cpu=True), tmp_path, images())
    room = 2 * 2 * len(images()) * 64
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=room - 1))
    with pytest.raises(ValueError, match="name an --output on another disk"):
        warm.begin(0, resumed=False)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=room))
    (tmp_path / "perturbations-1.bin").write_bytes(b"of a run of other images, killed in its first epoch")
    warm.begin(0, resumed=False)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == room


def test_a_plain_twin_trains_without(tmp_path):
    results = train(tiny(tmp_path, twin=StandardConfig(), epochs=1))
    assert [result.model for result in results] == ["resnet20_cifar madry", "resnet20_cifar standard"]
    assert "warm_start: true" in (tmp_path / "config.yaml").read_text()
    forget()
    assert not session_of(tiny(tmp_path / "plain", method=StandardConfig())).images.grids
