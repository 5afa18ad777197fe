"""What tests share: no hub, and a model small enough to load in milliseconds (see `tiny`)."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports huggingface_hub, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run side by side: threads that wait for each other's cores cost several times the work.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

FIRST = ("test_smoke.py", "test_matrix.py", "test_rounds.py", "test_encoder_judge.py", "test_resume.py")
"""The longest files begin first, so that no process is left alone with one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(autouse=True)
def transformers_ties_weights() -> Iterator[None]:
    """What loads two models at a time fails itself, and not the tests after it (huggingface's no_tie_weights)."""
    yield
    if (loaded := sys.modules.get("transformers.modeling_utils")) is not None:
        assert loaded.PreTrainedModel.tie_weights.__name__ == "tie_weights", "two threads loaded a model each"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with its tokenizer, as `from_pretrained` wants it. Only to be read."""
    import torch
    from tiny import make_model, make_tokenizer

    # Sharing out work this small costs ten times the work where the cores are busy.
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    make_model(folder)
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Any:
    """The ModelConfig of the tiny model."""
    from pipeline.models import ModelConfig

    return ModelConfig(base=str(tiny_folder), quantization="none", dtype="fp32")


@pytest.fixture(scope="session")
def tiny_model(tiny: Any) -> Any:
    """The tiny model, loaded. Put no adapter on it."""
    from pipeline.models import load_model

    return load_model(tiny)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny: Any) -> Any:
    """Its tokenizer."""
    from pipeline.models import load_tokenizer

    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def tiny_adapters(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters for it, `one` and `two`, that each change what it says."""
    from tiny import make_adapter

    top = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two"), start=1):
        make_adapter(tiny_folder, top / name, seed)
    return {name: top / name for name in ("one", "two")}


@pytest.fixture(scope="session")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each architecture's tiny model, with its tokenizer. Only to be read."""
    import torch
    from tiny import DECODERS, ENCODER_DECODERS, make_architecture

    torch.set_num_threads(1)
    top = tmp_path_factory.mktemp("architectures")
    for kind in (*DECODERS, *ENCODER_DECODERS):
        make_architecture(top / kind, kind)
    return {kind: top / kind for kind in (*DECODERS, *ENCODER_DECODERS)}


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[str]:
    """The address of llama.cpp's own server, with the built-in model."""
    pytest.importorskip("xllamacpp")
    command = [sys.executable, str(Path(__file__).parent / "servers" / "llama_cpp.py")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip() + "/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright; a test that asks for it is skipped where one of them is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    # Not for the whole session: its event loop would be in the way of tests that have their own.
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()
