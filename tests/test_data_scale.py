"""Nothing in the loader grows with the number of batches, and next to nothing with the number of images."""

import tracemalloc

import numpy as np
import pytest
from image_sets import diffae_lmdb, encoded, picture

from bench.index import hashed, make, numbered, startup
from engine.data.order import order
from engine.data.pipeline import Loader
from engine.data.sources import open_source

LSUN = 3_033_042
KEYS = 60_000  # `python -m bench.index` does the same at LSUN's size


def test_the_order_of_three_million_images_takes_no_memory():
    order(0, 0, np.arange(128), LSUN)
    tracemalloc.start()
    order(0, 7, np.arange(LSUN - 128, LSUN), LSUN)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128 * 1024


def test_opening_numbered_keys_reads_no_more_of_them_the_more_there_are(tmp_path):
    path = make(tmp_path / "set", numbered(KEYS), KEYS)
    found = startup(path)
    assert found["count"] == KEYS
    assert found["mib"] < 20


def test_listed_keys_take_their_own_length_and_little_more(tmp_path):
    source = open_source("auto", make(tmp_path / "set", hashed(KEYS)), 128, 0, 0)
    assert source.name == "lsun"
    assert source.scheme.keys.nbytes == 40 * KEYS
    assert source.scheme.key(0) == next(hashed(KEYS))


def anonymous_kib() -> int:
    """Memory of this process that is no file's: reading maps databases, which is cache."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def test_memory_is_flat_over_five_hundred_batches(tmp_path):
    pytest.importorskip("nvidia.dali")
    images = [encoded(picture(i, 20, 24)) for i in range(50)]
    source = open_source("auto", diffae_lmdb(tmp_path / "set", images), 16, 0, 0)
    loader = Loader(source, 16, 0, 4, threads=1, augment="crop")
    held = []
    for batch in range(500):
        next(loader)
        if batch in (120, 499):
            held.append(anonymous_kib())
    loader.close()
    assert held[1] - held[0] < 6 * 1024
