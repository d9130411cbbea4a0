"""`mocoembed export`: a checkpoint's query encoder, for this tool or for others."""

import click

from mocoembed.cli.options import options_of
from mocoembed.cli.output import put
from mocoembed.config import ExportConfig


@click.command()
@click.argument("checkpoint", required=False)
@options_of(ExportConfig, leave_out=("checkpoint",))
def export(**values):
    """Write the query encoder of CHECKPOINT (a checkpoint, run folder or encoder file; by default the newest run).

    The format `encoder` becomes the workspace's newest encoder. torchvision, detectron2 and onnx hold the backbone
    alone, without the projection head.

    \b
      mocoembed export
      mocoembed export mocoembed-workspace/runs/small-1a2b3c4d --format torchvision --output backbone.pth
    """
    from mocoembed.train.export import export_encoder

    result = export_encoder(ExportConfig(**values))
    put(f"{result.path}: {result.format} of {result.source}, fingerprint {result.fingerprint[:12]}")
