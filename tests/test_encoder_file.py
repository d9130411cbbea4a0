"""The encoder's file: its round trip, its fingerprint, and that its vectors depend on the image alone."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import FormatError
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import load_encoder, save_encoder
from mocoembed.model.encoder_metadata import read_metadata
from mocoembed.model.precision import Compute

CPU = Compute.of("cpu", "fp32")


def pixels(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 255, (n, 3, 32, 32), np.uint8))


def test_round_trip(tmp_path, make_encoder):
    frozen = make_encoder()
    save_encoder(tmp_path / "e.safetensors", frozen)
    again = load_encoder(tmp_path / "e.safetensors")
    assert again.fingerprint() == frozen.fingerprint() == read_metadata(tmp_path / "e.safetensors")["fingerprint"]
    assert again.transform == frozen.transform
    assert again.provenance == frozen.provenance
    one, other = (Embedder(f, CPU, "projection", True)(pixels(3)) for f in (frozen, again))
    assert torch.equal(one, other)


def test_the_fingerprint_covers_weights_and_transform_but_not_provenance(make_encoder):
    frozen = make_encoder()
    assert make_encoder().fingerprint() == frozen.fingerprint()
    assert make_encoder(seed=1).fingerprint() != frozen.fingerprint()
    larger = dataclasses.replace(frozen, transform=EvaluationTransform.of(40, (0.5,) * 3, (0.5,) * 3))
    assert larger.fingerprint() != frozen.fingerprint()
    assert dataclasses.replace(frozen, provenance={}).fingerprint() == frozen.fingerprint()


@pytest.mark.parametrize("features", ["backbone", "projection"])
def test_a_vector_does_not_depend_on_batch_size_or_neighbours(make_encoder, features):
    embedder = Embedder(make_encoder(), CPU, features, True)
    together = embedder(pixels(33))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(33))
    for size in (1, 2, 5):
        parts = torch.cat([embedder(part) for part in pixels(33).split(size)])
        assert (parts - together).abs().max() < 1e-5
    neighbours = torch.cat([pixels(1), pixels(9, seed=5)])
    assert (embedder(neighbours)[0] - together[0]).abs().max() < 1e-5


def test_features_and_normalisation(make_encoder):
    raw = Embedder(make_encoder(), CPU, "backbone", False)(pixels(2))
    assert raw.shape == (2, 64)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1),
                               Embedder(make_encoder(), CPU, "backbone", True)(pixels(2)))
    assert Embedder(make_encoder(), CPU, "projection", True)(pixels(2)).shape == (2, 16)


def test_bits_that_flip_and_newer_formats_are_refused(tmp_path, make_encoder):
    path = tmp_path / "e.safetensors"
    save_encoder(path, make_encoder())
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-1000] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(FormatError, match="damaged"):
        load_encoder(path)
    path.write_bytes(data[:-50])
    with pytest.raises(FormatError, match="not an encoder file"):
        load_encoder(path)
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, {"mocoembed": json.dumps({"format": 99})})
    with pytest.raises(FormatError, match="format 99"):
        load_encoder(path)
    safetensors.torch.save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(FormatError, match="not an encoder of mocoembed"):
        load_encoder(path)
