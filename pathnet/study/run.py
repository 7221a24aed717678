"""One study from start to report, resumable at every part and shared by the processes that torchrun started."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pathnet import data as images
from pathnet import samplers
from pathnet.data import ImageData
from pathnet.files import writable_folder
from pathnet.models import PathResNet
from pathnet.study.environment import environment
from pathnet.study.experiments import Experiments, summarise_gradients
from pathnet.study.figures import draw_figures
from pathnet.study.parts import Part, run_parts
from pathnet.study.ranks import Ranks, joined
from pathnet.study.report import FILE_NAME, write_report
from pathnet.study.results import Results, opened
from pathnet.study.settings import Settings, blocks_to_keep, effective_epochs, make_net
from pathnet.study.subject import about_data, about_net, check_fit, identity, net_of_weights
from pathnet.training import Recipe, fit

LESIONS = ("whole", "delete_each", "delete_random", "reorder")
GRADIENTS = ("gradients", "spectrum")


def run_study(settings: Settings, out: Path) -> Path:
    """Run what is missing of the study in the folder `out` and return the path of its `report.html`.

    Every finished part is on disk before the next begins, so an interrupted study resumes with the same call. Started
    by torchrun, all processes share the trainings and the parts.
    ValueError, in a sentence, where data, weights or the folder do not serve.
    """
    with joined() as ranks:
        data, net = ranks.in_turn(lambda: _prepared(settings))
        with opened(out, _header(settings, data, net), ranks) as results:
            results.document["environment"] = environment()
            nets = {"trained": net} if settings.weights else _trained_here(settings, data, results, ranks)
            run_parts(_parts(nets, data, settings), results, ranks)
            summarise_gradients(results, next(iter(nets)))
        if ranks.rank == 0:
            draw_figures(results.document, out / "plots")
            write_report(results.document, out)
    return out / FILE_NAME


def _prepared(settings: Settings) -> tuple[ImageData, PathResNet]:
    """The images and the net, with its weights where it is not to be trained."""
    data = images.load(settings.data, settings.root, settings.image_size)
    if settings.weights is None:
        net = make_net(settings.net, settings.shortcut, data, settings.seed)
    else:
        name, net = net_of_weights(settings.weights, settings.shortcut)
        check_fit(net, data)
        if name != settings.net:
            raise ValueError(f"net must be {name}, whose weights those in {settings.weights} are, not {settings.net}")
    if not any(len(group) > 1 for group in net.swappable()):
        raise ValueError(f"net must have blocks of equal shape to swap, but {settings.net} has none; take a deeper one")
    return data, net


def _trained_here(settings: Settings, data: ImageData, results: Results, ranks: Ranks) -> dict[str, PathResNet]:
    """Both nets, trained; each training runs on one rank alone and its weights go to all."""
    nets = {}
    for title in ("full", "effective"):
        nets[title] = make_net(settings.net, settings.shortcut, data, settings.seed)
        # As training does, on every rank: equal bits need equal layouts.
        nets[title].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep = results.document["net"]["keep"]
    nets["effective"].paths = samplers.KeepExactly(keep, seed=settings.seed)
    weights = {}
    for title in ranks.taken(list(nets)):
        _train(title, nets[title], settings, data, results)
        weights[title] = nets[title].state_dict()
    for trained in ranks.gathered(weights):
        for title, state in trained.items():
            nets[title].load_state_dict(state)
    results.share()
    return nets


def _train(title: str, net: PathResNet, settings: Settings, data: ImageData, results: Results) -> None:
    checkpoints = writable_folder(results.folder / "checkpoints", "out")
    count = effective_epochs(settings, net.num_blocks) if title == "effective" else settings.epochs
    recipe = Recipe(count, settings.batch_size, settings.peak_lr, seed=settings.seed)
    started = time.perf_counter()
    epochs = fit(net, data, recipe, checkpoint=checkpoints / f"{title}.pt", title=f"train the {title} net")
    if title not in results.document["training"]:
        results.add_training(title, [asdict(epoch) for epoch in epochs], time.perf_counter() - started)


def _parts(nets: dict[str, PathResNet], data: ImageData, settings: Settings) -> Iterator[tuple[str, str, Part]]:
    """All that is measured; the gradients on the first net alone."""
    for title, net in nets.items():
        experiments = Experiments(net, data, settings)
        for name in LESIONS if title == "effective" else LESIONS + GRADIENTS:
            yield from ((title, name, part) for part in getattr(experiments, name)())


def _header(settings: Settings, data: ImageData, net: PathResNet) -> dict[str, Any]:
    return {
        "command": "study",
        "settings": asdict(settings),
        "identity": identity(data, settings.weights),
        "net": about_net(net) | {"keep": blocks_to_keep(settings, net.num_blocks)},
        "data": about_data(data, min(settings.images, len(data.test[1]))),
    }
