"""`mocoembed export`: an encoder from wherever it is, for this tool or for others."""

import click

from mocoembed.cli.options import options_of
from mocoembed.cli.output import note, put
from mocoembed.config import ExportConfig


@click.command()
@click.argument("source", required=False)
@options_of(ExportConfig, leave_out=("source",))
def export(**values):
    """Export the query encoder of SOURCE: a checkpoint, run folder or encoder file; by default, the newest run.

    SOURCE can also be a weights file of another library (MoCo, lightly, solo-learn, VISSL, mmpretrain, torchvision), a
    published name, which is downloaded (moco-v1-200ep, moco-v2-200ep or moco-v2-800ep), torchvision:NAME or timm:NAME.

    With the format `encoder`, the file becomes the workspace's newest encoder. The formats torchvision, detectron2 and
    onnx hold only the backbone, without the projection head.

    \b
      mocoembed export
      mocoembed export mocoembed-workspace/runs/small-1a2b3c4d --format torchvision --output backbone.pth
      mocoembed export moco-v2-800ep
      mocoembed export checkpoint_0199.pth.tar --format detectron2 --output backbone.pkl
    """
    from mocoembed.train.export import export_encoder

    result = export_encoder(ExportConfig(**values), note)
    put(f"{result.path}: {result.format} of {result.source}, fingerprint {result.fingerprint[:12]}")
