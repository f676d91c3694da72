"""Recordings of the metrics: what ours computes for each recorded number.

Nothing depends on what is recorded: pictures, prompts, methods, masks and widths come from the
folder. Numbers that are recorded one by one are compared as arrays over pairs or pictures.
"""

import csv
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.data.images import read_rgb
from ie_jax.evaluation import coco, pie_bench
from ie_jax.evaluation.metrics import clip, image_reward
from ie_jax.evaluation.metrics.masks import SIDE
from ie_jax.evaluation.metrics.networks import IMAGENET_MEAN, IMAGENET_STD, prepared
from ie_jax.evaluation.metrics.perceptual import lpips_terms
from ie_jax.evaluation.metrics.pixels import truncated
from ie_jax.evaluation.metrics.structure import Structure, inputs, likenesses
from ie_jax.evaluation.metrics.table import LPIPS_NETS, METRICS, Judges, Pair
from ie_jax.weights.formats import read_tensors
from ie_jax.weights.judges import from_upstream
from tests.lpips_recipe import other_weights, upstream_weights

Arrays = dict[str, np.ndarray]
Ours = dict[str, Any]
DIRECT = "directinversion+p2p"
"""The method whose results iCD's and the paper's code measured."""
STRIDE, PART, TOKEN = 16, 14, 49
"""Of what is recorded of pixels, of BLIP's parts and of DINO's."""
SUITE = {
    "structure_distance": "structure_distance",
    "psnr": "psnr",
    "lpips": "lpips_squeeze",
    "mse": "mse",
    "ssim": "ssim",
}
"""PIE-Bench's names of metrics, and ours."""
SUITE |= {
    f"{name}_{theirs}": f"{ours}_{part}"
    for name, ours in SUITE.items()
    for theirs, part in (("unedit_part", "unedited"), ("edit_part", "edited"))
}
SUITE |= {
    "clip_similarity_source_image": "clip_score_source",
    "clip_similarity_target_image": "clip_score_target",
    "clip_similarity_target_image_edit_part": "clip_score_edited",
}
OTHERS = {
    "lpips_alex": "lpips_alex",
    "lpips_vgg": "lpips_vgg",
    "lpips_squeeze": "lpips_squeeze",
    "icd_lpips_vgg_224": "lpips_vgg_224",
    "icd_psnr": "psnr",
    "icd_dinov2": "dinov2",
    "icd_clip_l14_image_image": "clip_l14_images",
    "icd_clip_l14_image_prompt": "clip_l14",
    "icd_imagereward": "image_reward",
    "paper_clip_b32": "clip_b32_unrounded",
    "paper_clip_l14": "clip_l14_unrounded",
    "paper_imagereward": "image_reward_truncated",
}
"""The other codes' names in the record of pairs."""
TABLES = {
    "pie_calc_all": {
        "preservation_clip_score": "clip_l14_images",
        "preservation_dinov2": "dinov2",
        "editing_clip_score": "clip_l14",
        "editing_imagereward": "image_reward",
    },
    "pie_calc_inversion": {
        "preservation_dinov2": "dinov2",
        "preservation_psnr": "psnr",
        "preservation_lpips": "lpips_vgg_224",
    },
    "pie_paper_metrics": {
        "alex_lpips": "lpips_alex",
        "vgg_lpips": "lpips_vgg",
        "b_32_clip": "clip_b32_unrounded",
        "l_14_clip": "clip_l14_unrounded",
        "aesthetic_ir": "image_reward_truncated",
    },
}


def as_number(x: Any) -> float:
    """A recorded value; infinity has a remark behind it. NaN for remarks alone."""
    try:
        return float(x.split()[0]) if isinstance(x, str) else float(x)
    except (ValueError, IndexError):
        return float("nan")


class MetricRecording:
    """A folder of recorded metrics, and the networks that they were made with."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if it is not such a folder."""
        self.folder, self.recorded = folder, folder / "recorded"
        self.bench, self.coco = folder / "pie_bench_mini", folder / "coco_mini"
        self.judges = RecordedJudges(folder)
        self.cases = [
            case
            for case, file in (
                ("pictures", "tables.json"),
                ("weights", "tables.json"),
                ("pairs", "pairs.json"),
                ("features", "pairs.npz"),
                ("masks", "pie_masks.json"),
                *((path.stem, path.name) for path in sorted(self.recorded.glob("pie_*.csv"))),
                *((name, "tables.json") for name in TABLES),
                ("coco", "coco.npz"),
            )
            if (self.recorded / file).is_file()
        ]

    def json(self, name: str) -> Any:
        """A JSON file of the records."""
        return json.loads((self.recorded / f"{name}.json").read_text(encoding="utf-8"))

    def record(self, case: str) -> Arrays:
        """The arrays of a case."""
        return RECORDS.get(case, suite_record)(self, case)

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """The pairs, without masks."""
        return [
            Pair(
                self.picture(f"pairs/{i}_a.png"),
                self.picture(f"pairs/{i}_b.png"),
                values["prompt"],
                values["prompt"],
            )
            for i, values in enumerate(self.json("pairs"))
        ]

    @functools.cached_property
    def items(self) -> list[pie_bench.Item]:
        """The edits of the small PIE-Bench."""
        return pie_bench.read_items(self.bench)

    @functools.cache  # noqa: B019 - it lives as long as the command
    def picture(self, name: str) -> np.ndarray:
        """A picture by its path in the folder."""
        return read_rgb(self.folder / name, name)

    @functools.cache  # noqa: B019
    def edit(self, method: str, name: str) -> Pair:
        """An edit of the small PIE-Bench and a method's result."""
        item = next(item for item in self.items if item.name == name)
        results = self.bench / "output" / method
        return Pair(
            read_rgb(pie_bench.picture(self.bench, item), item.image),
            last_square(pie_bench.picture(results, item)),
            item.source,
            item.target,
            item.mask,
        )

    def measured(self, metric: str, pairs: Iterable[Pair]) -> np.ndarray:
        """A metric of several pairs."""
        return np.array([METRICS[metric](self.judges, pair) for pair in pairs])


def last_square(path: Path) -> np.ndarray:
    """A method's recorded result, uint8 (512, 512, 3): of a strip of several pictures the last."""
    pixels = read_rgb(path, str(path))
    return pixels[-SIDE:, -SIDE:] if pixels.shape[0] != pixels.shape[1] else pixels


class Antialiased(Structure):
    """The structure distance where torchvision is 0.17 or later, as it was for the records."""

    def distance(self, one: np.ndarray, other: np.ndarray, antialias: bool = True) -> float:
        """See `Structure`."""
        return super().distance(one, other, antialias)


class RecordedJudges(Judges):
    """The recorded networks: LPIPS' convolutions come from a seed, the heads from files; of
    ImageReward's vision network the description tells how many heads it has."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "weights")
        about = folder / "README.md"
        told = about.read_text(encoding="utf-8") if about.is_file() else ""
        seed = re.search(r"seed \*\*(\d+)\*\*", told)
        heads = re.search(r"ViT of ImageReward has (\d+) heads", told)
        self.seed = int(seed[1]) if seed else 7001
        self.heads = int(heads[1]) if heads else image_reward.HEADS

    def upstream(self, net: str) -> Arrays:
        """LPIPS' tensors by their upstream names."""
        # The recipe draws each net from a seed of its own.
        seed = self.seed + ("alex", "vgg", "squeeze").index(net)
        drawn = dict(upstream_weights(seed) if net == "vgg" else other_weights(net, seed))
        return drawn | read_tensors(self.folder / "lpips" / f"{net}.pth")

    @property
    def folder(self) -> Path:
        """Of the weights."""
        assert self.weights is not None
        return self.weights

    def lpips(self, net: str) -> Any:
        """See `Judges`."""
        if net not in self.nets:
            self.nets[net] = from_upstream(self.upstream(net), net)
        return self.nets[net]

    @functools.cached_property
    def structure(self) -> Structure:
        """See `Judges`."""
        return Antialiased(self.files("dino")[0])

    @functools.cached_property
    def image_reward(self) -> image_reward.ImageReward:
        """See `Judges`."""
        reward, _, vocabulary, *_ = self.files("image-reward")
        return image_reward.ImageReward(reward.parent, vocabulary.parent, self.heads)


# --- Records: (recording, case) -> recorded arrays -----------------------------------------------


def pictures_record(recording: MetricRecording, case: str) -> Arrays:
    """Sums of decoded pictures."""
    sums = recording.json("tables").get("decoded_sums", {})
    return {"names": np.array(list(sums)), "sums": np.array(list(sums.values()))}


def weights_record(recording: MetricRecording, case: str) -> Arrays:
    """Sum, first and last number of tensors of LPIPS."""
    nets = recording.json("tables").get("lpips_backbone_check", {})
    return {f"{net}.{x}": np.array(v) for net, tensors in nets.items() for x, v in tensors.items()}


def pairs_record(recording: MetricRecording, case: str) -> Arrays:
    """Each number over all pairs that have it."""
    pairs = recording.json("pairs")
    names = dict.fromkeys(name for values in pairs for name in values)
    columns = {name: [values.get(name) for values in pairs] for name in names}
    return {
        name: np.array(column) if name in ("prompt", "size") else numbers(column)
        for name, column in columns.items()
    }


def numbers(column: list[Any]) -> np.ndarray:
    """One row for each value that is there; rows of different lengths end in NaN."""
    rows = [np.ravel([as_number(x) for x in np.ravel(v)]) for v in column if v is not None]
    width = max(map(len, rows))
    full = [np.pad(row, (0, width - len(row)), constant_values=np.nan) for row in rows]
    return np.squeeze(np.array(full), axis=1) if width == 1 else np.array(full)


def features_record(recording: MetricRecording, case: str) -> Arrays:
    """What the networks see and say."""
    with np.load(recording.recorded / "pairs.npz") as arrays:
        return dict(arrays)


def masks_record(recording: MetricRecording, case: str) -> Arrays:
    """Facts of each mask."""
    masks = recording.json("pie_masks")
    names = dict.fromkeys(name for facts in masks.values() for name in facts)
    columns = {name: np.array([facts[name] for facts in masks.values()]) for name in names}
    return {"names": np.array(list(masks))} | columns


def suite_record(recording: MetricRecording, case: str) -> Arrays:
    """The columns of a table that PIE-Bench's suite wrote."""
    path = recording.recorded / f"{case}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        name: np.array([row[name] for row in rows])
        if name == "file_id"
        else np.array([float(row[name]) for row in rows])
        for name in rows[0]
    }


def table_record(recording: MetricRecording, case: str) -> Arrays:
    """iCD's lists, and the means and deviations that it printed."""
    tables = recording.json("tables")
    if case not in tables:
        return {}
    record = {name: np.array(values) for name, values in tables[case].items()}
    printed = tables.get(f"{case}_printed", [])
    found = (re.search(r"-?\d+\.\d+(?:e-?\d+)?", line) for line in printed)
    told = [float(match[0]) for match in found if match]
    return record | ({"printed": np.array(told)} if told else {})


def paper_record(recording: MetricRecording, case: str) -> Arrays:
    """The paper repository's numbers, by metric."""
    values: dict[str, dict[str, float]] = {}
    for name, value in recording.json("tables").get(case, {}).items():
        metric, _, picture = name.partition("/")
        values.setdefault(metric, {})[picture] = value
    record: Arrays = {}
    for metric, column in values.items():
        record[f"{metric}.names"] = np.array(list(column))
        record[metric] = np.array(list(column.values()))
    return record


def coco_record(recording: MetricRecording, case: str) -> Arrays:
    """Order, captions and sizes of the photos, and what the loader makes of them."""
    photos = recording.json("tables").get("coco", [])
    with np.load(recording.recorded / "coco.npz") as arrays:
        record = dict(arrays)
    return {key: np.array([photo[key] for photo in photos]) for key in photos[0]} | record


RECORDS: dict[str, Callable[[MetricRecording, str], Arrays]] = {
    "pictures": pictures_record,
    "weights": weights_record,
    "pairs": pairs_record,
    "features": features_record,
    "masks": masks_record,
    "pie_calc_all": table_record,
    "pie_calc_inversion": table_record,
    "pie_paper_metrics": paper_record,
    "coco": coco_record,
}


# --- Ours: (recording, case, record) -> our arrays -----------------------------------------------


def pictures_case(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """Pictures as this machine decodes them."""
    names = map(str, record["names"])
    return {"sums": [int(recording.picture(name).sum(dtype=np.int64)) for name in names]}


def weights_case(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """The seeded networks."""
    nets = {net: recording.judges.upstream(net) for net in LPIPS_NETS}
    tensors = {f"{net}.{name}": x for net, found in nets.items() for name, x in found.items()}
    return {
        name: [tensors[name].sum(dtype=np.float64), *tensors[name].flat[[0, -1]]]
        for name in record
        if name in tensors
    }


def pairs_case(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """All metrics of the pairs that have them."""
    found = {name: pair_metric(recording, name) for name in record}
    return {name: x for name, x in found.items() if x is not None}


def pair_metric(recording: MetricRecording, name: str) -> Any:
    """One metric."""
    having = [values.get(name) is not None for values in recording.json("pairs")]
    pairs = [pair for pair, has in zip(recording.pairs, having, strict=True) if has]
    judges = recording.judges
    metric, _, option = name.partition("|")
    if name.endswith("_per_layer"):
        net = name.split("_")[1]
        return [lpips_terms(judges.lpips(net), pair.result, pair.source) for pair in pairs]
    if name == "paper_imagereward_pixels_lowered":
        return [np.count_nonzero(truncated(pair.result) != pair.result) for pair in pairs]
    if option == "no_antialias":
        return [judges.structure.distance(p.result, p.source, antialias=False) for p in pairs]
    if option:
        numbers = [i for i, has in enumerate(having) if has]
        masks = [mask_of(recording, number, option) for number in numbers]
        pairs = [
            Pair(p.source, p.result, p.source_prompt, p.target_prompt, mask)
            for p, mask in zip(pairs, masks, strict=True)
        ]
    known = OTHERS.get(metric) or SUITE.get(metric.removeprefix("pnp_"))
    return recording.measured(known, pairs) if known else None


def mask_of(recording: MetricRecording, number: int, name: str) -> np.ndarray:
    """A mask of a pair."""
    shape = recording.pairs[number].source.shape[:2]
    with np.load(recording.folder / "pairs" / f"{number}_masks.npz") as masks:
        bits: np.ndarray = np.unpackbits(masks[name], count=shape[0] * shape[1])
    return bits.reshape(shape)


def features_case(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """What the networks see and say."""
    return {
        **clip_features(recording, "clip-vit-large-patch14", recording.judges.clip_l14, record),
        **clip_features(recording, "clip-vit-base-patch32", recording.judges.clip_b32, record),
        **dinov2_features(recording),
        **reward_features(recording),
        **dino_features(recording, record),
    }


def clip_features(recording: MetricRecording, name: str, net: clip.Clip, record: Arrays) -> Ours:
    """Of CLIP: of the second picture and the prompt."""
    pairs = recording.pairs
    pixels = np.stack([prepared(pair.result) for pair in pairs])
    ids = [net.ids(pair.target_prompt)[0] for pair in pairs]
    length = max(map(len, ids))
    padding = net.tokenizer.pad
    padded = [np.pad(row, (0, length - len(row)), constant_values=padding) for row in ids]
    return {
        f"{name}.pixel_values_every_16": pixels[:, :, ::STRIDE, ::STRIDE],
        f"{name}.input_ids": padded,
        f"{name}.image_embeds": [net.of_pixels(x) for x in pixels],
        f"{name}.text_embeds": [net.of_ids(row[None]) for row in ids],
    }


def dinov2_features(recording: MetricRecording) -> Ours:
    """Of DINOv2."""
    ours: Ours = {}
    for which, attribute in (("a", "source"), ("b", "result")):
        pictures = [getattr(pair, attribute) for pair in recording.pairs]
        pixels = np.stack([prepared(x, IMAGENET_MEAN, IMAGENET_STD, 256) for x in pictures])
        ours[f"dinov2.{which}.pixel_values_every_16"] = pixels[:, :, ::STRIDE, ::STRIDE]
        net = recording.judges.dinov2
        ours[f"dinov2.{which}.pooler_output"] = [net.features(x) for x in pictures]
    return ours


def reward_features(recording: MetricRecording) -> Ours:
    """Of ImageReward."""
    net = recording.judges.image_reward
    tokens = [net.tokens(pair.target_prompt) for pair in recording.pairs]
    pixels = [prepared(pair.result, rounded=True) for pair in recording.pairs]
    seen = [net.seen(x) for x in pixels]
    read = [net.read(x, ids) for x, ids in zip(seen, tokens, strict=True)]
    return {
        "imagereward.input_ids": [x["input_ids"][0] for x in tokens],
        "imagereward.attention_mask": [x["attention_mask"][0] for x in tokens],
        "imagereward.pixel_values_every_16": np.stack(pixels)[:, :, ::STRIDE, ::STRIDE],
        "imagereward.image_embeds_every_14th_token": [x[0, ::PART] for x in seen],
        "imagereward.text_cls": [x[0] for x in read],
        "imagereward.reward": [net.judged(x) for x in read],
    }


def dino_features(recording: MetricRecording, record: Arrays) -> Ours:
    """Of DINO, of those pictures that are recorded."""
    ours: Ours = {}
    for name in record:
        if not (match := re.fullmatch(r"dino\.([ab])(\d+)\.keys_.*", name)):
            continue
        pair = recording.pairs[int(match[2])]
        seen = inputs(pair.source if match[1] == "a" else pair.result, antialias=True)
        keys, prefix = recording.judges.structure.keys(seen), f"dino.{match[1]}{match[2]}"
        ours[f"{prefix}.input_every_16"] = seen[:, ::STRIDE, ::STRIDE]
        ours[f"{prefix}.keys_layer11_every_49th_token"] = keys[::TOKEN]
        ours[f"{prefix}.self_similarity_every_49th"] = likenesses(keys)[::TOKEN, ::TOKEN]
    return ours


def masks_case(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """Decoded masks: how many ones, how many by the runs' lengths, and the sum of their places."""
    masks = {item.name: item.mask for item in recording.items}
    path = recording.bench / pie_bench.MAPPING
    runs = {name: x["mask"] for name, x in json.loads(path.read_text()).items()}
    names = list(map(str, record["names"]))
    return {
        "ones": [masks[name].sum(dtype=int) for name in names],
        "ones_annotated": [sum(runs[name][1::2]) for name in names],
        "checksum": [np.flatnonzero(masks[name]).sum(dtype=float) for name in names],
    }


def suite_case(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """PIE-Bench's suite on the results of methods."""
    ours: Ours = {}
    for column in record:
        match = re.fullmatch(r"\d+_(.+)\|(\w+)", column)
        if match and match[2] in SUITE:
            pairs = [recording.edit(match[1], str(name)) for name in record["file_id"]]
            ours[column] = recording.measured(SUITE[match[2]], pairs)
    return ours


def table_case(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """iCD's numbers, in the order of the edits."""
    pairs = [recording.edit(DIRECT, item.name) for item in recording.items]
    metrics = {name: metric for name, metric in TABLES[case].items() if name in record}
    ours: Ours = {name: recording.measured(metric, pairs) for name, metric in metrics.items()}
    return ours | {"printed": PRINTED[case](ours, recording, pairs)}


def printed_all(ours: Mapping[str, Any], recording: MetricRecording, pairs: list[Pair]) -> Any:
    """Mean and deviation of each list; ImageReward's is that of a population."""
    names = ("preservation_clip_score", "preservation_dinov2", "editing_clip_score")
    each = [f(ours[name]) for name in names for f in (np.mean, sample_deviation)]
    reward = ours["editing_imagereward"]
    return [*each, np.mean(reward), np.std(reward)]


def sample_deviation(values: np.ndarray) -> float:
    """With n - 1."""
    return float(np.std(values, ddof=1))


def printed_inversion(
    ours: Mapping[str, Any], recording: MetricRecording, pairs: list[Pair]
) -> Any:
    """The mean of each list."""
    return [np.mean(values) for values in ours.values()]


PRINTED = {"pie_calc_all": printed_all, "pie_calc_inversion": printed_inversion}


def paper_case(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """The paper repository's numbers."""
    metrics = {name: metric for name, metric in TABLES[case].items() if name in record}
    return {
        name: recording.measured(
            metric, [recording.edit(DIRECT, str(x)) for x in record[f"{name}.names"]]
        )
        for name, metric in metrics.items()
    }


def coco_case(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """The photos of COCO and their preparation for training."""
    photos = coco.read_photos(recording.coco)
    ours: Ours = {
        "file": [photo.path.name for photo in photos],
        "text": [photo.caption for photo in photos],
        "short_side": [coco.short_side(photo.path) for photo in photos],
    }
    for i, photo in enumerate(photos):
        image = coco.prepared_photo(photo.path, 512).transpose(2, 0, 1) / 127.5 - 1
        ours |= {f"{i}.image_every_8": image[:, ::8, ::8], f"{i}.mean": image.mean((1, 2))}
    return ours


CASES: dict[str, Callable[[MetricRecording, str, Arrays], Ours]] = {
    "pictures": pictures_case,
    "weights": weights_case,
    "pairs": pairs_case,
    "features": features_case,
    "masks": masks_case,
    "pie_calc_all": table_case,
    "pie_calc_inversion": table_case,
    "pie_paper_metrics": paper_case,
    "coco": coco_case,
}


def compute_metrics(recording: MetricRecording, case: str, record: Arrays) -> Ours:
    """Our arrays of a case.

    Raises:
        UserError: a network's files are missing.
    """
    return CASES.get(case, suite_case)(recording, case, record)
