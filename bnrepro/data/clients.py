"""Clients with skewed labels: a training set divided among them, and steps to which each brings a batch of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bnrepro.data.dataset import derive_seed

__all__ = ["client_batches", "label_skewed"]


def label_skewed(labels: Tensor, clients: int, skew: float, seed: int = 0) -> list[Tensor]:
    """Indices of the images of each client, equally many for each.

    A share ``skew`` of the images, drawn at random, is sorted by label and cut into ``clients`` consecutive parts; the
    others are dealt out at random. With ``skew=1``, ten classes of one size and five clients, each client has two
    classes of its own; with classes of different sizes a cut may fall into one. At most ``clients`` images of each of
    the two shares are left out, so that parts are of one size.

    As in Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning" (ICML 2020).

    Args:
        labels: (N,), one of each image.
        clients: how many.
        skew: from 0 (alike) to 1 (by label).
        seed: of what is drawn.

    Raises:
        TypeError: ``labels`` is no tensor.
        ValueError: it is not one number for each image; ``skew`` is not between 0 and 1; fewer images than clients.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got a {type(labels).__name__}. Convert it: torch.as_tensor(labels)")
    if labels.dim() != 1:
        raise ValueError(
            f"labels must be one number for each image, (N,), got {tuple(labels.shape)}. Of one-hot labels these are "
            "labels.argmax(1)"
        )
    if not 0 <= skew <= 1:
        raise ValueError(f"skew must be from 0 (alike) to 1 (by label); got {skew}")
    if not 1 <= clients <= len(labels) or clients % 1:
        raise ValueError(
            f"{len(labels)} images cannot be divided among {clients} clients. Choose from 1 to {len(labels)}"
        )
    clients = int(clients)
    order = _permutation(len(labels), seed, "clients")
    count = round(skew * len(labels))
    by_label = order[:count][labels[order[:count]].cpu().argsort(stable=True)]
    shares = [_cut(each, clients) for each in (by_label, order[count:])]
    return [torch.cat(own) for own in zip(*shares, strict=True)]


def _cut(indices: Tensor, parts: int) -> list[Tensor]:
    """Consecutive parts of one size; what is left at the end is left out."""
    size = len(indices) // parts
    return list(indices[: size * parts].view(parts, size))


def client_batches(parts: Sequence[Tensor], size: int, seed: int = 0, epoch: int = 0) -> Iterator[Tensor]:
    """Of each step of an epoch the indices of its joint batch: ``size`` images of each client, client after client.

    Each client goes through its images in an order of its own. All have as many steps as the client with the fewest
    images has whole batches of them; what is left of each client's images then is left out of this epoch.

    Raises:
        ValueError: no clients; a ``size`` that is no whole number from 1 on, or more than a client has.
    """
    if not parts:
        raise ValueError("client_batches needs the images of one client or more, got no parts")
    fewest = min(range(len(parts)), key=lambda client: len(parts[client]))
    if not 1 <= size <= len(parts[fewest]) or size % 1:
        raise ValueError(
            f"size must be a whole number from 1 to the {len(parts[fewest])} images of client {fewest}, who has the "
            f"fewest; got {size}"
        )
    return _steps(parts, int(size), seed, epoch)


def _steps(parts: Sequence[Tensor], size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    orders = [part[_permutation(len(part), seed, f"client {client}", epoch)] for client, part in enumerate(parts)]
    for start in range(0, min(map(len, orders)) - size + 1, size):
        yield torch.cat([order[start : start + size] for order in orders])


def _permutation(count: int, seed: int, purpose: str, epoch: int = 0) -> Tensor:
    """Of ``count`` indices, whatever torch's defaults are."""
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, purpose, epoch))
    return torch.randperm(count, generator=generator, device="cpu")
