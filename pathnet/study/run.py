"""One study from start to report, resumable at every part and shared by the processes that torchrun started."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pathnet import data as images
from pathnet.data import ImageData
from pathnet.files import writable_folder
from pathnet.models import PathNet, PathResNet
from pathnet.study.environment import environment
from pathnet.study.experiments import Experiments, summarise_gradients
from pathnet.study.figures import draw_figures
from pathnet.study.nets import CONTROL
from pathnet.study.parts import Part, run_parts
from pathnet.study.ranks import Ranks, joined
from pathnet.study.report import FILE_NAME, write_report
from pathnet.study.results import Results, opened
from pathnet.study.rules import Rules
from pathnet.study.settings import Settings, blocks_to_keep, make_net
from pathnet.study.subject import about_data, about_net, check_fit, identity, net_of_weights
from pathnet.study.trainings import Training, trainings
from pathnet.training import Recipe, fit

SINGLE = ("whole", "delete_each")  # all that says something of a net without shortcuts
LESIONS = (*SINGLE, "delete_random", "reorder")
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
            nets: Mapping[str, PathNet] = {"trained": net}
            if settings.weights is None:
                nets = _trained_here(settings, data, results, ranks)
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


def _trained_here(settings: Settings, data: ImageData, results: Results, ranks: Ranks) -> dict[str, PathNet]:
    """All nets, trained; each training runs on one rank alone and its weights go to all."""
    wanted = trainings(settings, data)
    for training in wanted.values():
        # As training does, on every rank: equal bits need equal layouts.
        training.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = {}
    for title in ranks.taken(list(wanted)):
        _train(title, wanted[title], settings, data, results)
        weights[title] = wanted[title].net.state_dict()
    for trained in ranks.gathered(weights):
        for title, state in trained.items():
            wanted[title].net.load_state_dict(state)
    results.share()
    return {title: training.net for title, training in wanted.items()}


def _train(title: str, training: Training, settings: Settings, data: ImageData, results: Results) -> None:
    checkpoints = writable_folder(results.folder / "checkpoints", "out")
    recipe = Recipe(training.epochs, settings.batch_size, settings.peak_lr, seed=settings.seed)
    started = time.perf_counter()
    epochs = fit(training.net, data, recipe, checkpoint=checkpoints / f"{title}.pt", title=f"train the {title} net")
    if title not in results.document["training"]:
        results.add_training(title, [asdict(epoch) for epoch in epochs], time.perf_counter() - started)


def _parts(nets: Mapping[str, PathNet], data: ImageData, settings: Settings) -> Iterator[tuple[str, str, Part]]:
    """All that is measured; the gradients on the first net alone."""
    for position, (title, net) in enumerate(nets.items()):
        experiments = Experiments(net, data, settings)
        rules = Rules(net, data.train, experiments.tested)
        for name in SINGLE if title == CONTROL else LESIONS:
            yield from ((title, name, part) for part in getattr(experiments, name)())
        yield from ((title, "rules", part) for part in rules.rules())
        if position == 0:
            yield from ((title, name, part) for name in GRADIENTS for part in getattr(experiments, name)())


def _header(settings: Settings, data: ImageData, net: PathResNet) -> dict[str, Any]:
    return {
        "command": "study",
        "settings": asdict(settings),
        "identity": identity(data, settings.weights),
        "net": about_net(net) | {"keep": blocks_to_keep(settings, net.num_blocks)},
        "data": about_data(data, min(settings.images, len(data.test[1]))),
    }
