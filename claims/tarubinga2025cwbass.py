"""CW-BASS: pseudo-labels by confidence and along boundaries, beside few labelled images."""

import copy
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claims.blobs import Segmenter, blobs, overlap
from claims.record import Measurement
from lossworks.losses import BoundaryAwarePseudoLabelLoss, sobel_boundary_mask
from lossworks.select import dynamic_confidence_threshold

PAPER = "tarubinga2025cwbass"
RULE = (
    "Discs of 3 classes in 16 x 16 pixels of noise, 4 labelled and 120 unlabelled images, a teacher that is a moving "
    "average: the mean intersection over union on new images is above that of the labelled images alone by more than "
    "0.01, and above that of pseudo-labels from a confidence of 0.95 on; means of 4 seeds."
)

SEEDS, LABELLED, UNLABELLED, TEST, CLASSES, SIZE = 4, 4, 120, 100, 4, 16
STEPS, RAMP, BATCH, AVERAGE, FIXED, NOISE = 300, 100, 16, 0.97, 0.95, 0.3
WAYS = ("labelled alone", "fixed threshold", "CW-BASS")


def measure() -> Measurement:
    found = {way: [_score(way, seed) for seed in range(SEEDS)] for way in WAYS}
    means = {way: mean(scores) for way, scores in found.items()}
    ours = means["CW-BASS"]
    return Measurement(
        shown=ours > means["labelled alone"] + 0.01 and ours > means["fixed threshold"],
        measured="mean intersection over union " + ", ".join(f"{means[way]:.3f} {way}" for way in WAYS),
        numbers={f"overlap, {way}": scores for way, scores in found.items()},
        seeds=SEEDS,
    )


def _score(way: str, seed: int) -> float:
    draw = torch.Generator().manual_seed(seed)
    number = LABELLED + UNLABELLED + TEST
    x, y = blobs(number, size=SIZE, classes=CLASSES, empty=0.0, noise=0.25, generator=draw)
    (x_l, x_u, x_test), (y_l, _, y_test) = (part.split([LABELLED, UNLABELLED, TEST]) for part in (x, y))
    student = Segmenter(CLASSES, width=16, seed=seed)
    teacher = copy.deepcopy(student)
    adam = torch.optim.Adam(student.parameters(), lr=5e-3)
    for step in range(STEPS):
        adam.zero_grad()
        loss = cross_entropy(student(x_l + NOISE * torch.randn(x_l.shape, generator=draw))[0], y_l)
        rows = torch.randint(UNLABELLED, (BATCH,), generator=draw)
        noise = NOISE * torch.randn(x_u[rows].shape, generator=draw)
        if way != "labelled alone":
            ramp = min(1.0, step / RAMP)
            loss = loss + ramp * _unlabelled(way, student(x_u[rows] + noise)[0], teacher, x_u[rows])
        loss.backward()
        adam.step()
        _follow(teacher, student)
    return overlap(teacher, x_test, y_test, CLASSES)


def _unlabelled(way: str, output: Tensor, teacher: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        confidence, guess = teacher(x)[0].softmax(dim=1).max(dim=1)
    if way == "fixed threshold":
        kept = torch.where(confidence > FIXED, guess, -100)
        return BoundaryAwarePseudoLabelLoss(gamma=0.0, boundary_weight=0.0)(output, kept)
    kept = torch.where(confidence > dynamic_confidence_threshold(confidence), guess, -100)
    return BoundaryAwarePseudoLabelLoss()(output, kept, confidence, sobel_boundary_mask(guess))


@torch.no_grad()
def _follow(teacher: nn.Module, student: nn.Module) -> None:
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.lerp_(new, 1 - AVERAGE)
