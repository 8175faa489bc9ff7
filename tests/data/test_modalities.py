"""The registry of modalities: names, readers, and what a reader is asked."""

import io
import pickle

import pytest
import torch

np = pytest.importorskip("numpy")

from mora.data import BrokenInputError, Modality, register  # noqa: E402
from mora.data.modalities import BUILT_IN, in_order, known, modality, unregister  # noqa: E402
from tests.data.vectors import Vectors  # noqa: E402


@pytest.fixture
def vectors():
    yield register(Vectors())
    unregister("vector")


def npy(values) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, dtype=np.float32))
    return buffer.getvalue()


def test_image_and_text_are_built_in():
    assert known()[:2] == ("image", "text") and known()[:2] == tuple(one.name for one in BUILT_IN)[:2]
    assert modality("text").written and not modality("image").written
    assert modality("text").decode("Crème".encode(), "row 3") == "Crème"
    with pytest.raises(BrokenInputError, match="^row 3: the text cannot be read: .*expected UTF-8"):
        modality("text").decode(b"\xff", "row 3")


def test_images_are_read_from_files_bytes_and_memory(tmp_path):
    image = pytest.importorskip("PIL.Image").new("L", (8, 8), 100)
    image.save(tmp_path / "a.png")
    images = modality("image")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), image):
        found = images.read(given)
        assert found.mode == "RGB" and found.getpixel((0, 0)) == (100, 100, 100)
    assert images.remark(found) == "of nearly one colour"
    assert images.remark(images.probes()[0]) == ""
    with pytest.raises(BrokenInputError, match="^image: the image cannot be read"):
        images.read(b"no image")


def test_a_modality_of_ones_own(vectors, tmp_path):
    assert modality("vector") is vectors and in_order(["vector", "text"]) == ("text", "vector")
    assert vectors.read(npy([1, 2, 3, 4])).tolist() == [1, 2, 3, 4]
    (tmp_path / "v.npy").write_bytes(npy([0, 0, 0, 0]))
    found = vectors.read(tmp_path / "v.npy")
    assert vectors.remark(found) == "all zero" and vectors.read(found) is found
    with pytest.raises(BrokenInputError, match=r"^a.npy: the vector cannot be read: it has 2 numbers, expected 4"):
        vectors.decode(npy([1, 2]), "a.npy")
    assert torch.equal(pickle.loads(pickle.dumps(vectors)).read(npy([1, 2, 3, 4])), torch.tensor([1.0, 2, 3, 4]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image", "modality: got 'image', which is registered already"),
        ("label", "modality: got the name 'label', expected a plain word such as 'audio'"),
        ("my audio", "modality: got the name 'my audio', expected a plain word"),
        ("any", "modality: got the name 'any', expected a plain word"),
    ],
)
def test_names_that_are_taken_or_no_words(name, message):
    class Named(Vectors):
        pass

    Named.name = name
    with pytest.raises(ValueError, match=message):
        register(Named())


def test_what_is_no_modality_or_not_known():
    with pytest.raises(TypeError, match=r"modality: got dict, expected a mora.data.Modality"):
        register({})
    with pytest.raises(ValueError, match="modality: got 'smell', expected one of 'image', 'text'"):
        modality("smell")
    assert issubclass(Vectors, Modality)
