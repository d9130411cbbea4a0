"""Recipes against the published ones, field by field, and refusals of wrong values."""

import dataclasses

import pytest

from mocoembed import config as configs
from mocoembed.checks import from_dict, to_dict
from mocoembed.config import EmbedConfig, KnnConfig, PretrainConfig, SearchConfig
from mocoembed.errors import FormatError, UsageError
from mocoembed.recipes import CIFAR_MEAN, CIFAR_STD, RECIPES

IMAGENET = {"arch": "resnet50", "width": 1.0, "stem": "7x7s2-pool", "dim": 128, "queue_size": 65536, "momentum": 0.999,
            "batch_size": 256, "lr": 0.03, "epochs": 200, "sgd_momentum": 0.9, "weight_decay": 1e-4,
            "image_size": 224, "crop_scale": (0.2, 1.0), "grey_probability": 0.2, "flip_probability": 0.5,
            "bn_groups": 8, "symmetric": False, "warmup_epochs": 0, "solarize_probability": 0.0}
PUBLISHED = {
    "moco-v1": {**IMAGENET, "head": "linear", "temperature": 0.07, "schedule": "step",
                "milestones": (120 / 200, 160 / 200),
                "jitter": (0.4, 0.4, 0.4, 0.4), "jitter_probability": 1.0, "grey_first": True,
                "blur_probability": 0.0},
    "moco-v2": {**IMAGENET, "head": "mlp", "temperature": 0.2, "schedule": "cosine", "jitter": (0.4, 0.4, 0.4, 0.1),
                "jitter_probability": 0.8, "grey_first": False, "blur_probability": 0.5, "blur_sigma": (0.1, 2.0)},
    "cifar10": {"arch": "resnet18", "width": 1.0, "stem": "3x3s1", "head": "linear", "dim": 128, "queue_size": 4096,
                "momentum": 0.99, "temperature": 0.1, "batch_size": 512, "lr": 0.06, "schedule": "cosine",
                "epochs": 200, "sgd_momentum": 0.9, "weight_decay": 5e-4, "image_size": 32,
                "crop_scale": (0.08, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 0.8,
                "grey_probability": 0.2, "grey_first": False, "blur_probability": 0.0, "flip_probability": 0.5,
                "bn_groups": 8, "symmetric": False, "mean": CIFAR_MEAN, "std": CIFAR_STD},
    "moco-v2-plus": {"arch": "resnet50", "head": "mlp", "queue_size": 65536, "momentum": 0.999, "temperature": 0.07,
                     "batch_size": 256, "lr": 0.2, "schedule": "cosine", "epochs": 100, "sgd_momentum": 0.9,
                     "weight_decay": 1e-4, "jitter": (0.4, 0.4, 0.4, 0.1), "blur_probability": 0.5,
                     "solarize_probability": 0.2, "batchnorm": "sync", "zero_init_residual": True, "symmetric": False},
    # lightly at e8d317fc: benchmarks/imagenet/resnet50/mocov2.py, main.py (100 epochs, SyncBatchNorm), MoCoV2Transform,
    # MoCoProjectionHead (2048, 2048, 128), get_weight_decay_parameters (none on norms and biases)
    "lightly": {**IMAGENET, "head": "mlp", "temperature": 0.2, "schedule": "cosine", "epochs": 100, "batchnorm": "sync",
                "bn_groups": 1, "decay_norms": False, "jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 0.8,
                "blur_probability": 0.5, "blur_sigma": (0.1, 2.0)},
    # solo-learn at 9187ea3: scripts/pretrain/imagenet/mocov2plus.yaml with augmentations/symmetric_weak.yaml. lr: 0.3
    # for 256 images (solo/args/pretrain.py), 2 x 64 of them; half of it with twice the decay for a sum of two losses
    "solo-learn": {"arch": "resnet50", "head": "mlp", "dim": 256, "queue_size": 65536, "temperature": 0.2,
                   "symmetric": True, "batchnorm": "sync", "bn_groups": 1, "batch_size": 2 * 64,
                   "lr": 0.3 * (2 * 64) / 256 / 2, "weight_decay": 2 * 3e-5, "schedule": "cosine", "warmup_epochs": 10,
                   "epochs": 400, "crop_scale": (0.08, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 0.8,
                   "grey_probability": 0.2, "blur_probability": 0.5, "blur_sigma": (0.1, 2.0),
                   "solarize_probability": 0.0, "flip_probability": 0.5, "zero_init_residual": False},
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_recipes_are_the_published_ones(recipe):
    config = PretrainConfig.of(recipe, "images")
    for name, value in PUBLISHED[recipe].items():
        assert getattr(config, name) == value, name


OTHER_VALUES = {"workspace": "w", "run": "r", "fresh": True, "arch": "resnet34", "width": 0.5, "stem": "3x3s2",
                "dim": 64, "queue_size": 7, "momentum": 0.5, "temperature": 0.3, "symmetric": True, "bn_groups": 2,
                "epochs": 3, "batch_size": 64, "drop_last": False, "lr": 0.7, "milestones": (0.5,),
                "warmup_epochs": 2.0, "sgd_momentum": 0.8, "weight_decay": 0.1, "image_size": 48,
                "crop_scale": (0.3, 0.9), "jitter": (0.1, 0.1, 0.1, 0.2), "jitter_probability": 0.5,
                "grey_probability": 0.1, "blur_probability": 0.7, "blur_sigma": (0.2, 1.0), "flip_probability": 0.3,
                "solarize_probability": 0.2, "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "seed": 5, "limit": 50,
                "workers": 3, "device": "cpu", "precision": "bf16", "val": "v", "val_every": 4, "checkpoint_every": 9,
                "dictionary": "end-to-end", "key_encoder": "separate", "bank_momentum": 0.2, "mask_same_image": True,
                "compile": True, "processes": 2, "timeout": 5.0, "check_ranks": True, "cache": "ram",
                "full_decode": True, "decay_norms": True, "exclude": ("*.png", "old/raw"),
                "value_range": (-5.0, 4095.0), "groups_at_once": 1, "init": "other.safetensors"}
KEYS_OWN = {"key_image_size": 40, "key_crop_scale": (0.1, 0.5)}  # which a symmetric loss cannot have


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_field_can_be_overridden_on_the_command_line(recipe, monkeypatch, run_cli):
    """Calls with every option; the config that arrives has every value."""
    preset = PretrainConfig.of(recipe, "images")
    values = {**OTHER_VALUES, "head": {"mlp": "linear", "linear": "mlp"}[preset.head],
              "schedule": {"cosine": "step", "step": "cosine"}[preset.schedule], "grey_first": not preset.grey_first,
              "batchnorm": {"shuffled": "none", "sync": "none"}[preset.batchnorm],
              "zero_init_residual": not preset.zero_init_residual}
    values["decay_norms"] = not preset.decay_norms
    every = {field.name for field in dataclasses.fields(PretrainConfig)}
    assert {"images", "recipe", "given", *values, *KEYS_OWN} == every
    for some in (values, {**values, **KEYS_OWN, "symmetric": False}):
        require_arrival(recipe, some, monkeypatch, run_cli)


def require_arrival(recipe, values, monkeypatch, run_cli):
    arguments = ["pretrain", "images", "--recipe", recipe]
    for name, value in values.items():
        option = "--" + name.replace("_", "-")
        if name == "exclude":
            arguments += [part for glob in value for part in (option, glob)]
        elif isinstance(value, bool):
            arguments.append(option if value else option.replace("--", "--no-"))
        else:
            arguments += [option, ",".join(map(str, value)) if isinstance(value, tuple) else value]
    arrived = []
    monkeypatch.setattr("mocoembed.train.loop.pretrain", lambda config, watcher: arrived.append(config) or 1 / 0)
    run_cli(*arguments)
    assert arrived == [PretrainConfig(images="images", recipe=recipe, **values)]


def test_a_recipe_is_applied_by_of_and_not_just_named():
    with pytest.raises(UsageError, match=r"PretrainConfig.of"):
        PretrainConfig("images", recipe="small")


def test_survives_json():
    config = PretrainConfig.of("cifar10", "images", val="held-out")
    assert from_dict(PretrainConfig, to_dict(config)) == config
    with pytest.raises(FormatError, match="newer"):
        from_dict(PretrainConfig, {**to_dict(config), "later": 1})


WRONG = [
    (PretrainConfig, {"recipe": "moco-v9"}, "--recipe moco-v9: must be one of auto, moco-v1"),
    (PretrainConfig, {"stem": "5x5"}, "--stem 5x5"),
    (PretrainConfig, {"queue_size": 0}, "--queue-size 0"),
    (PretrainConfig, {"momentum": 1.5}, "--momentum 1.5"),
    (PretrainConfig, {"temperature": 0.0}, "--temperature 0.0"),
    (PretrainConfig, {"crop_scale": (0.5, 0.2)}, "--crop-scale 0.5,0.2"),
    (PretrainConfig, {"jitter": (0.1, 0.1, 0.1, 0.9)}, "--jitter"),
    (PretrainConfig, {"bn_groups": 3, "recipe": "moco-v2"}, "--bn-groups 3: must be a divisor of --batch-size 256"),
    (PretrainConfig, {"run": "a/b"}, "--run a/b"),
    (PretrainConfig, {"key_encoder": "shared-backbone"}, "--key-encoder shared-backbone: not with --dictionary queue, "
     "whose key encoder is the query encoder's moving average. Give --dictionary end-to-end."),
    (PretrainConfig, {"key_encoder": "shared-backbone", "dictionary": "memory-bank"},
     "--key-encoder shared-backbone: not with --dictionary memory-bank, which encodes no keys."),
    (PretrainConfig, {"key_encoder": "none"}, "--key-encoder none: must be one of shared, shared-backbone, separate"),
    (PretrainConfig, {"key_image_size": 0}, "--key-image-size 0: must be 8 or more"),
    (PretrainConfig, {"key_image_size": 96, "symmetric": True}, "--key-image-size: not with --symmetric"),
    (PretrainConfig, {"key_crop_scale": (0.2, 1.0), "dictionary": "memory-bank"},
     "--key-crop-scale: not with --dictionary memory-bank, which encodes no keys."),
    (PretrainConfig, {"key_crop_scale": (0.5, 0.2)}, "--key-crop-scale 0.5,0.2: must be two rising numbers in (0, 1]"),
    (PretrainConfig, {"key_crop_scale": (0.5,)}, "--key-crop-scale 0.5: must be two rising numbers in (0, 1]"),
    (PretrainConfig, {"cache": "disk"}, "--cache disk: must be one of none, ram"),
    (PretrainConfig, {"epochs": 0}, "--epochs 0: must be 1 or more"),
    (EmbedConfig, {"features": "head"}, "--features head: must be one of backbone, projection"),
    (EmbedConfig, {"batch_size": 0}, "--batch-size 0"),
    (SearchConfig, {"k": 0}, "-k 0"),
    (KnnConfig, {"preset": "swav"}, "--preset swav: must be one of moco, lightly, dino"),
]


@pytest.mark.parametrize(("kind", "values", "message"), WRONG)
def test_wrong_values_are_refused_by_name(kind, values, message):
    first = {"images": ("x.jpg",)} if kind is SearchConfig else {"images": "x"} if kind is PretrainConfig else {
        "collections": "x"} if kind is EmbedConfig else {}
    with pytest.raises(UsageError) as refusal:
        kind(**first, **values)
    assert str(refusal.value).startswith(message)


def test_every_field_is_documented():
    from mocoembed.cli.options import field_help

    for kind in vars(configs).values():
        if dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                assert field_help(kind).get(field.name, "").endswith("."), (kind.__name__, field.name)
