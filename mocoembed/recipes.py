"""The published recipes, as presets of `PretrainConfig`'s fields, and kNN protocols, as presets of `KnnConfig`'s.

A field that a recipe does not name has the default of `PretrainConfig`, which is MoCo v2's. The recipe `auto` is no
preset: it chooses when the images are known (train/auto_recipe.py).
"""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

RECIPES: dict[str, dict] = {
    # He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2019 (ImageNet, 8 GPUs).
    "moco-v1": {"head": "linear", "temperature": 0.07, "schedule": "step", "jitter": (0.4, 0.4, 0.4, 0.4),
                "jitter_probability": 1.0, "grey_first": True, "blur_probability": 0.0},
    # Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020 (ImageNet, 8 GPUs).
    "moco-v2": {},
    # v2 with one BatchNorm over the whole batch and so nothing to shuffle, a larger learning rate, v1's temperature,
    # solarised views, and residual blocks that start as the identity. Not from a paper, nor from another library.
    "moco-v2-plus": {"zero_init_residual": True, "temperature": 0.07, "batchnorm": "sync", "bn_groups": 1, "lr": 0.2,
                     "solarize_probability": 0.2, "epochs": 100},
    # lightly's ImageNet benchmark of MoCo v2 (benchmarks/imagenet/resnet50/mocov2.py and main.py at e8d317fc, 2026).
    # Theirs alone: the learning rate falls with every step and ends at a thousandth, and the key encoder's head starts
    # with weights of its own. Keys are shuffled, which changes nothing with BatchNorm over all devices.
    "lightly": {"batchnorm": "sync", "bn_groups": 1, "decay_norms": False, "epochs": 100},
    # solo-learn's MoCo v2+ on ImageNet (scripts/pretrain/imagenet/mocov2plus.yaml at 9187ea3, 2026): two devices with
    # 64 images each. Its lr 0.3 is for 256 images, so 0.15, and its loss the mean of both directions where ours is the
    # sum: with half the learning rate and twice the weight decay (3e-5) the steps are the same. Theirs alone: m rises
    # from 0.99 to 0.999 (0.995 is about the mean), each view has a queue, and lr changes with every step.
    "solo-learn": {"dim": 256, "symmetric": True, "momentum": 0.995, "batchnorm": "sync", "bn_groups": 1,
                   "batch_size": 128, "lr": 0.075, "weight_decay": 6e-5, "warmup_epochs": 10.0, "epochs": 400,
                   "crop_scale": (0.08, 1.0)},
    # The CIFAR-10 demo of the authors: one GPU, BatchNorm split in 8 groups.
    "cifar10": {"arch": "resnet18", "stem": "3x3s1", "head": "linear", "queue_size": 4096, "momentum": 0.99,
                "temperature": 0.1, "batch_size": 512, "lr": 0.06, "weight_decay": 5e-4, "image_size": 32,
                "crop_scale": (0.08, 1.0), "blur_probability": 0.0, "mean": CIFAR_MEAN, "std": CIFAR_STD},
    # Minutes on two CPU cores, for images of about 64 pixels: what `mocoembed demo` runs. The strong jitter of the
    # hue, the mild crops and the warm-up were tried out on the generated images (benchmarks/README.md).
    "small": {"arch": "resnet18", "width": 0.25, "queue_size": 512, "momentum": 0.99, "batch_size": 64, "bn_groups": 1,
              "lr": 0.06, "warmup_epochs": 3.0, "weight_decay": 5e-4, "image_size": 64, "crop_scale": (0.4, 1.0),
              "jitter": (0.4, 0.4, 0.4, 0.5), "blur_probability": 0.0, "epochs": 30},
}

# (features, k, T) of the protocols that papers quote.
KNN_PRESETS: dict[str, tuple[str, tuple[int, ...], tuple[float, ...]]] = {
    "moco": ("projection", (200,), (0.1,)),
    "lightly": ("backbone", (200,), (0.1,)),
    "dino": ("backbone", (10, 20, 100, 200), (0.07,)),
}
