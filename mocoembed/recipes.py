"""The published recipes, as presets of `PretrainConfig`'s fields, and kNN protocols, as presets of `KnnConfig`'s.

A field that a recipe does not name has the default of `PretrainConfig`, which is MoCo v2's.
"""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

RECIPES: dict[str, dict] = {
    # He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2019 (ImageNet, 8 GPUs).
    "moco-v1": {"head": "linear", "temperature": 0.07, "schedule": "step", "jitter": (0.4, 0.4, 0.4, 0.4),
                "jitter_probability": 1.0, "grey_first": True, "blur_probability": 0.0},
    # Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020 (ImageNet, 8 GPUs).
    "moco-v2": {},
    # v2 as it is run without shuffling, for instance by lightly and solo-learn (100 epochs on ImageNet).
    "moco-v2-plus": {"zero_init_residual": True, "temperature": 0.07, "batchnorm": "sync", "bn_groups": 1, "lr": 0.2,
                     "solarize_probability": 0.2, "epochs": 100},
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
