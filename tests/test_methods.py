"""ARAT against hand-made references, its ablations one by one, and the methods beside it."""

import copy
import itertools

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from timm_arat import ARAT, PGD, Madry, Standard
from timm_arat.methods import CONFIGS, ARATConfig, Method, method_class
from timm_arat.norm import is_split, norm_branch, split_norms
from timm_arat.taps import tap

ATTACK = PGD(eps=0.1, steps=2)


def backbone(name: str = "resnet20_cifar", **kwargs) -> nn.Module:
    torch.manual_seed(0)
    if name == "resnet20_cifar":
        kwargs = {"layers": (1, 1), "channels": (8, 12), "stem_width": 8, "zero_init_last": False, **kwargs}
    return timm.create_model(name, num_classes=5, **kwargs)


def plain(name: str) -> Method:
    """The method called `name` as its defaults have it, with a teacher where it needs one."""
    kind = method_class(name)
    return kind(backbone(), teacher=backbone() if kind.needs_teacher(kind.Config()) else None)


def batch(size: int = 8, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, size, size, generator=generator), torch.randint(5, (n,), generator=generator)


def step(method: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    method.train()
    return method(x, y)


def terms_by_hand(method: ARAT, x, y, seed: int = 0):
    """Attack, two separate passes and the paper's loss, written out for one layer."""
    torch.manual_seed(seed)
    model = method.model
    with norm_branch(model, "main"):
        x_adv = method.attack(method.network, x, y)
        logits_adv, z_adv = tap(model, x_adv)
    with norm_branch(model, "aux"):
        logits, z = tap(model, x)
    h, target = method.predictors[0](z_adv["last"]), z["last"].detach()
    cos = (h * target).sum(1) / (h.norm(dim=1) * target.norm(dim=1))
    return F.cross_entropy(logits_adv, y), F.cross_entropy(logits, y), (1 - cos).mean()


def test_arat_is_the_papers_loss_of_two_separate_passes():
    x, y = batch()
    method = ARAT(backbone().double(), attack=ATTACK, weight=7.0)
    method.double().set_clean_accuracy(0.3)
    by_hand = copy.deepcopy(method).train()
    terms = step(method, x.double(), y)
    ce_adv, ce_clean, invariance = terms_by_hand(by_hand, x.double(), y)
    expected = 0.3 * ce_adv + 0.7 * ce_clean + 7.0 * invariance
    torch.testing.assert_close(terms["loss"], expected)
    terms["loss"].backward()
    expected.backward()
    for (name, p), q in zip(method.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    for (name, a), b in zip(method.named_buffers(), by_hand.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize(("balance", "expected"), [(True, (0.25, 0.75)), (False, (1.0, 1.0))])
def test_the_balance_weighs_the_two_cross_entropies(balance, expected):
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK, weight=0.0, auto_balance=balance)
    method.set_clean_accuracy(0.25)
    terms = step(method, x, y)
    torch.testing.assert_close(terms["loss"], expected[0] * terms["ce_adv"] + expected[1] * terms["ce_clean"])


def gradients_of_invariance(anchor: str, predictor: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the invariance term to the adversarial and to the clean features."""
    method = ARAT(backbone(), attack=ATTACK, anchor=anchor, predictor=predictor).train()
    torch.manual_seed(3)
    z_adv, z = torch.randn(6, 12, requires_grad=True), torch.randn(6, 12, requires_grad=True)
    grads = torch.autograd.grad(method._distance(0, z_adv, z), (z_adv, z), allow_unused=True)
    return tuple(torch.zeros(6, 12) if g is None else g for g in grads)


@pytest.mark.parametrize(
    ("anchor", "predictor", "moves_adv", "moves_clean"),
    [
        ("clean", "adversarial", True, False),
        ("clean", "none", True, False),
        ("adversarial", "clean", False, True),
        ("adversarial", "none", False, True),
        ("both", "adversarial", True, True),
        ("both", "none", True, True),
        ("none", "adversarial", True, True),
        ("none", "none", True, True),
    ],
)
def test_the_anchor_has_exactly_zero_gradient(anchor, predictor, moves_adv, moves_clean):
    g_adv, g_clean = gradients_of_invariance(anchor, predictor)
    assert bool(g_adv.abs().max() > 0) == moves_adv
    assert bool(g_clean.abs().max() > 0) == moves_clean


def test_both_is_half_the_naive_gradient_and_the_two_anchors_add_up_to_it():
    naive = gradients_of_invariance("none", "none")
    both = gradients_of_invariance("both", "none")
    halves = gradients_of_invariance("clean", "none")[0], gradients_of_invariance("adversarial", "none")[1]
    for a, b, c in zip(naive, both, halves, strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(a / 2, b)


def test_a_predictor_that_could_not_learn_is_refused():
    for side in ("clean", "adversarial"):
        with pytest.raises(ValueError, match="never learn"):
            ARATConfig(anchor=side, predictor=side)


@pytest.mark.parametrize(
    "settings",
    [
        dict(zip(("anchor", "predictor", "split_norm", "auto_balance"), row, strict=True))
        for row in itertools.product(("clean", "none"), ("adversarial", "none"), ("batch", "none"), (True, False))
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_every_row_of_the_ablation_trains_every_parameter(settings):
    """Naive symmetric, + stop-gradient, + predictor, + split BN, all: each is a recipe."""
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK, **settings)
    assert is_split(method.model) == (settings["split_norm"] == "batch")
    assert len(method.predictors) == (settings["predictor"] != "none")
    method.set_clean_accuracy(0.5)
    step(method, x, y)["loss"].backward()
    for name, p in method.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name


def test_main_statistics_move_once_by_adversarial_images_and_aux_once_by_clean_ones():
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK)
    inputs = []
    handle = method.model.conv1.register_forward_hook(lambda *a: inputs.append(a[2].detach()))
    step(method, x, y)
    handle.remove()
    norm = method.model.bn1
    clean, adversarial = inputs[-2:]
    for branch, seen in ((norm, adversarial), (norm.aux_bn[0], clean)):
        assert int(branch.num_batches_tracked) == 1
        torch.testing.assert_close(branch.running_mean, 0.1 * seen.mean((0, 2, 3)))
    assert not torch.equal(norm.running_mean, norm.aux_bn[0].running_mean)


def test_noisy_clean_reproduces_the_official_aliasing():
    """method.md 3.7: the clean branch is noised and unclamped, the ball is centred there, the attack starts at zero."""
    x, y = batch(n=32)
    method = ARAT(backbone(), attack=PGD(eps=0.1, steps=8, step_size=0.03), noisy_clean=True)
    seen = []
    handle = method.model.register_forward_pre_hook(lambda m, a: seen.append(a[0].detach()))
    passed = []
    original = method.model.forward_intermediates

    def watch(images, **kwargs):
        passed.append(images.detach())
        return original(images, **kwargs)

    method.model.forward_intermediates = watch
    step(method, x, y)
    handle.remove()
    noisy, x_adv = passed[-2:]
    torch.testing.assert_close(seen[0], noisy)  # no random start inside the ball
    assert float((noisy - x).abs().max()) <= 0.1 + 1e-6
    assert float(noisy.min()) < 0 and float(noisy.max()) > 1
    assert 0.1 < float((x_adv - x).abs().max()) <= 0.2 + 1e-6
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    with pytest.raises(ValueError, match="linf"):
        ARAT(backbone(), attack=PGD(norm="l2", eps=1.0), noisy_clean=True)


def test_named_layers_are_averaged_and_the_papers_preset_is_known():
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK, layers=("paper",))
    assert method.layers == ("layer2.0.bn1@relu", "layer2.0.bn2@relu")
    terms = step(method, x, y)
    single = []
    for layer in method.layers:
        one = ARAT(backbone(), attack=ATTACK, layers=(layer,))
        one.load_state_dict(
            {
                k.replace(f"predictors.{method.layers.index(layer)}", "predictors.0"): v
                for k, v in initial(method).items()
            },
            strict=False,
        )
        single.append(step(one, x, y)["invariance"])
    torch.testing.assert_close(terms["invariance"], torch.stack(single).mean(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        terms["loss"], 0.5 * terms["ce_adv"] + 0.5 * terms["ce_clean"] + 30 * terms["invariance"]
    )
    assert not any(m._forward_hooks for m in method.modules())


def initial(method: ARAT) -> dict[str, torch.Tensor]:
    """The predictors' weights; running statistics do not matter in train mode."""
    return {k: v for k, v in method.state_dict().items() if k.startswith("predictors")}


def test_a_backbone_without_batchnorm_says_what_it_has_and_which_option_helps():
    with pytest.raises(ValueError, match=r"split_norm='batch'.*LayerNorm.*method.split_norm, all, or none"):
        ARAT(timm.create_model("test_vit", num_classes=5))


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_affine_split_trains_a_layernorm_backbone(name):
    x, y = batch(160 if name == "test_vit" else 32, n=4)
    method = ARAT(backbone(name), attack=PGD(steps=1), split_norm="all")
    step(method, x, y)["loss"].backward()
    for norm_name, norm in split_norms(method.model):
        for p in (*norm.parameters(recurse=False), *norm.aux_bn.parameters()):
            assert p.grad is not None and p.grad.isfinite().all(), norm_name


def test_the_balance_is_saved_with_the_weights():
    method = ARAT(backbone(), attack=ATTACK)
    method.set_clean_accuracy(0.625)
    other = ARAT(backbone(), attack=ATTACK)
    other.load_state_dict(method.state_dict())
    assert float(other.balance) == 0.625
    other.begin_epoch()  # a resume in the middle of an epoch measures nothing
    assert float(other.balance) == 0.625


@pytest.mark.parametrize("name", ["madry", "trades", "arat"])
def test_an_attack_given_to_perturb_takes_the_place_of_the_methods_own(name):
    """As in a warm-up, `PGD.at_epoch`, whose radius is smaller."""
    x, y = batch()
    method = method_class(name)(backbone(), attack=PGD(eps=0.2, steps=2, warmup_epochs=3))
    reaches = []
    for epoch in range(5):
        seen, x_adv = method.perturb(x, y, attack=method.attack.at_epoch(epoch))
        assert torch.equal(seen, x)
        reaches.append(float((x_adv - x).abs().max()))
    assert reaches == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    assert method.attack == PGD(eps=0.2, steps=2, warmup_epochs=3)


def test_checkpointed_and_plain_backbones_have_equal_gradients():
    x, y = batch()
    plain = ARAT(backbone(), attack=ATTACK)
    checkpointed = copy.deepcopy(plain)
    checkpointed.model.set_grad_checkpointing(True)
    for method in (plain, checkpointed):
        step(method, x, y)["loss"].backward()
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_step_under_bf16_autocast_is_finite():
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = step(method, x, y)
    assert terms["loss"].dtype == torch.float32
    terms["loss"].backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not ATTACK.perturb(method.network, x, y).zero_grad.any()


def test_standard_and_madry_are_cross_entropy_on_their_images():
    x, y = batch()
    standard, madry = Standard(backbone()), Madry(backbone(), attack=ATTACK)
    reference = backbone().train()
    torch.testing.assert_close(step(standard, x, y)["loss"], F.cross_entropy(reference(x), y))
    reference = backbone().train()
    torch.manual_seed(0)
    x_adv = ATTACK(reference, x, y)
    torch.testing.assert_close(step(madry, x, y)["loss"], F.cross_entropy(reference(x_adv), y))


@pytest.mark.parametrize("name", CONFIGS)
def test_methods_keep_timms_contract(name):
    x, y = batch()
    method = plain(name)
    method.set_clean_accuracy(0.5)
    terms = step(method, x, y)
    assert {"loss", "output"} <= terms.keys()
    assert terms["output"].shape == (len(x), 5)
    assert all(not value.requires_grad for key, value in terms.items() if key not in ("loss", "output"))
    assert method.clean_logits(x).shape == (len(x), 5)


@pytest.mark.parametrize(
    "settings", [{"weight": -1.0}, {"anchor": "adv"}, {"predictor": "both"}, {"split_norm": "layer"}], ids=str
)
def test_settings_out_of_range_are_errors(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ARATConfig(**settings)


def test_the_attack_sees_main_and_clean_logits_come_from_aux():
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK).eval()
    with torch.no_grad():
        for _, norm in split_norms(method.model):
            norm.aux_bn[0].weight.mul_(3)
    with norm_branch(method.model, "aux"):
        expected = method.network(x)
    assert torch.equal(method.clean_logits(x), expected)
    assert not torch.equal(method.clean_logits(x), method.network(x))
    seen = []
    norm = method.model.bn1
    handle = norm.register_forward_pre_hook(lambda m, a: seen.append(m.branch))
    step(method, x, y)
    handle.remove()
    assert seen == ["main"] * ATTACK.steps + ["aux", "main"] and norm.branch == "main"


def test_without_split_norms_both_kinds_of_image_share_one_joint_batch():
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK, split_norm="none", predictor="none")
    assert list(method.model.state_dict()) == list(backbone().state_dict())
    step(method, x, y)
    assert int(method.model.bn1.num_batches_tracked) == 1


def test_the_attack_in_train_mode_also_moves_main_statistics_and_never_aux():
    """method.md 3.7: the official attack moves the adversarial statistics on every step."""
    x, y = batch()
    method = ARAT(backbone(), attack=PGD(eps=0.1, steps=3, norm_mode="train"))
    step(method, x, y)
    assert int(method.model.bn1.num_batches_tracked) == 4
    assert int(method.model.bn1.aux_bn[0].num_batches_tracked) == 1


@pytest.mark.parametrize("layers", [("paper",), ("layer1.0", "layer2.0.act1")], ids=str)
def test_named_layers_under_gradient_checkpointing_have_equal_gradients(layers):
    x, y = batch()
    plain = ARAT(backbone(), attack=ATTACK, layers=layers, weight=5.0)
    checkpointed = copy.deepcopy(plain)
    checkpointed.model.set_grad_checkpointing(True)
    for method in (plain, checkpointed):
        step(method, x, y)["loss"].backward()
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_one_channel_and_a_fixed_image_size_work_with_named_layers():
    x, y = batch()
    grey = ARAT(backbone(in_chans=1), attack=ATTACK, layers=("layer1",))
    assert step(grey, x[:, :1], y)["loss"].isfinite()
    kwargs = {"img_size": 32, "window_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    swin = backbone("swin_tiny_patch4_window7_224", **kwargs)
    x, y = batch(32, n=2)
    method = ARAT(swin, attack=PGD(steps=1), layers=("layers.1@nhwc",), split_norm="all")
    assert step(method, x, y)["loss"].isfinite()


def test_a_deepcopy_and_a_state_dict_give_the_same_step():
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK)
    step(method, x, y)
    method.set_clean_accuracy(0.4)
    torch.manual_seed(9)
    other = timm.create_model("resnet20_cifar", layers=(1, 1), channels=(8, 12), stem_width=8, num_classes=5)
    loaded = ARAT(other, method.config, attack=ATTACK)
    loaded.load_state_dict(method.state_dict())
    loaded.begin_epoch()
    others = [copy.deepcopy(method), loaded]
    wanted = step(method, x, y)
    for other in others:
        for name, value in step(other, x, y).items():
            assert torch.equal(value, wanted[name]), name


def test_a_model_that_is_split_already_keeps_its_two_branches():
    first = ARAT(backbone(), attack=ATTACK)
    with torch.no_grad():
        first.model.bn1.aux_bn[0].weight.fill_(2.0)
    second = ARAT(first.model, attack=ATTACK)
    assert (second.model.bn1.aux_bn[0].weight == 2).all() and (second.model.bn1.weight == 1).all()


def test_a_split_that_other_code_broke_is_noticed_at_the_next_step():
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK)
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(method.model)
    with pytest.raises(ValueError, match="own an aux_bn but are not split"):
        method(x, y)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_leaves_images_labels_and_modes_alone(name):
    x, y = batch()
    before = x.clone(), y.clone()
    method = plain(name)
    method.train()
    method.model.layer1.eval()
    modes = [m.training for m in method.modules()]
    method(x, y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert [m.training for m in method.modules()] == modes


def test_noisy_clean_leaves_the_images_alone_and_gives_the_noisy_ones():
    x, y = batch()
    before = x.clone()
    step(ARAT(backbone(), attack=ATTACK, noisy_clean=True), x, y)
    assert torch.equal(x, before)
    noisy, x_adv = ARAT(backbone(), attack=ATTACK, noisy_clean=True).perturb(x, y)
    assert torch.equal(x, before) and 0 < (noisy - x).abs().max() <= 0.1
    assert (x_adv - noisy).abs().max() <= 0.1 + 1e-6


def test_pretrained_normalisation_is_inside_and_the_attack_stays_in_pixels():
    x, y = batch(32, n=2)
    method = ARAT(backbone("test_resnet"), attack=PGD(eps=0.1, steps=1))
    inputs = []
    method.network.register_forward_pre_hook(lambda m, a: inputs.append(a[0].detach()))
    passed = []
    method.model.conv1.register_forward_pre_hook(lambda m, a: passed.append(a[0].detach()))
    step(method, x, y)
    assert all(0 <= i.min() and i.max() <= 1 for i in inputs)
    clean, x_adv = (images * method.network.std + method.network.mean for images in passed[-2:])
    torch.testing.assert_close(clean, x)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-5


@pytest.mark.parametrize("branches", [("main",), ("aux",), ("main", "aux")])
def test_frozen_norms_stay_and_everything_else_moves(branches):
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK)
    method.freeze_norms(branches)
    before = copy.deepcopy(method.model.state_dict())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        step(method, x, y)["loss"].backward()
        optimizer.step()
    after = method.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    norms = {name for name, _ in split_norms(method.model)}
    main = {f"{name}.{each}" for name in norms for each in ("weight", "bias", "running_mean", "running_var")}
    aux = {key.replace(".weight", ".aux_bn.0.weight") for key in main if key.endswith(".weight")}
    aux |= {f"{name}.aux_bn.0.{each}" for name in norms for each in ("bias", "running_mean", "running_var")}
    expected = set().union(*([] if "main" in branches else [main]), *([] if "aux" in branches else [aux]))
    assert moved & (main | aux) == expected
    assert "conv1.weight" in moved and "fc.weight" in moved


def test_frozen_norms_normalise_by_their_statistics_in_training():
    x, y = batch()
    method = ARAT(backbone(), attack=ATTACK)
    method.freeze_norms(("main", "aux"))
    method.train()
    with torch.no_grad():
        training = [method.network(x)]
        method.eval()
        assert torch.equal(training[0], method.network(x))
    assert method.train().model.layer1.training and not method.model.bn1.training


def test_freezing_what_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="ResNetCifar has no BatchNorm in its aux branch to freeze"):
        Madry(backbone(), attack=ATTACK).freeze_norms(("aux",))


def test_a_targeted_attack_is_refused_in_training():
    """It would walk towards the label, so that training images get easier."""
    with pytest.raises(ValueError, match=r"attack.targeted: .*leave it out"):
        Madry(backbone(), attack=PGD(targeted=True))
    method = Madry(backbone(), attack=ATTACK)
    with pytest.raises(ValueError, match=r"attack.targeted"):
        method.perturb(*batch(), attack=PGD(targeted=True))


def test_a_network_that_is_none_of_timms_is_refused_before_it_is_changed():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network.pretrained_cfg = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    for layers, missing in (((), "feature_info is missing"), (("0",), "pretrained_cfg has no input_size")):
        with pytest.raises(ValueError, match=f"Sequential is no timm model, its {missing}"):
            ARAT(network, ARATConfig(layers=layers))
    assert not is_split(network)
    x, y = batch()
    for images, labels in ((x.numpy(), y), (x, y.numpy())):
        with pytest.raises(ValueError, match="must be a torch.Tensor; these are of ndarray"):
            Madry(backbone(), attack=ATTACK).perturb(images, labels)
