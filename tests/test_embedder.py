"""The embedder: its arithmetic, and what it does when memory runs out."""

import copy

import pytest
import torch
from test_folding import unlike_the_identity
from torch import nn
from torch.nn import functional

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.views import normalize
from mocoembed.errors import MocoembedError
from mocoembed.model.batchnorm import GroupedBatchNorm2d
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.precision import Compute
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD


def compute(precision="fp32"):
    return Compute.of("cpu", precision)


def pixels(n, side=32, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=random).permute(0, 3, 1, 2)


def small_encoder():
    """An untrained `FrozenEncoder` with the 7x7 stem and groups in its BatchNorms."""
    encoder = unlike_the_identity(Encoder(EncoderSpec("resnet18", 0.125, "7x7s2-pool", "mlp", 8), bn_groups=2))
    return FrozenEncoder(encoder.eval(), EvaluationTransform.of(32, IMAGENET_MEAN, IMAGENET_STD), {})


def unfolded(frozen, x, features, dtype):
    """What the network itself gives for pixels x."""
    encoder = copy.deepcopy(frozen.encoder).to(dtype)
    with torch.inference_mode():
        x = normalize(x.to(dtype) / 255, frozen.transform.mean, frozen.transform.std)
        return (encoder if features == "projection" else encoder.backbone)(x)


def test_the_encoder_stays_as_it_was():
    frozen = small_encoder()
    state, kinds = copy.deepcopy(frozen.encoder.state_dict()), [type(layer) for layer in frozen.encoder.modules()]
    fingerprint = frozen.fingerprint()
    for precision in ("fp64", "bf16"):
        Embedder(frozen, compute(precision), "backbone", True)(pixels(2))
    assert frozen.fingerprint() == fingerprint
    assert [type(layer) for layer in frozen.encoder.modules()] == kinds
    assert GroupedBatchNorm2d in kinds
    for name, tensor in frozen.encoder.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("features", ["backbone", "projection"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-6), ("fp32", 1e-5), ("bf16", 0.05)])
def test_vectors_of_each_precision(features, precision, tolerance):
    frozen, x = small_encoder(), pixels(5)
    vectors = Embedder(frozen, compute(precision), features, True)(x)
    expected = functional.normalize(unfolded(frozen, x, features, torch.float64), dim=1)
    assert vectors.dtype == torch.float32
    assert (vectors - expected).abs().max() < tolerance
    other = Embedder(frozen, compute(precision), features, True)(x.contiguous())  # channels first in memory
    torch.testing.assert_close(other, vectors, rtol=0, atol=tolerance)


def limited(embedder, limit, error):
    """Let the embedder's network fail with `error` above `limit` images; the list of batch sizes that it saw."""
    forward, seen = embedder._inference.forward, []

    def network(x):
        seen.append(len(x))
        if len(x) > limit:
            raise error
        return forward(x)

    embedder._inference.forward = network
    return seen


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")])
def test_when_memory_runs_out_smaller_pieces_are_computed_and_that_is_said_once(make_encoder, error):
    notes, x = [], pixels(21)
    expected = Embedder(make_encoder(), compute(), "backbone", True)(x)
    embedder = Embedder(make_encoder(), compute(), "backbone", True, note=notes.append)
    seen = limited(embedder, 6, error)
    torch.testing.assert_close(embedder(x), expected)
    assert seen == [21, 10, 5, 5, 5, 5, 1]
    del seen[:]
    torch.testing.assert_close(embedder(x[:12]), expected[:12])
    assert seen == [5, 5, 2]
    assert notes == ["out of memory; batches are computed 5 images at a time from now on"]


def test_a_single_image_that_does_not_fit_is_an_error(make_encoder):
    embedder = Embedder(make_encoder(), compute(), "backbone", True)
    seen = limited(embedder, 0, torch.OutOfMemoryError())
    with pytest.raises(MocoembedError, match="single image of 32 x 32 pixels"):
        embedder(pixels(4))
    assert seen == [4, 2, 1]


def test_other_errors_are_not_taken_for_want_of_memory(make_encoder):
    embedder = Embedder(make_encoder(), compute(), "backbone", True)
    seen = limited(embedder, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        embedder(pixels(4))
    assert seen == [4]


def test_batches_can_be_begun_before_the_last_is_fetched(make_encoder):
    embedder = Embedder(make_encoder(), compute(), "backbone", True)
    batches = [pixels(3, seed=seed) for seed in range(3)]
    waiting = [embedder.begin(batch) for batch in batches]
    for wait, batch in zip(waiting, batches):
        torch.testing.assert_close(wait(), embedder(batch))


@pytest.fixture
def compiler(monkeypatch):
    """`compiler(backend)` replaces the compiler that torch.compile hands the traced network to."""
    def use(backend):
        torch.compiler.reset()
        compile = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile(self, backend=backend, **options))

    yield use
    torch.compiler.reset()


def test_a_compiled_network_is_compiled_once_for_all_batch_sizes(make_encoder, compiler):
    shapes = []

    def backend(module, inputs):
        shapes.append([tuple(one.shape) for one in inputs if one.dtype == torch.uint8])
        return module.forward

    compiler(backend)
    embedder = Embedder(make_encoder(), compute(), "backbone", True, compile=True)
    expected = Embedder(make_encoder(), compute(), "backbone", True)(pixels(20))
    for size in (8, 3, 20, 1, 8):
        torch.testing.assert_close(embedder(pixels(20)[:size]), expected[:size])
    assert shapes == [[(8, 3, 32, 32)]]


def test_a_compiler_that_fails_ends_the_work(make_encoder, compiler):
    def backend(module, inputs):
        raise ValueError("no such instruction")

    compiler(backend)
    embedder = Embedder(make_encoder(), compute(), "backbone", True, compile=True)
    with pytest.raises(MocoembedError, match=r"cannot be compiled: .*no such instruction"):
        embedder(pixels(2))


@pytest.mark.slow
def test_the_real_compiler(make_encoder):
    x = pixels(6)
    compiled = Embedder(make_encoder(), compute(), "backbone", True, compile=True)
    torch.testing.assert_close(compiled(x), Embedder(make_encoder(), compute(), "backbone", True)(x))
