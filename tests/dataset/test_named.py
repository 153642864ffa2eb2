"""Data sets that are folders of a known layout, and CIFAR from the files of its authors."""

import hashlib
import pickle
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

import dataset
from dataset import artbench, celeba, cifar10, cifar100, tinyimagenet
from tests.dataset.parts import MAKERS, RunsCode, all_images, fill, image_bytes
from tests.parts import user_error

NAMED = {
    "tinyimagenet": (tinyimagenet, "tiny-224", "tiny-224.zip", 200),
    "celeba": (celeba, "celeba", "celeba.tar", 307),
    "artbench": (artbench, "artbench", "artbench.tar", 10),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_folders(tmp_path, monkeypatch, name):
    module, folder, archive, class_count = NAMED[name]
    user_error(lambda: dataset.load_dataset(name, tmp_path), name, archive, tmp_path / folder, "download")
    assert class_count == module.CLASS_COUNT
    test = "val" if name == "tinyimagenet" else "test"
    MAKERS[archive[-3:]](
        tmp_path / archive,
        {
            f"{folder}/{part}/{label}/{i}.png": image_bytes(i)
            for part in ("train", test)
            for label in "ab"
            for i in range(2)
        },
    )
    user_error(lambda: dataset.load_dataset(name, tmp_path), name, f"2 classes instead of {class_count}")
    monkeypatch.setattr(module, "CLASS_COUNT", 2)
    data = dataset.load_dataset(name, tmp_path, 16)
    assert data.images.image_shape == (3, 16, 16) and data.recipe == dataset.recipe(name) and data.name == name
    assert data.is_test.tolist() == [False] * 4 + [True] * 4 and data.labels.tolist() == [0, 0, 1, 1] * 2
    assert (tmp_path / folder / "train/a/0.png").is_file()
    (tmp_path / archive).unlink()
    assert dataset.load_dataset(name, tmp_path).images.image_shape == (3, 224, 224)


def test_tinyimagenets_own_test_folder_has_no_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(tinyimagenet, "CLASS_COUNT", 2)
    fill(tmp_path / "tiny-224", {"train/a": 1, "train/b": 1, "val/a": 1, "test/images": 5})
    assert dataset.load_dataset("tinyimagenet", tmp_path, 8).is_test.tolist() == [False, False, True]


def test_celeba_as_plain_class_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(celeba, "CLASS_COUNT", 2)
    fill(tmp_path / "celeba", {"7": 1, "12": 1})
    data = dataset.load_dataset("celeba", tmp_path, 8)
    assert not data.is_test.any() and data.class_names == ("12", "7")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("celeba", "CelebA_HQ_facial_identity_dataset"), ("artbench", "artbench-10-imagefolder-split")],
)
def test_folders_of_the_published_scripts(tmp_path, monkeypatch, name, folder):
    """Whoever unpacked the archives as the artifact's README says has them under these names."""
    monkeypatch.setattr(NAMED[name][0], "CLASS_COUNT", 2)
    fill(tmp_path / folder, {"train/a": 1, "train/b": 1, "test/a": 1})
    assert dataset.load_dataset(name, tmp_path, 8).is_test.tolist() == [False, False, True]
    if name == "celeba":
        assert len(dataset.load_outlier_bank(name, 8, 8, tmp_path)) == 3


# --- CIFAR ---


def no_network(*_, **__):
    raise urllib.error.URLError("no network in tests")


@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    """Three classes of CIFAR in its on-disk format, with checksums to match; no network."""
    from torchvision import datasets

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    expected = {}

    def pack(folder, name, content):
        (tmp_path / folder).mkdir(exist_ok=True)
        packed = pickle.dumps(content)
        (tmp_path / folder / name).write_bytes(packed)
        return [name, hashlib.md5(packed).hexdigest()]

    for cls, label_key, names in (
        (datasets.CIFAR10, "labels", [f"data_batch_{i}" for i in range(1, 6)]),
        (datasets.CIFAR100, "fine_labels", ["train"]),
    ):
        batches = []
        for seed, name in enumerate([*names, cls.test_list[0][0]]):
            pixels = np.random.default_rng(seed).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
            batches.append((name, pixels, [0, 1, 2, 2, 1, 0]))
        rows = [
            pack(cls.base_folder, name, {"data": pixels.reshape(6, -1), label_key: labels})
            for name, pixels, labels in batches
        ]
        meta = pack(cls.base_folder, cls.meta["filename"], {cls.meta["key"]: ["ant", "bee", "cat"]})
        monkeypatch.setattr(cls, "train_list", rows[:-1])
        monkeypatch.setattr(cls, "test_list", rows[-1:])
        monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": meta[1]})
        expected[cls.__name__.lower()] = torch.from_numpy(np.concatenate([pixels for _, pixels, _ in batches]))
    monkeypatch.setattr(cifar10, "CLASS_COUNT", 3)
    monkeypatch.setattr(cifar100, "CLASS_COUNT", 3)
    return tmp_path, expected


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(cifar_files, name, monkeypatch):
    root, expected = cifar_files
    data = dataset.load_dataset(name, root)
    assert torch.equal(all_images(data), expected[name]) and data.class_names == ("ant", "bee", "cat")
    assert data.labels.tolist() == [0, 1, 2, 2, 1, 0] * (len(data.labels) // 6)
    assert data.is_test.tolist() == [False] * (len(data.labels) - 6) + [True] * 6
    assert data.recipe == dataset.recipe(name)
    monkeypatch.setattr({"cifar10": cifar10, "cifar100": cifar100}[name], "CLASS_COUNT", 10)
    user_error(lambda: dataset.load_dataset(name, root), name, "3 classes instead of 10")


def test_cifar_from_its_archive(cifar_files, tmp_path_factory, monkeypatch):
    from torchvision import datasets

    root, expected = cifar_files
    other = tmp_path_factory.mktemp("other")
    with tarfile.open(other / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    md5 = hashlib.md5((other / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    assert torch.equal(all_images(dataset.load_dataset("cifar10", other)), expected["cifar10"])


@pytest.mark.parametrize(
    ("name", "archive"), [("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz")]
)
def test_cifar_without_network(tmp_path, monkeypatch, name, archive):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    user_error(lambda: dataset.load_dataset(name, tmp_path), name, tmp_path, archive, "no network in tests")


def test_cifar_opens_no_foreign_pickle(cifar_files):
    root, _ = cifar_files
    RunsCode.marker = str(root / "hacked")
    (root / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(RunsCode()))
    user_error(lambda: dataset.load_dataset("cifar10", root), "cifar10", root)
    assert not (root / "hacked").exists()
