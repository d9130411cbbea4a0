"""The rule of `--recipe auto` as a table: what is chosen for which images and machine, and what stays when given."""

import pytest

from mocoembed.config import PretrainConfig
from mocoembed.train.auto_recipe import BUDGET, Facts, choose, estimated_seconds, wanted_epochs
from mocoembed.train.auto_recipe import _Plan as Plan

RESNETS = ("resnet18", "resnet50")


def cost(arch, width, stem, size):
    """About that of a ResNet-18 with the ImageNet stem: the square of the width and of the side."""
    return int(1.8e9 * width**2 * (size / 224) ** 2 * (4 if stem == "3x3s2" else 1))


def chosen(images, side=300, gpu=False, cores=2, processes=1, **given):
    choice = choose(Facts(images, side, gpu, cores, processes), given, cost, RESNETS)
    return PretrainConfig.of(choice.recipe, "images", **choice.settings), choice


def seconds(config, images, cores):
    plan = Plan(config.recipe, Facts(images, 300, False, cores, 1), {
        name: getattr(config, name) for name in ("arch", "width", "stem", "image_size", "symmetric", "dictionary")})
    return estimated_seconds(plan, cost, config.epochs)


@pytest.mark.parametrize(("side", "images", "recipe"), [(400, 1_281_167, "moco-v2"), (400, 100_000, "moco-v2"),
                                                  (32, 100_000, "cifar10")])
def test_many_images_on_a_gpu_get_the_published_recipe_unchanged(side, images, recipe):
    config, choice = chosen(images, side, gpu=True)
    assert config == PretrainConfig.of(recipe, "images")
    assert choice.settings == {}
    assert recipe in choice.reasons[0]


@pytest.mark.parametrize(("images", "batch", "queue"), [(64, 64, 32), (100, 64, 64), (800, 64, 512), (5_000, 128, 2048),
                                                  (50_000, 256, 4096), (1_000_000, 256, 4096)])
def test_batch_and_queue_go_with_the_number_of_images(images, batch, queue):
    config, _ = chosen(images)
    assert (config.batch_size, config.queue_size) == (batch, queue)
    assert config.queue_size <= 0.8 * images


@pytest.mark.parametrize("images", [2, 3, 5, 17, 63, 640, 5_000, 50_000, 1_300_000])
@pytest.mark.parametrize("cores", [1, 2, 64])
@pytest.mark.parametrize("side", [0, 32, 64, 3000])
def test_every_choice_is_valid_and_takes_half_an_hour_at_most(images, cores, side):
    config, choice = chosen(images, side, cores=cores)
    assert config.batch_size <= images
    assert config.batch_size % config.bn_groups == 0
    if config.epochs > 1:
        assert seconds(config, images, cores) <= BUDGET
    assert config.warmup_epochs <= max(1, config.epochs / 10)
    assert any("published weights" in line for line in choice.reasons) == (images < 20_000)


def test_the_time_of_few_images_is_that_of_their_epochs():
    """Measured with 2 images: 3 minutes for 400 epochs of one step, most of it saving the checkpoint."""
    config, _ = chosen(2)
    assert config.epochs == 400
    assert 150 < seconds(config, 2, 2) < 250


def test_more_cores_get_a_larger_network_and_fewer_cores_fewer_epochs():
    small, large = chosen(50_000, cores=1)[0], chosen(50_000, cores=64)[0]
    assert cost(small.arch, small.width, small.stem, small.image_size) \
        < cost(large.arch, large.width, large.stem, large.image_size)
    assert chosen(2_000_000, cores=1)[0].epochs < wanted_epochs(2_000_000)
    assert chosen(2_000_000, cores=64)[0].epochs == wanted_epochs(2_000_000)


def test_small_images_get_the_stem_and_the_views_of_cifar():
    config, _ = chosen(50_000, side=32)
    assert (config.recipe, config.stem, config.image_size) == ("cifar10", "3x3s2", 32)
    assert config.batch_size // config.bn_groups == 64


@pytest.mark.parametrize(("side", "gpu", "given", "dictionary"), [
    (32, False, {}, "end-to-end"), (48, False, {"temperature": 0.2}, "end-to-end"), (49, False, {}, "queue"),
    (32, True, {}, "queue"), (32, False, {"init": "moco-v2-800ep"}, "queue"), (32, False, {"momentum": 0.9}, "queue"),
    (32, False, {"queue_size": 64}, "queue"), (32, False, {"groups_at_once": 1}, "queue"),
    (32, False, {"dictionary": "queue"}, "queue"), (32, False, {"dictionary": "memory-bank"}, "memory-bank")])
def test_small_images_on_a_cpu_get_negatives_from_the_batch_unless_a_queue_is_wanted(side, gpu, given, dictionary):
    config, choice = chosen(800, side=side, gpu=gpu, **given)
    assert config.dictionary == dictionary
    assert any("end-to-end" in line for line in choice.reasons) == (dictionary == "end-to-end")
    if dictionary != "end-to-end":
        assert config.queue_size == given.get("queue_size", 512)


@pytest.mark.parametrize(("side", "images", "expected"), [
    (500, 800, ("resnet18", 224)), (500, 30_000, ("resnet50", 224)), (100, 800, ("resnet18", 96)),
    (64, 800, ("resnet18", 64)), (32, 800, ("resnet18", 32))])
def test_on_a_gpu_the_network_goes_with_the_images(side, images, expected):
    config, _ = chosen(images, side, gpu=True)
    assert (config.arch, config.image_size, config.width) == (*expected, 1)


# (given, what goes with it)
GIVEN = [
    ({"batch_size": 32}, {"lr": 0.03, "bn_groups": 1}),
    ({"batch_size": 96, "lr": 0.5}, {"lr": 0.5, "bn_groups": 1}),
    ({"batch_size": 256}, {"lr": 0.24, "bn_groups": 4}),
    ({"bn_groups": 3}, {"batch_size": 63, "bn_groups": 3}),
    ({"epochs": 7}, {"warmup_epochs": 0.7}),
    ({"queue_size": 99, "momentum": 0.5, "temperature": 0.3}, {"batch_size": 64}),
    ({"arch": "convnext_tiny"}, {"width": 1.0, "stem": "7x7s2-pool", "image_size": 224}),
    ({"arch": "resnet50"}, {"stem": "7x7s2-pool"}),
    ({"image_size": 48}, {"arch": "resnet18"}),
    ({"init": "moco-v2-800ep"}, {"arch": "init", "epochs": 20, "image_size": 128, "mean": (), "std": ()}),
    ({"init": "moco-v2-800ep", "arch": "resnet50", "width": 1.0}, {"arch": "resnet50", "width": 1.0, "mean": ()}),
    ({"dictionary": "memory-bank", "batch_size": 500, "bn_groups": 1}, {"queue_size": 300}),
]


@pytest.mark.parametrize(("given", "with_it"), GIVEN)
def test_what_is_given_stays_and_the_others_go_with_it(given, with_it):
    config, _ = chosen(800, **given)
    for name, value in {**with_it, **given}.items():
        assert getattr(config, name) == value, name


def test_epochs_that_are_given_do_not_change_the_network():
    (few, choice), many = chosen(800, epochs=1), chosen(800, epochs=10_000)[0]
    assert (few.arch, few.width, few.image_size) == (many.arch, many.width, many.image_size)
    assert "the largest whose 200 epochs would fit into 30 min here" in choice.reasons[0]
    assert "the largest whose 200 epochs fit into 30 min here" in chosen(800)[1].reasons[0]


@pytest.mark.parametrize(("images", "processes"), [(800, 2), (800, 3), (50, 4), (100_000, 8)])
def test_batch_and_groups_can_be_shared_out_among_processes(images, processes):
    config, _ = chosen(images, processes=processes)
    assert config.batch_size % processes == 0
    assert config.bn_groups % processes == 0
    assert config.batch_size >= 2 * config.bn_groups


def test_twice_the_images_take_less_than_twice_the_time():
    assert wanted_epochs(800) == 200
    for images in (800, 5_000, 50_000):
        assert 1.3 < 2 * wanted_epochs(2 * images) / wanted_epochs(images) < 1.5
    assert wanted_epochs(1) == wanted_epochs(10)
    assert wanted_epochs(10**9) == 1


def bytes_of(recipe, settings):
    """About that of a ResNet: with the images of the smallest part, the area of a view, and the width."""
    config = PretrainConfig.of(recipe, "images", **settings)
    return int(config.batch_size // config.bn_groups * config.image_size**2 * 1000 * config.width)


def within(memory, images=800, side=500, gpu=True, processes=1, **given):
    choice = choose(Facts(images, side, gpu, 2, processes, memory), given, cost, RESNETS, bytes_of)
    return PretrainConfig.of(choice.recipe, "images", **choice.settings), choice


MEMORIES = [  # memory in MB -> batch, groups, side, width
    (4_000, (64, 1, 224, 1.0)), (2_000, (64, 2, 224, 1.0)), (1_000, (64, 2, 160, 1.0)), (250, (64, 2, 64, 1.0)),
    (100, (64, 2, 64, 0.5)), (30, (32, 2, 64, 0.25))]


@pytest.mark.parametrize(("memory", "expected"), MEMORIES)
def test_less_memory_gets_finer_groups_then_smaller_views_then_less_width_then_a_smaller_batch(memory, expected):
    config, choice = within(memory * 10**6)
    assert (config.batch_size, config.bn_groups, config.image_size, config.width) == expected
    assert bytes_of(choice.recipe, choice.settings) <= 0.85 * memory * 10**6
    assert config.lr == pytest.approx(0.06 * config.batch_size / 64)
    assert any("available" in line for line in choice.reasons) == (memory < 4_000)


def test_memory_that_is_not_known_or_plenty_changes_nothing():
    assert within(None)[1] == within(10**12)[1] == choose(Facts(800, 500, True, 2, 1), {}, cost, RESNETS)


def test_what_was_given_stays_even_where_the_memory_is_too_small():
    config, choice = within(10**6, batch_size=64, bn_groups=1, image_size=224, width=1.0, arch="resnet18")
    assert (config.batch_size, config.bn_groups, config.image_size, config.width) == (64, 1, 224, 1.0)
    assert any("nothing smaller goes with what was given" in line for line in choice.reasons)


@pytest.mark.parametrize("images", [800, 1_281_167])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("memory", [10**5, 10**8, 10**9])
@pytest.mark.parametrize("given", [{}, {"batchnorm": "sync"}, {"dictionary": "end-to-end"}, {"bn_groups": 6}])
def test_every_choice_for_a_memory_is_valid(images, processes, memory, given):
    config, _ = within(memory, images, processes=processes, **given)
    assert config.batch_size % config.bn_groups == config.batch_size % processes == 0
    assert config.batchnorm == "sync" or config.bn_groups % processes == 0
    assert config.batch_size >= 2 * config.bn_groups


def test_a_published_recipe_that_does_not_fit_is_said_to_be_changed():
    config, choice = within(10**9, images=1_281_167)
    assert config.image_size == 160  # 32 images at 224 pixels would take 1.6 GB
    assert choice.settings == {"image_size": 160}
    assert "views of 160 pixels" in choice.reasons[1]
