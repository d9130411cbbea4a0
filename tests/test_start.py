"""`pretrain --init`: what the encoders begin with, what is recorded, and resuming without the source."""

import dataclasses
import json
import shutil

import pytest
import torch
from test_loop import stop_at
from torch import nn

from mocoembed.checks import to_dict
from mocoembed.config import EmbedConfig, ExportConfig, PretrainConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import Interrupted, UsageError
from mocoembed.files import sha256_json
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder, load_encoder, save_encoder
from mocoembed.model.precision import Compute
from mocoembed.train.checkpoint import load_newest
from mocoembed.train.export import export_encoder
from mocoembed.train.loop import pretrain
from mocoembed.train.monitor import Watcher
from mocoembed.train.run import EXECUTION, run_folder, set_up
from mocoembed.train.start import begin, find_start

CPU = Compute.of("cpu", "fp32")
SPEC = EncoderSpec("resnet18", 0.125, "3x3s2", "mlp", 16)
COLOURS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}


@pytest.fixture
def source(tmp_path):
    """A file with an encoder of its own mean and standard deviation."""
    torch.manual_seed(5)
    encoder = Encoder(SPEC)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
    transform = EvaluationTransform.of(32, COLOURS["mean"], COLOURS["std"])
    save_encoder(tmp_path / "source.safetensors", FrozenEncoder(encoder.eval(), transform, {"made": "here"}))
    return tmp_path / "source.safetensors"


@pytest.fixture
def config(tmp_path, images, source):
    """`config(...)`: a short run from the source."""
    def make(**more) -> PretrainConfig:
        return PretrainConfig.of("small", str(images), **{
            "workspace": str(tmp_path / "ws"), "init": str(source), "dim": 16, "queue_size": 10, "batch_size": 8,
            "bn_groups": 2, "image_size": 16, "epochs": 2, "workers": 0, "device": "cpu", "mask_same_image": True,
            **more})

    return make


def begun(config, note=lambda text: None):
    """The training of a new run, before its first step, and its config."""
    start = find_start(config, run_folder(config), note)
    config = PretrainConfig(**{**vars(config), **start.settings})
    training = set_up(config, CPU, images=24)
    begin(training, start)
    return training, config


@pytest.mark.parametrize("more", [{}, {"dictionary": "memory-bank"}, {"dictionary": "end-to-end"},
                                  {"dictionary": "end-to-end", "key_encoder": "separate"}])
def test_all_encoders_begin_as_the_source(config, source, more):
    notes = []
    training, settled = begun(config(**more), notes.append)
    wanted = load_encoder(source).encoder.state_dict()
    encoders = {name: one for name, one in training.method.named_children() if isinstance(one, Encoder)}
    assert set(encoders) == ({"encoder_q", "encoder_k"} if not more or "key_encoder" in more else {"encoder_q"})
    for encoder in encoders.values():
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, wanted[name]), name
    assert (settled.arch, settled.width, settled.stem) == (SPEC.arch, SPEC.width, SPEC.stem)
    assert (settled.mean, settled.std) == (COLOURS["mean"], COLOURS["std"])
    assert notes == [f"starting from {source} (resnet18, fingerprint {load_encoder(source).fingerprint()[:8]}): the "
                     "backbone, and the head too"]


def test_the_keys_own_head_begins_as_the_sources_too(config, source):
    training, _ = begun(config(dictionary="end-to-end", key_encoder="shared-backbone"))
    wanted = load_encoder(source).encoder.head.state_dict()
    for name, tensor in training.method.head_k.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("other", [{"dim": 8}, {"head": "linear"}])
def test_another_head_begins_as_by_chance(config, source, other):
    notes = []
    training, _ = begun(config(**other), notes.append)
    by_chance = set_up(PretrainConfig(**{**vars(config(**other)), "init": None, "arch": "resnet18", "width": 0.125,
                                         "stem": "3x3s2", **COLOURS}), CPU, 24).method.encoder_q.state_dict()
    wanted = load_encoder(source).encoder.state_dict()
    for name, tensor in training.method.encoder_q.state_dict().items():
        assert torch.equal(tensor, (by_chance if name.startswith("head.") else wanted)[name]), name
    assert "the backbone, and a new head (" in notes[0]
    assert "the source has mlp, 16 numbers)" in notes[0]


def test_what_is_given_is_held_against_the_source(config, source):
    with pytest.raises(UsageError, match=r"--init .*: is resnet18, width 0\.125, stem 3x3s2; the run's backbone is "
                                         r"resnet34, width 0\.25, .*Leave out --arch.* give --arch resnet18 --width 0"):
        begun(config(arch="resnet34"))
    _, settled = begun(config(arch="resnet18", width=0.125, stem="3x3s2", mean=(0.1, 0.2, 0.3)))
    assert (settled.mean, settled.std) == ((0.1, 0.2, 0.3), COLOURS["std"])
    with pytest.raises(UsageError, match="'nowhere' does not exist"):
        begun(config(init="nowhere"))
    for wrong in ({"arch": "init"}, {"mean": ()}, {"std": ()}, {"init": ""}):
        with pytest.raises(UsageError, match="must be"):
            PretrainConfig("images", **wrong)


@pytest.mark.parametrize("given", [(), (0.0, 255.0)])
def test_the_value_range_is_the_sources_unless_it_is_given(config, source, tmp_path, given):
    frozen = load_encoder(source)
    deep = dataclasses.replace(frozen, transform=dataclasses.replace(frozen.transform, value_range=(0.0, 4095.0)))
    save_encoder(source, deep)
    with pytest.raises(Interrupted):
        pretrain(config(value_range=given), stop_at(2))
    shutil.move(source, tmp_path / "away.safetensors")
    result = pretrain(config(value_range=given))  # resumes, without the source
    assert load_encoder(result.encoder).transform.value_range == (given or (0.0, 4095.0))
    assert load_newest(result.run)["started_from"]["fingerprint"] == deep.fingerprint()
    assert json.loads((result.run / "config.json").read_text())["value_range"] == list(given or (0.0, 4095.0))


def test_a_run_resumes_without_its_source_and_not_from_another(config, source, tmp_path):
    before = load_encoder(source)
    whole = pretrain(config(workspace=str(tmp_path / "other")))
    with pytest.raises(Interrupted):
        pretrain(config(), stop_at(2))
    shutil.move(source, tmp_path / "away.safetensors")
    notes = []
    result = pretrain(config(), Watcher(note=notes.append))
    assert any("resuming" in text for text in notes)
    assert result.fingerprint == whole.fingerprint  # to the bit as if it had never stopped
    record = {"source": str(source), "fingerprint": before.fingerprint(), "head": True}
    assert load_newest(result.run)["started_from"] == record
    saved = json.loads((result.run / "config.json").read_text())
    assert (saved["init"], saved["arch"], saved["started_from"]) == (str(source), "resnet18", record)
    for made in (result.encoder, export_encoder(ExportConfig(str(result.run), str(tmp_path / "third"))).path):
        assert load_encoder(made).provenance["started_from"] == record
        assert load_encoder(made).transform.mean == COLOURS["mean"]
    with pytest.raises(UsageError, match="does not exist"):
        pretrain(config(fresh=True))
    with pytest.raises(UsageError, match=r"was started with other settings: --init .*source.safetensors -> .*away"):
        pretrain(config(run=result.run.name, init=str(tmp_path / "away.safetensors")))


def test_the_source_is_part_of_the_runs_name_and_no_source_changes_no_name(config):
    with_source, without = config(), config(init=None)
    assert run_folder(with_source) != run_folder(config(init="torchvision:resnet18"))
    not_of_it = (*EXECUTION, "init", "exclude", "value_range", "key_image_size", "key_crop_scale")
    learned = {name: value for name, value in to_dict(without).items() if name not in not_of_it}
    assert run_folder(without).name == f"small-{sha256_json(learned)[:8]}"


@pytest.mark.slow
def test_two_processes_begin_equal(config):
    result = pretrain(config(processes=2, check_ranks=True, epochs=1))
    assert load_encoder(result.encoder).provenance["started_from"]["head"] is True


# ------------------------------------------------------------------------------------------------------- timm


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_timms_batchnorm_in_groups_is_one_for_each_group(timm, name):
    from mocoembed.model.encoder import build_backbone

    torch.manual_seed(0)
    grouped = build_backbone(f"timm:{name}", 1.0, "7x7s2-pool", bn_groups=2).double().train()
    plain = build_backbone(f"timm:{name}", 1.0, "7x7s2-pool").double().train()
    assert any(type(layer).__name__ == "BatchNormAct2d" for layer in plain.modules()) == (name == "test_efficientnet")
    plain.load_state_dict(grouped.state_dict())
    x = torch.randn(8, 3, 64, 64, dtype=torch.float64)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    ours, theirs, after = grouped(x), [], []
    for part in x.chunk(2):
        plain.load_state_dict(before)
        theirs.append(plain(part))
        after.append({key: value.clone() for key, value in plain.state_dict().items()})
    torch.testing.assert_close(ours, torch.cat(theirs))
    for key, value in grouped.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(value, (after[0][key] + after[1][key]) / 2)


def test_a_timm_model_is_pretrained_resumed_embedded_and_exported(timm, config, images, tmp_path, run_cli):
    given = config(init=None, arch="timm:test_efficientnet", width=1.0, image_size=32, epochs=2)
    whole = pretrain(given)
    moved = PretrainConfig(**{**vars(given), "workspace": str(tmp_path / "other")})
    with pytest.raises(Interrupted):
        pretrain(moved, stop_at(2))
    assert pretrain(moved).fingerprint == whole.fingerprint
    frozen = load_encoder(whole.encoder)
    assert frozen.encoder.spec.arch == "timm:test_efficientnet.r160_in1k"
    path = embed_images(EmbedConfig(str(images), given.workspace, workers=0, device="cpu")).path
    with EmbeddingFile(path) as file:
        assert file.embeddings[:].shape == (24, frozen.encoder.backbone.features)
    status, out, _ = run_cli("info", whole.encoder)
    assert (status, "timm:test_efficientnet.r160_in1k" in out) == (0, True)
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = export_encoder(ExportConfig(str(whole.run), str(tmp_path), "onnx", str(tmp_path / "e.onnx"))).path
    x = torch.randn(3, 3, 32, 32)
    (found,) = onnxruntime.InferenceSession(str(onnx)).run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), frozen.encoder.backbone(x), rtol=1e-3, atol=1e-4)


def test_a_timm_model_begins_from_a_file(timm, config, tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    training, settled = begun(config(init=f"timm:test_resnet={tmp_path / 'w.pth'}"))
    assert settled.arch == "timm:test_resnet.r160_in1k"
    assert training.started_from["checkpoint_sha256"]
    wanted = torch.load(tmp_path / "w.pth", weights_only=True)
    for name, tensor in training.method.encoder_k.backbone.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_timms_chances_are_off_and_its_activations_stay_over_processes(timm):
    from mocoembed.model.encoder import build_backbone, synchronized

    network = build_backbone("timm:test_vit", 1.0, "7x7s2-pool").train()
    x = torch.randn(2, 3, 160, 160)
    assert torch.equal(network(x), network(x))
    over = synchronized(Encoder(EncoderSpec("timm:test_efficientnet", 1.0, "7x7s2-pool", "none", 0)))
    layers = [layer for layer in over.modules() if isinstance(layer, nn.SyncBatchNorm)]
    assert layers
    assert all(hasattr(layer, "act") for layer in layers)
