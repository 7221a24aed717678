"""One study from start to report, resumable at every part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pathnet import data as images
from pathnet import samplers
from pathnet.data import ImageData
from pathnet.files import sha256_of_file, writable_folder
from pathnet.models import PathResNet
from pathnet.models.weights import load_weights
from pathnet.study.environment import environment, pathnet_version
from pathnet.study.experiments import Experiments, run_parts, summarise_gradients
from pathnet.study.figures import draw_figures
from pathnet.study.report import write_report
from pathnet.study.results import Results
from pathnet.study.settings import Settings, blocks_to_keep, effective_epochs, make_net
from pathnet.training import Recipe, fit

LESIONS = ("whole", "delete_each", "delete_random", "reorder")
GRADIENTS = ("gradients", "spectrum")


def run_study(settings: Settings, out: Path) -> Path:
    """Run what is missing of the study in the folder `out` and return the path of its `report.html`.

    Every finished part is on disk before the next begins, so an interrupted study resumes with the same call.
    ValueError, in a sentence, where data, weights or the folder do not serve.
    """
    writable_folder(out, "out")
    data = images.load(settings.data, settings.root, settings.image_size)
    net = make_net(settings.net, settings.shortcut, data, settings.seed)
    if not any(len(group) > 1 for group in net.swappable()):
        raise ValueError(f"net must have blocks of equal shape to swap, but {settings.net} has none; take a deeper one")
    results = Results.open(out, _header(settings, data, net))
    results.document["environment"] = environment()
    if settings.weights is None:
        _study_trained_here(settings, data, results, out)
    else:
        load_weights(net, settings.weights)
        _measure("trained", net, settings, data, results, with_gradients=True)
    results.document["complete"] = True
    results.save()
    draw_figures(results.document, out / "plots")
    return write_report(results.document, out)


def _study_trained_here(settings: Settings, data: ImageData, results: Results, out: Path) -> None:
    keep = results.document["net"]["keep"]
    nets = {}
    for title in ("full", "effective"):
        nets[title] = make_net(settings.net, settings.shortcut, data, settings.seed)
        if title == "effective":
            nets[title].paths = samplers.KeepExactly(keep, seed=settings.seed)
        _train(title, nets[title], settings, data, results, out)
    for title, net in nets.items():
        _measure(title, net, settings, data, results, with_gradients=title == "full")


def _train(title: str, net: PathResNet, settings: Settings, data: ImageData, results: Results, out: Path) -> None:
    checkpoints = writable_folder(out / "checkpoints", "out")
    count = effective_epochs(settings, net.num_blocks) if title == "effective" else settings.epochs
    recipe = Recipe(count, settings.batch_size, settings.peak_lr, seed=settings.seed)
    with _timed(results, f"train the {title} net"):
        epochs = fit(net, data, recipe, checkpoint=checkpoints / f"{title}.pt", title=f"train the {title} net")
    results.document["training"][title] = [asdict(epoch) for epoch in epochs]
    results.save()


def _measure(
    title: str,
    net: PathResNet,
    settings: Settings,
    data: ImageData,
    results: Results,
    *,
    with_gradients: bool,
) -> None:
    experiments = Experiments(net, data, settings)
    for name in LESIONS + GRADIENTS if with_gradients else LESIONS:
        with _timed(results, f"{name.replace('_', ' ')}, {title} net"):
            run_parts(name, title, results, experiments)
    if with_gradients:
        summarise_gradients(results, title)


@contextmanager
def _timed(results: Results, part: str) -> Iterator[None]:
    """Add the wall time spent inside to that of `part`, whether it finishes or is interrupted."""
    seconds, started = results.document.setdefault("seconds", {}), time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = round(seconds.get(part, 0.0) + time.perf_counter() - started, 2)


def _header(settings: Settings, data: ImageData, net: PathResNet) -> dict[str, Any]:
    blocks = net.num_blocks
    _, _, height, width = data.test[0].shape
    return {
        "settings": asdict(settings),
        "identity": {
            "pathnet": pathnet_version(),
            "data": data.fingerprint,
            "weights": None if settings.weights is None else sha256_of_weights(Path(settings.weights)),
        },
        "net": {
            "blocks": blocks,
            "keep": blocks_to_keep(settings, blocks),
            "stage_starts": [i for i, block in enumerate(net.blocks) if not block.has_identity_shortcut],
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
        },
        "data": {
            "description": data.description,
            "train": len(data.train[1]),
            "test": len(data.test[1]),
            "evaluated": min(settings.images, len(data.test[1])),
            "classes": data.classes,
            "channels": data.channels,
            "height": height,
            "width": width,
        },
    }


def sha256_of_weights(path: Path) -> str:
    """SHA-256 of a weights file; ValueError where it cannot be read."""
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise ValueError(f"weights must be a readable file, but {path} is not ({error.strerror})") from error
