"""Finds images that are the same, or nearly: exact duplicates by their pixels, near ones by a perceptual hash.

A thumbnail is 16x16 gray levels, the means of as many areas of the image. Its hash is the signs of the lowest 8x8
coefficients of its discrete cosine transform, which noise, recompression and brightness hardly change. Two images whose
hashes differ in few bits are near duplicates if their thumbnails also correlate. All of it is exact in integers, or in
floats that hold integers, so that every machine finds the same pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from classifier.data.preprocessing import Pixels

SIDE = 16  # of a thumbnail, pixels
KEPT = 8  # frequencies in each direction
BANDS = 4  # of 16 bits; hashes that differ in fewer bits than this have an equal band
FARTHEST = BANDS - 1  # bits that differ between the hashes of near duplicates
CLOSEST = 0.97  # correlation of their thumbnails
BLOCK = 4096  # images at a time
LUMA = np.array([19595, 38470, 7471], np.uint32)  # of Pillow's mode L, in 65536ths

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of images: `first[i] < second[i]`, sorted, with the correlation of their thumbnails; 1 is exact."""

    first: Indices
    second: Indices
    correlation: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.first)


def thumbnails(images: Pixels) -> Pixels:
    """(N, C, H, W) -> (N, 16, 16), smaller for images that are smaller."""
    if images.shape[1] == 1:
        gray = images[:, 0].astype(np.uint32)
    else:
        gray = sum(images[:, channel] * LUMA[channel] for channel in range(3)) + np.uint32(32768) >> 16
    sums, counts = gray, np.ones((), np.int64)
    for axis in (1, 2):
        length = images.shape[axis + 1]
        edges = np.arange(min(SIDE, length) + 1) * length // min(SIDE, length)
        sums = np.add.reduceat(sums, edges[:-1], axis=axis)
        counts = np.multiply.outer(counts, np.diff(edges))
    means: Pixels = ((sums + counts // 2) // counts).astype(np.uint8)
    return means


def hashes(thumbs: Pixels) -> Hashes:
    """(N, 16, 16) -> (N,), 64 bits each."""
    height, width = thumbs.shape[1:]
    rows, columns = _cosines(height), _cosines(width)
    found = np.empty(len(thumbs), np.uint64)
    for start in range(0, len(thumbs), BLOCK):
        block = thumbs[start : start + BLOCK].astype(np.float64)
        signs = np.zeros((len(block), KEPT, KEPT), bool)
        signs[:, : len(rows), : len(columns)] = rows @ block @ columns.T > 0
        found[start : start + BLOCK] = np.packbits(signs.reshape(-1, 64), axis=1).view(">u8")[:, 0]
    return found


def _cosines(length: int) -> npt.NDArray[np.float64]:
    """The lowest frequencies of the discrete cosine transform, as integers, so that all sums are exact."""
    kept = np.arange(min(KEPT, length))[:, None]
    cosines: npt.NDArray[np.float64] = np.cos(np.pi / length * kept * (np.arange(length) + 0.5))
    return np.rint(1024 * cosines)


def exact_pairs(digests: npt.NDArray[np.uint8]) -> Pairs:
    """Each image whose digest (N, 32) an earlier one has, with the first one that has it."""
    rows = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}")[:, 0]
    _, first, number = np.unique(rows, return_index=True, return_inverse=True)
    second = np.flatnonzero(first[number] != np.arange(len(rows)))
    return Pairs(first[number][second], second, np.ones(len(second)))


def near_pairs(found: Hashes, thumbs: Pixels, candidates: Indices) -> Pairs:
    """The near duplicates among `candidates`, of which none are exact duplicates of each other."""
    keys = found[candidates]
    pairs = [np.empty((0, 2), np.int64)]
    for band in range(BANDS):
        part = (keys >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        ordered = part[order]
        places = np.arange(len(order))
        for distance in range(1, len(order)):  # equal bands are neighbours; an image leaves when its own end
            places = places[: np.searchsorted(places, len(order) - distance)]
            places = places[ordered[places + distance] == ordered[places]]
            if not len(places):
                break
            both = np.stack([order[places], order[places + distance]], 1)
            close = np.bitwise_count(keys[both[:, 0]] ^ keys[both[:, 1]]) <= FARTHEST
            pairs.append(np.sort(both[close], axis=1))
    both = np.unique(np.concatenate(pairs), axis=0)
    first, second = candidates[both[:, 0]], candidates[both[:, 1]]
    alike = _correlation(thumbs, first, second)
    near = alike >= CLOSEST
    return Pairs(first[near], second[near], alike[near])


def _correlation(thumbs: Pixels, first: Indices, second: Indices) -> npt.NDArray[np.float64]:
    """Of each pair; 0 where a thumbnail has a single gray level."""
    found = np.zeros(len(first))
    for start in range(0, len(first), BLOCK):
        part = slice(start, start + BLOCK)
        a, b = (thumbs[indices[part]].reshape(-1, thumbs[0].size).astype(np.int64) for indices in (first, second))
        count = a.shape[1]
        product, a_sum, b_sum = (a * b).sum(1), a.sum(1), b.sum(1)
        spread = (count * (a * a).sum(1) - a_sum**2) * (count * (b * b).sum(1) - b_sum**2).astype(np.float64)
        np.divide(count * product - a_sum * b_sum, np.sqrt(spread), out=found[part], where=spread > 0)
    return found
