"""The loader: what a position holds depends on seed and position alone, and a bad image is named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data import fetching, stream
from engine.data.fetching import fetch
from engine.data.pipeline import Loader
from engine.data.rooms import Rooms
from engine.data.source import Source
from engine.data.sources import FolderSource, RoomsSource
from engine.errors import DataError, UsageError

pytest.importorskip("nvidia.dali")
torch.set_num_threads(1)


def picture(index: int, height: int, width: int) -> Image.Image:
    """A smooth picture, as a photograph is."""
    noise = np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


class Pictures(Source):
    """A source of 16-px pictures in memory; only with ``px`` it says that they are."""

    name, encoded = "pictures", False

    def __init__(self, count: int = 20, px: int | None = None):
        self.px = px
        self.pictures = [np.asarray(picture(i, 16, 16)) for i in range(count)]

    def __len__(self):
        return len(self.pictures)

    def read(self, indices):
        return [self.pictures[i] for i in indices]

    def item(self, index):
        return f"picture {index}"

    def describe(self):
        return "pictures"

    def fingerprint(self):
        return "0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven files of all formats and many shapes."""
    root = tmp_path_factory.mktemp("images")
    shapes = [(20, 20), (20, 31), (40, 23), (33, 33), (17, 50)]
    for i in range(11):
        picture(i, *shapes[i % 5]).save(root / f"{i}{('.jpg', '.png', '.webp', '.bmp')[i % 4]}", quality=95)
    return root


def take(source, steps: int = 3, **options) -> dict[int, dict[str, bytes]]:
    """What each position of the first ``steps`` steps holds, from one loader a rank."""
    world, accumulation = options.get("world", 1), options.get("accumulation", 1)
    held = {}
    for rank in range(world):
        loader = Loader(source, 16, seed=3, batch_size=8, **(options | {"rank": rank}))
        for _ in range(steps * accumulation):
            batch = next(loader)
            for row, position in enumerate(batch["position"].tolist()):
                assert position not in held
                held[position] = {name: value[row].numpy().tobytes() for name, value in batch.items()}
        loader.close()
    return held


@pytest.fixture(scope="module", params=["pictures", "folder"])
def source(request, folder):
    return Pictures() if request.param == "pictures" else FolderSource(folder)


@pytest.fixture(scope="module")
def whole(source):
    """The reference: one rank, one thread, no accumulation."""
    return take(source, threads=1)


@pytest.mark.parametrize(
    "split",
    [{"world": 2}, {"accumulation": 4}, {"world": 2, "accumulation": 2}, {"threads": 3}],
    ids=["two ranks", "accumulation", "both", "threads"],
)
def test_any_split_of_the_work_gives_the_same_images_and_views(source, whole, split):
    assert take(source, **split) == whole


def test_a_run_continues_from_a_step_as_if_never_stopped(source, whole):
    resumed = take(source, steps=1, start_step=2)
    assert resumed == {position: whole[position] for position in range(16, 24)}


def test_micro_batches_come_step_by_step_and_are_dealt_to_the_ranks():
    first = Loader(Pictures(), 16, 0, batch_size=8, rank=1, world=2, accumulation=2, views=False)
    assert [next(first)["position"].tolist() for _ in range(3)] == [[2, 3], [6, 7], [10, 11]]


def test_each_epoch_shows_every_image_once_in_a_new_order():
    loader = Loader(Pictures(20), 16, 0, batch_size=5, views=False)
    epochs = [np.concatenate([next(loader)["index"].numpy() for _ in range(4)]) for _ in range(2)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(20))
    assert not np.array_equal(*epochs)


def test_batches_are_uint8_images_with_int64_names():
    batch = next(Loader(Pictures(), 16, 0, batch_size=4))
    assert set(batch) == {"x_0", "view_1", "view_2", "position", "index"}
    for name in ("x_0", "view_1", "view_2"):
        assert batch[name].shape == (4, 16, 16, 3)
        assert batch[name].dtype == torch.uint8
    for name in ("position", "index"):
        assert batch[name].shape == (4,)
        assert batch[name].dtype == torch.int64


def test_the_views_differ_from_each_other_and_from_x_0():
    batch = next(Loader(Pictures(), 16, 0, batch_size=8))
    for one, other in (("x_0", "view_1"), ("x_0", "view_2"), ("view_1", "view_2")):
        assert (batch[one] != batch[other]).flatten(1).any(1).all()


def test_without_views_only_x_0_is_made():
    assert set(next(Loader(Pictures(), 16, 0, batch_size=4, views=False))) == {"x_0", "position", "index"}


def test_asking_for_views_does_not_change_x_0(source):
    with_views, without = (next(Loader(source, 16, 0, batch_size=8, views=views)) for views in (True, False))
    assert torch.equal(with_views["x_0"], without["x_0"])


def test_a_batch_outlives_the_batches_after_it():
    loader = Loader(Pictures(), 16, 0, batch_size=4)
    batch = next(loader)
    before = batch["view_1"].clone()
    for _ in range(5):
        next(loader)
    assert torch.equal(batch["view_1"], before)


def test_x_0_is_mirrored_for_some_samples_and_never_when_switched_off():
    pictures = Pictures()
    for flip in (True, False):
        batch = next(Loader(pictures, 16, 0, batch_size=16, views=False, flip=flip))
        straight = torch.from_numpy(np.stack([pictures.pictures[i] for i in batch["index"]]))
        mirrored = (batch["x_0"] == straight.flip(2)).flatten(1).all(1)
        assert ((batch["x_0"] == straight).flatten(1).all(1) | mirrored).all()
        assert bool(mirrored.any()) is flip


def test_pictures_of_the_right_size_give_the_same_batches_without_the_image_graph(monkeypatch):
    graph = Loader(Pictures(), 16, 0, batch_size=8, views=False)
    monkeypatch.setattr(stream, "_graph", lambda: pytest.fail("the image graph was built"))
    direct = Loader(Pictures(px=16), 16, 0, batch_size=8, views=False)
    for _ in range(4):
        expected, batch = next(graph), next(direct)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_pictures_handed_out_directly_are_not_the_source_s_own_memory():
    pictures = RoomsSource(Rooms(16, seed=0, count=4))
    before = pictures.read(np.arange(4)).copy()
    next(Loader(pictures, 16, 0, batch_size=4, views=False, flip=False))["x_0"].zero_()
    assert np.array_equal(pictures.read(np.arange(4)), before)


@pytest.mark.parametrize(("px", "augment"), [(16, "crop"), (32, "none")])
def test_pictures_to_be_resized_or_cut_go_through_the_image_graph(px, augment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_graph", lambda: (_ for _ in ()).throw(UsageError("asked for the graph")))
        with pytest.raises(UsageError, match="asked for the graph"):
            Loader(Pictures(px=16), px, 0, batch_size=4, augment=augment)


def test_the_recipe_none_gives_views_that_are_the_plain_image():
    batch = next(Loader(Pictures(), 16, 0, batch_size=4, augment="none", flip=False))
    assert torch.equal(batch["view_1"], batch["x_0"])
    assert torch.equal(batch["view_2"], batch["x_0"])


def test_fetch_gives_the_asked_items_unmirrored_in_their_order(monkeypatch):
    monkeypatch.setattr(fetching, "FETCH_BATCH", 4)
    pictures, indices = Pictures(), [7, 7, 0, 19, 3, 2, 1, 18, 5]
    assert np.array_equal(fetch(pictures, 16, indices), np.stack(pictures.read(indices)))
    assert fetch(pictures, 16, []).shape == (0, 16, 16, 3)


def test_the_time_spent_waiting_is_counted():
    loader = Loader(Pictures(), 16, 0, batch_size=4)
    assert loader.wait_seconds == 0
    next(loader)
    first = loader.wait_seconds
    next(loader)
    assert 0 < first < loader.wait_seconds


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="batch 8 is not 3 ranks x micro-batch 2 x 1 accumulation"):
        Loader(Pictures(), 16, 0, batch_size=8, world=3)


def encoded(image: Image.Image, suffix: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


BIG = picture(0, 120, 160)
BROKEN = {
    "a truncated JPEG": ("JPEG", lambda data: data[: len(data) * 2 // 3], "truncated"),
    "a truncated PNG": ("PNG", lambda data: data[: len(data) * 2 // 3], "truncated"),
    "text": ("JPEG", lambda _: b"not an image at all", "not an image"),
    "an empty file": ("JPEG", lambda _: b"", "it is empty"),
    "an image of another kind": ("GIF", lambda data: data, "GIF is not supported, convert it to JPEG or PNG"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_named_with_its_fault(tmp_path, name):
    kind, damage, fault = BROKEN[name]
    for i in range(7):
        picture(i, 20, 20).save(tmp_path / f"{i}.jpg")
    (tmp_path / "bad.jpg").write_bytes(damage(encoded(BIG, kind)))
    source = FolderSource(tmp_path)
    with pytest.raises(DataError, match=rf"cannot read or decode 1 of 8 images, .*bad\.jpg; .*{fault}"):
        take(source, steps=1)
    with pytest.raises(DataError, match=r"bad\.jpg"):
        fetch(source, 16, range(8))


RGBA = BIG.copy()
RGBA.putalpha(90)
EXIF_SIDEWAYS = Image.Exif()
EXIF_SIDEWAYS[0x0112] = 6
READABLE = {
    "JPEG": (BIG, {}),
    "progressive JPEG": (BIG, {"progressive": True}),
    "grey JPEG": (BIG.convert("L"), {}),
    "CMYK JPEG": (BIG.convert("CMYK"), {}),
    "sideways JPEG": (BIG, {"exif": EXIF_SIDEWAYS}),
    "PNG": (BIG, {}),
    "palette PNG": (BIG.convert("P"), {}),
    "one-bit PNG": (BIG.convert("1"), {}),
    "transparent PNG": (RGBA, {}),
    "sideways PNG": (BIG, {"exif": EXIF_SIDEWAYS}),
    "BMP": (BIG, {}),
    "palette BMP": (BIG.convert("P"), {}),
    "WebP": (BIG, {}),
    "lossless WebP": (RGBA, {"lossless": True}),
}


@pytest.mark.parametrize("name", READABLE)
def test_every_kind_of_file_is_decoded_as_by_pillow(tmp_path, name):
    image, options = READABLE[name]
    kind = name.split()[-1]
    path = tmp_path / f"1.{'jpg' if kind == 'JPEG' else kind.lower()}"
    path.write_bytes(encoded(image, kind, **options))
    with Image.open(path) as opened:
        upright = opened.transpose(Image.Transpose.ROTATE_270) if "sideways" in name else opened
        side = min(upright.size)
        left, top = ((length - side) // 2 for length in upright.size)
        expected = np.asarray(upright.convert("RGB").crop((left, top, left + side, top + side)))
    assert np.array_equal(fetch(FolderSource(tmp_path), side, [0])[0], expected)


def test_sixteen_bit_files_keep_their_range(tmp_path):
    grey = np.asarray(BIG.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "1.png")
    expected = np.repeat(grey[:, 20:140, None], 3, axis=2)
    assert np.array_equal(fetch(FolderSource(tmp_path), 120, [0])[0], expected)
