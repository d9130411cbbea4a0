"""What is said of a loading process that has died: the signal, the image, and what to type to need less memory."""

import os
import signal

import pytest

from mocoembed.data.lost import Lost, own_memory


@pytest.mark.parametrize(("number", "image", "said"), [
    (signal.SIGKILL, None, "(SIGKILL) and is restarted. Usually there is too little memory: give fewer --workers: 3 "
                           "instead of 4."),
    (signal.SIGBUS, "'a.jpg'", "(SIGBUS) at 'a.jpg' and is restarted. Usually there is too little memory: give fewer "
                               "--workers: 3 instead of 4."),
    (signal.SIGSEGV, "'a.jpg'", "(SIGSEGV) at 'a.jpg' and is restarted. If it dies there again, the image is skipped."),
    (signal.SIGSEGV, None, "(SIGSEGV) and is restarted."),
    (4096, None, "(signal 4096) and is restarted.")])
def test_a_death_is_told_with_its_signal_its_image_and_what_to_change(number, image, said):
    assert Lost(number, image, 4, 0, None).told() == f"A loading process died {said}"


@pytest.mark.parametrize(("workers", "held", "available", "advice"), [
    (4, 400, 1000, "1000.0 MiB for loading processes, of which each takes 400.0 MiB; give fewer --workers: 2 instead "
                   "of 4."),
    (4, 400, 100, "100.0 MiB for loading processes, of which each takes 400.0 MiB; give fewer --workers: 1 instead of "
                  "4."),
    (4, 0, None, "give fewer --workers: 3 instead of 4."),
    (4, 0, 1000, "1000.0 MiB for loading processes; give fewer --workers: 3 instead of 4."),
    (4, 400, -5, "0.0 MiB for loading processes, of which each takes 400.0 MiB; give fewer --workers: 1 instead of 4."),
    (1, 400, 9000, "8.79 GiB for loading processes, of which each takes 400.0 MiB; give --workers 0 or a smaller "
                   "--batch-size.")])
def test_the_advice_has_a_number_that_fits(workers, held, available, advice):
    lost = Lost(signal.SIGKILL, None, workers, held << 20, None if available is None else available * 2**20)
    assert lost.advice() == advice


def test_the_memory_of_a_process_that_is_gone_is_nothing():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert own_memory(child) == 0
    assert own_memory(os.getpid()) > 2**20
