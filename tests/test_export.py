"""Exporting: into the workspace and for others, with the same outputs as the encoder that was trained."""

import hashlib
import pickle
import shutil

import numpy as np
import pytest
import torch
import torchvision

from mocoembed.config import ExportConfig, PretrainConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import FormatError, UsageError
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder, load_encoder, save_encoder
from mocoembed.model.weights import detectron2_name, write_torchvision
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD
from mocoembed.train.checkpoint import current_checkpoint
from mocoembed.train.export import export_encoder, open_encoder
from mocoembed.train.loop import pretrain
from mocoembed.workspace import Workspace


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images):
    """(workspace, result) of one epoch of a ResNet-18 of full width."""
    root = tmp_path_factory.mktemp("export")
    config = PretrainConfig.of("small", str(images), workspace=str(root), width=1.0, stem="7x7s2-pool", dim=16,
                               queue_size=20, batch_size=8, bn_groups=2, image_size=32, epochs=1, workers=0,
                               device="cpu")
    return root, pretrain(config)


@pytest.fixture
def export(trained):
    return lambda source=None, **values: export_encoder(
        ExportConfig(source and str(source), **{"workspace": str(trained[0]), **values}))


def test_the_newest_run_a_run_and_a_checkpoint_give_the_encoder_that_pretrain_gave(trained, export):
    _, result = trained
    checkpoint = current_checkpoint(result.run)
    for source in (None, result.run, checkpoint, result.encoder):
        assert export(source).fingerprint == result.fingerprint
    assert load_encoder(export(checkpoint).path).provenance["checkpoint_sha256"] == load_encoder(
        result.encoder).provenance["checkpoint_sha256"]


def test_torchvision_loads_the_backbone(trained, export, tmp_path):
    path = export(format="torchvision", output=str(tmp_path / "b.pth")).path
    network = torchvision.models.resnet18()
    report = network.load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    network.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    backbone = load_encoder(trained[1].encoder).encoder.backbone
    torch.testing.assert_close(network.eval()(x), backbone(x))


def test_detectron2_layout(trained, export, tmp_path):
    content = pickle.loads(export(format="detectron2", output=str(tmp_path / "b.pkl")).path.read_bytes())
    assert content["matching_heuristics"] is True
    model = content["model"]
    assert {"stem.conv1.weight", "stem.conv1.norm.running_mean", "res2.0.conv1.weight", "res5.1.conv2.norm.bias",
            "res3.0.shortcut.weight", "res3.0.shortcut.norm.running_var"} <= set(model)
    assert all(isinstance(value, np.ndarray) and value.dtype == np.float32 for value in model.values())
    assert detectron2_name("layer4.2.bn3.weight") == "res5.2.conv3.norm.weight"


def test_detectron2_names_are_the_official_converters():
    """The digest is of what the authors' convert-pretrain-to-detectron2.py makes of their ResNet-50, without the head
    and the counts of batches."""
    names = [detectron2_name(name) for name in torchvision.models.resnet50().state_dict()
             if not name.startswith("fc.") and not name.endswith("num_batches_tracked")]
    assert len(names) == 265
    assert hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest().startswith("75cb8e64f1831fe9")


def test_a_detector_of_torchvision_takes_the_backbone(tmp_path):
    frozen = FrozenEncoder(Encoder(EncoderSpec("resnet50", 1.0, "7x7s2-pool", "none", 0)),
                           EvaluationTransform.of(224, IMAGENET_MEAN, IMAGENET_STD), {})
    write_torchvision(tmp_path / "b.pth", frozen)
    detector = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    report = detector.backbone.body.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True), strict=False)
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    again = open_encoder(str(tmp_path / "b.pth"), Workspace(tmp_path))
    assert again.fingerprint() == frozen.fingerprint()


def test_a_checkpoint_that_left_its_run_is_still_ours(trained, tmp_path):
    shutil.copy(current_checkpoint(trained[1].run), tmp_path / "moved.pt")
    assert open_encoder(str(tmp_path / "moved.pt"), Workspace(tmp_path)).fingerprint() == trained[1].fingerprint


def test_onnx_gives_the_same_features(trained, export, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(export(format="onnx", output=str(tmp_path / "b.onnx")).path))
    assert "mocoembed.transform" in session.get_modelmeta().custom_metadata_map
    backbone = load_encoder(trained[1].encoder).encoder.backbone
    for n in (1, 3):
        x = torch.randn(n, 3, 32, 32)
        (features,) = session.run(["features"], {"images": x.numpy()})
        expected = backbone(x).numpy()  # of one epoch's training: far from unit size, so compared relatively
        assert np.abs(features - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_cannot_be_exported_is_refused(export, tmp_path, make_encoder):
    save_encoder(tmp_path / "narrow.safetensors", make_encoder())
    with pytest.raises(UsageError, match=r"width 0.125.*no torchvision layout"):
        export(tmp_path / "narrow.safetensors", format="torchvision", output=str(tmp_path / "x.pth"))
    assert not (tmp_path / "x.pth").exists()
    with pytest.raises(UsageError, match="does not exist"):
        export(tmp_path / "nothing.pt")
    with pytest.raises(FormatError, match="no checkpoint"):
        export(tmp_path)
    with pytest.raises(UsageError, match="No run with a checkpoint"):
        export(workspace=str(tmp_path))
    (tmp_path / "text.pt").write_text("x")
    with pytest.raises(FormatError, match="is not a checkpoint"):
        export(tmp_path / "text.pt")
