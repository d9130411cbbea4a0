"""benchmarks/reproduce/transfer*.py and docs/transfer.md: scenes and their truth, exported weights in torchvision's
models, measures against slow ones, and tiny trials for real."""

import json
import pathlib
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.reproduce import scenes, transfer, transfer_trial
from benchmarks.reproduce.scenes import draw_truth
from benchmarks.reproduce.transfer_models import detector, dilate, resnet, segmenter
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.sample import CLASSES
from mocoembed.files import write_json
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.weights import write_detectron2, write_torchvision
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD

SIZE = len(CLASSES) + 1
DOCS = pathlib.Path(__file__).parent.parent / "docs" / "transfer.md"


def frozen_encoder(arch):
    """An encoder whose BatchNorm has seen images, so that its statistics are not those it begins with."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(arch, 1.0, "7x7s2-pool", "none", 0))
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
    with torch.no_grad():
        for _ in range(3):
            encoder.train()(torch.randn(8, 3, 64, 64) * 2 + 1)
    return FrozenEncoder(encoder.eval(), EvaluationTransform.of(64, IMAGENET_MEAN, IMAGENET_STD), {})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(our ResNet-18, its export to torchvision)."""
    path, frozen = tmp_path_factory.mktemp("exported") / "backbone.pth", frozen_encoder("resnet18")
    write_torchvision(path, frozen)
    return frozen.encoder.backbone, path


def last_stage(backbone, x):
    """N x 512 x S/32 x S/32 of our backbone."""
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(x))))
    return backbone.layer4(backbone.layer3(backbone.layer2(backbone.layer1(x))))


@pytest.fixture(scope="module")
def truths():
    return [draw_truth(0, i) for i in range(60)]


def test_a_scene_depends_on_seed_and_index_alone(truths):
    assert np.array_equal(draw_truth(0, 7).image, truths[7].image)
    assert len({draw_truth(seed, i).image.tobytes() for seed in (0, 1) for i in range(10)}) == 20


def test_truth_of_the_scenes(truths):
    """Boxes bound the masks, masks do not overlap, and the image differs from its backdrop where they are."""
    assert {len(scene.labels) for scene in truths} == {1, 2, 3}
    assert set(np.concatenate([scene.labels for scene in truths])) == set(range(len(CLASSES)))
    for scene in truths:
        assert (scene.image.shape, scene.image.dtype) == ((96, 96, 3), np.uint8)
        assert scene.masks.sum(0).max() == 1
        for label, (left, top, right, bottom), mask in zip(scene.labels, scene.boxes.astype(int), scene.masks):
            inside = mask[top:bottom, left:right]
            assert inside.sum() == mask.sum() >= scenes.LEAST_PIXELS
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert (scene.classes()[mask] == label + 1).all()
        assert (scene.classes() == 0).sum() == (~scene.masks.any(0)).sum()


def test_masks_are_where_the_objects_are(monkeypatch, truths):
    """Scenes without noise and light, with white objects: what is white is the mask, but where two edges meet."""
    def painted(scene, label, grid, draw=scenes.draw_object):
        return np.float32([999, 999, 999]), draw(scene, label, grid)[1]

    monkeypatch.setattr(scenes, "draw_object", painted)
    monkeypatch.setattr(scenes, "photographed", lambda image, *_: image.copy())
    for i in range(10):
        scene = draw_truth(0, i)
        differing = (scene.image.mean(-1) > 500) != truths[i].masks.any(0)
        assert differing.sum() <= 5


def test_the_detector_takes_the_exported_weights_and_gives_our_features(exported):
    """`resnet` loads strictly: a name that is missing or left over is an error; here it is told by name."""
    ours, path = exported
    state = torch.load(path, weights_only=True)
    model = detector("resnet18", path, "trained", 0, SIZE, 96).eval()
    body = model.backbone.body
    assert set(state) == set(body.state_dict())
    x = torch.randn(2, 3, 96, 96)
    features = body(x)
    torch.testing.assert_close(features["3"], last_stage(ours, x))
    torch.testing.assert_close(features["3"].mean((2, 3)), ours(x))
    assert not any(torch.equal(state[name], random) for name, random in
                   detector("resnet18", None, "trained", 1, SIZE, 96).backbone.body.state_dict().items()
                   if name.endswith("weight"))


def test_unfitting_weights_are_refused(exported, tmp_path):
    state = torch.load(exported[1], weights_only=True)
    torch.save({name: tensor for name, tensor in state.items() if name != "layer2.0.bn1.running_mean"},
               tmp_path / "short.pth")
    with pytest.raises(RuntimeError, match=r"Missing key.*layer2\.0\.bn1\.running_mean"):
        resnet("resnet18", tmp_path / "short.pth", "trained", 0)
    with pytest.raises(RuntimeError, match=r"Missing key.*conv3"):
        resnet("resnet50", exported[1], "trained", 0)


def test_frozen_batchnorm_keeps_weights_and_statistics(exported):
    """Frozen layers give in training what ours give in evaluation; without the statistics they would not."""
    ours, path = exported
    network = resnet("resnet18", path, "frozen", 0).train()
    assert sum(isinstance(layer, FrozenBatchNorm2d) for layer in network.modules()) == 20
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(x), ours(x), rtol=1e-4, atol=1e-4)
    network.layer1[0].bn1.running_var.fill_(1)
    assert (network(x) - ours(x)).abs().max() > 1e-2


def test_what_is_trained(exported):
    """All of a detector; with frozen BatchNorm all but that, and the pyramid has none."""
    for norm, count in (("trained", 28), ("frozen", 0)):
        model = detector("resnet18", exported[1], norm, 0, SIZE, 96)
        assert all(parameter.requires_grad for parameter in model.parameters())
        layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert len(layers) == count
        names = [name for name, _ in model.backbone.body.named_parameters()]
        assert any(".bn1." in name for name in names) == (norm == "trained")


def test_new_layers_depend_on_the_trial_alone(exported):
    one, other = (detector("resnet18", weights, "trained", 3, SIZE, 96) for weights in (exported[1], None))
    third = detector("resnet18", exported[1], "trained", 4, SIZE, 96)
    for part in ("rpn", "roi_heads"):
        states = [getattr(model, part).state_dict() for model in (one, other, third)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_the_segmentation_models_last_stage_is_dilated(exported):
    """Stride 16, and at the places of the old grid what the old stage gives, away from the border."""
    ours, path = exported
    model = segmenter("resnet18", path, "trained", 0, SIZE).eval()
    x = torch.randn(1, 3, 96, 96)
    assert model(x)["out"].shape == (1, SIZE, 96, 96)
    assert model.backbone(x)["out"].shape == (1, 512, 6, 6)
    body = resnet("resnet18", path, "trained", 0).eval()
    before = body.layer4[0](torch.ones(1, 256, 12, 12))
    dilate(body.layer4)
    after = body.layer4[0](torch.ones(1, 256, 12, 12))
    torch.testing.assert_close(after[:, :, ::2, ::2][:, :, 2:4, 2:4], before[:, :, 2:4, 2:4])
    assert list(model.backbone.state_dict()) == list(torch.load(path, weights_only=True))
    assert ours.layer4[0].conv1.stride == (2, 2)


def test_a_flip_is_a_flip(truths):
    """Losses of flipped scenes are those of the scenes drawn mirrored."""
    class Recorder(nn.Module):
        def forward(self, images, targets=None):
            self.seen = images, targets
            return {"loss": torch.tensor(0.0), "out": torch.zeros(len(images), SIZE, 96, 96)}

    scene = next(scene for scene in truths if len(scene.labels) > 1)
    model = Recorder()
    transfer_trial.detection_loss(model, [scene, scene], np.array([False, True]))
    (plain, flipped), targets = model.seen
    assert torch.equal(flipped, plain.flip(-1))
    mirrored = scenes._boxes(scene.masks[:, :, ::-1])
    assert torch.equal(targets[1]["boxes"], torch.from_numpy(mirrored))
    assert torch.equal(targets[0]["boxes"], torch.from_numpy(scene.boxes))
    assert targets[1]["labels"].tolist() == (scene.labels + 1).tolist()


def test_average_precision_of_known_detections(truths):
    pytest.importorskip("pycocotools")
    truths = truths[:20]

    def told(shift=0.0, label=0):
        return [{"image_id": i + 1, "category_id": (int(one) + label) % len(CLASSES) + 1, "score": 0.9,
                 "bbox": [float(box[0]) + shift * float(box[2] - box[0]), float(box[1]), float(box[2] - box[0]),
                          float(box[3] - box[1])]}
                for i, scene in enumerate(truths) for one, box in zip(scene.labels, scene.boxes)]

    measured = transfer_trial.coco_precision
    assert measured(truths, told()) == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})
    assert measured(truths, told(label=1))["AP50"] < 5
    assert measured(truths, []) == {"AP": 0, "AP50": 0, "AP75": 0}
    # A shift by 0.2 of the width leaves an IoU of 0.8 / 1.2: thresholds 0.5, 0.55, 0.6, 0.65 of ten are passed, if no
    # other object of the class comes nearer.
    assert measured(truths, told(shift=0.2)) == pytest.approx({"AP": 40, "AP50": 100, "AP75": 0}, abs=2)


def test_mean_iou_against_counting(truths):
    class Constant(nn.Module):
        def forward(self, images):
            out = torch.zeros(len(images), SIZE, 96, 96)
            out[:, 2, :48] = out[:, 0, 48:] = 1
            return {"out": out}

    guess = np.zeros((96, 96), int)
    guess[:48] = 2
    expected = []
    for number in range(SIZE):
        both = sum(((scene.classes() == number) & (guess == number)).sum() for scene in truths[:11])
        either = sum(((scene.classes() == number) | (guess == number)).sum() for scene in truths[:11])
        expected += [both / either] if either else []
    assert transfer_trial.mean_iou(Constant(), truths[:11])["mIoU"] == pytest.approx(100 * np.mean(expected))


def test_the_learning_rate_rises_and_falls():
    rates = [transfer_trial.learning_rate(step, 100) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9] == rates[74] == 1
    assert rates[75] == pytest.approx(0.1)
    assert rates[99] == pytest.approx(0.01)


def run(*arguments):
    result = CliRunner().invoke(transfer.main, [str(one) for one in arguments])
    return result.exit_code, result.output


def test_a_tiny_trial_for_real_and_kept(tmp_path, monkeypatch):
    pytest.importorskip("pycocotools")
    arguments = ("--quick", "--trial", 1, "--output", tmp_path, "--only", "detection-pretrained")
    status, output = run(*arguments)
    assert status == 0, output + (tmp_path / "log.txt").read_text()
    assert "**Tiny runs" in output
    pretrained = json.loads((tmp_path / "pretrained.json").read_text())
    assert 0 <= pretrained["knn"]["results"][0]["top1"] <= 100
    found = json.loads((tmp_path / "cells" / "detection-pretrained-trial1.json").read_text())
    assert (found["seed"], found["steps"], found["test_scenes"]) == (1, 2, 8)
    assert {"AP", "AP50", "AP75"} <= set(found)
    assert "| pretrained | " in output
    monkeypatch.setattr(transfer, "run_trial", lambda *_: 1 / 0)
    assert run(*arguments)[0] == 0  # nothing is run again
    assert run(*arguments, "--only", "segmentation-pretrained")[0] == 1
    status, output = run(*[one for one in arguments if one != "--quick"])
    assert (status, "was made with other options" in output) == (2, True)


def test_a_tiny_segmentation_is_the_same_again(exported):
    one, again, random = (transfer_trial.trial("segmentation", weights, "trained", 1, (3, 16, 8))
                          for weights in (exported[1], exported[1], None))
    assert one["mIoU"] == again["mIoU"]
    assert one["loss"] == again["loss"] != random["loss"]
    assert 0 < one["mIoU"] < 100


def test_a_trial_that_diverges_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(transfer_trial, "LR", 1e30)
    found = transfer_trial.trial("segmentation", None, "trained", 1, (4, 8, 8))
    assert (found["mIoU"], "loss" in found) == (0, False)
    assert "loss of step" in found["diverged"]
    (tmp_path / "cells").mkdir()
    write_json(tmp_path / "cells" / "x.json", {"cell": "segmentation-random", "seed": 1, "quick": False, **found})
    assert "| random (1 of 1 diverged: 0) | 0.0 (n 1) |" in transfer.report_text(tmp_path)


def test_report_of_made_up_results(tmp_path):
    (tmp_path / "cells").mkdir()
    for seed in range(5):
        for cell, figure in (("segmentation-random", 20 + seed), ("segmentation-pretrained", 30 + seed % 2 + seed)):
            write_json(tmp_path / "cells" / f"{cell}-trial{seed}.json",
                       {"cell": cell, "seed": seed, "quick": False, "mIoU": figure})
    text = transfer.report_text(tmp_path)
    assert "| random | 22.0 ± 2.0 (n 5) | 1.6 |" in text
    assert "| 10.4 ± 0.7 (n 5) | shows |" in text  # the differences are 10, 11, 10, 11, 10
    assert run("--report", tmp_path) == (0, text + "\n")


def test_every_claim_is_of_cells_that_are_run():
    for claim in transfer.CLAIMS:
        for cell in (claim.one, claim.other):
            assert transfer.CELLS[cell].task == claim.study
        assert claim.figure in transfer.FIGURES[claim.study]


def test_the_detector_of_the_documentation_runs(exported, tmp_path, monkeypatch):
    """With ResNet-18 and small images, to be quick."""
    code = block("python")
    for old, new in (("resnet50", "resnet18"), ("[256, 512, 1024, 2048]", "[64, 128, 256, 512]"),
                     ("num_classes=21", "num_classes=21, min_size=96, max_size=128")):
        assert old in code
        code = code.replace(old, new)
    shutil.copy(exported[1], tmp_path / "backbone.pth")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(code, str(DOCS), "exec"), found)
    assert found["network"].conv1.weight.grad.abs().sum() > 0
    x = torch.randn(1, 3, 96, 96)
    weights = torch.load(exported[1], weights_only=True)
    assert torch.equal(found["backbone"].body.conv1.weight, weights["conv1.weight"])
    assert found["backbone"].eval()(x)["3"].shape == (1, 256, 3, 3)


def test_the_detectron2_configuration_of_the_documentation():
    """What the exported weights need: detectron2 reads tuples and lists alike, so YAML's lists do."""
    config = pytest.importorskip("yaml").safe_load(block("yaml"))
    assert config["MODEL"]["PIXEL_MEAN"] == pytest.approx([255 * one for one in IMAGENET_MEAN])
    assert config["MODEL"]["PIXEL_STD"] == pytest.approx([255 * one for one in IMAGENET_STD])
    assert config["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False
    assert config["INPUT"]["FORMAT"] == "RGB"


def by_detectron2s_names(model, depths, x):
    """N x D: what detectron2's ResNet with STRIDE_IN_1X1 False gives, written down from its names and its strides."""
    def convolution(name, x, stride=1):
        weight = model[f"{name}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, scale, shift = (model[f"{name}.norm.{part}"][:, None, None]
                                        for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift

    x = functional.max_pool2d(functional.relu(convolution("stem.conv1", x, 2)), 3, 2, 1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name, stride = f"res{stage + 2}.{block}", 2 if stage and not block else 1
            bottleneck = f"{name}.conv3.weight" in model
            y = functional.relu(convolution(f"{name}.conv1", x, 1 if bottleneck else stride))
            y = convolution(f"{name}.conv2", y, stride if bottleneck else 1)
            if bottleneck:
                y = convolution(f"{name}.conv3", functional.relu(y))
            if f"{name}.shortcut.weight" in model:
                x = convolution(f"{name}.shortcut", x, stride)
            x = functional.relu(x + y)
    return x.mean((2, 3))


@pytest.mark.parametrize(("arch", "depths"), [("resnet18", (2, 2, 2, 2)), ("resnet50", (3, 4, 6, 3))])
def test_features_by_detectron2s_names_are_ours(arch, depths, tmp_path):
    frozen = frozen_encoder(arch)
    write_detectron2(tmp_path / "b.pkl", frozen)
    model = {name: torch.from_numpy(array)
             for name, array in pickle.loads((tmp_path / "b.pkl").read_bytes())["model"].items()}
    used = UsedNames(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(by_detectron2s_names(used, depths, x), frozen.encoder.backbone(x), rtol=1e-4,
                                   atol=1e-4)
    assert used.names == set(model)  # none is left over


class UsedNames(dict):
    """Remembers what was asked for."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def block(language):
    """The documentation's only block of code in that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return found
