"""Does MoCo on a small collection, starting from weights that others trained, help or harm kNN?

    python -m benchmarks.lite0 lite0.safetensors
    python -m benchmarks.init_effect flowers SCRATCH --init timm:tf_efficientnet_lite0=lite0.safetensors

Leave-one-out kNN (k 20, T 0.1, backbone features) of the source as it is, and after EPOCHS epochs of MoCo v2 (K 512, m
0.99, batch 32, BatchNorm in 2 groups) from it at several learning rates, and from chance. All at IMAGE_SIZE pixels.
What is there already is not done again.
"""

import argparse
import time

from mocoembed.config import EmbedConfig, ExportConfig, KnnConfig, PretrainConfig
from mocoembed.embed.extract import embed_images
from mocoembed.evaluate.knn.accuracy import knn_accuracy
from mocoembed.train.export import export_encoder
from mocoembed.train.loop import pretrain

RATES = (0.015, 0.0015)


def accuracy(arguments, encoder) -> float:
    """Leave-one-out kNN accuracy in percent of the labelled images with that encoder."""
    path = embed_images(EmbedConfig(arguments.images, arguments.scratch, str(encoder), workers=0, fresh=True)).path
    return knn_accuracy(KnnConfig(str(path), k=(20,), temperature=(0.1,), baselines=False)).scores[0].top1


def learned(arguments, lr: float, start: dict):
    """The encoder after the epochs at that learning rate."""
    config = PretrainConfig.of(
        "moco-v2", arguments.images, workspace=arguments.scratch, queue_size=512, momentum=0.99, batch_size=32,
        bn_groups=2, image_size=arguments.image_size, epochs=arguments.epochs, lr=lr, workers=1, **start)
    return pretrain(config).encoder


def main():
    """Pretrain, embed, print the table's rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("scratch", metavar="SCRATCH")
    parser.add_argument("--init", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=64)
    arguments = parser.parse_args()
    source = export_encoder(ExportConfig(arguments.init, arguments.scratch, image_size=arguments.image_size)).path
    print(f"| the source as it is | {accuracy(arguments, source):.2f} % | |", flush=True)
    for lr in RATES:
        began = time.monotonic()
        encoder = learned(arguments, lr, {"init": arguments.init})
        print(f"| from the source, learning rate {lr:g} | {accuracy(arguments, encoder):.2f} % | "
              f"{time.monotonic() - began:.0f} s |", flush=True)
    began = time.monotonic()
    encoder = learned(arguments, RATES[0], {"arch": arguments.init.partition("=")[0].replace("torchvision:", "")})
    print(f"| from chance, learning rate {RATES[0]:g} | {accuracy(arguments, encoder):.2f} % | "
          f"{time.monotonic() - began:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
