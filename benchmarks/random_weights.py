"""Random weights in the formats and under the names of the published files.

    python -m benchmarks.random_weights DIR --size sd15

writes a folder that `ie_jax.weights.layout.find_files` takes, for measuring speed and memory at
full size and for trying the commands without the published files. No image comes of it.
"""

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.sizes import GUIDANCE_FEATURES, SCHEDULER, SIZES, Size
from ie_jax.cli import run
from ie_jax.errors import UserError
from ie_jax.files import folder_appearing_whole
from ie_jax.weights.layout import KINDS, PIPELINE, PIPELINE_SDXL
from ie_jax.weights.published import FINE_TUNED
from ie_jax.weights.untrained import byte_vocabulary, write_byte_tokenizer

PACKAGES = ("torch", "diffusers", "transformers", "peft")
ALPHA = 8
# Ends of the names of the modules that carry LoRA (method 1).
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
    "time_emb_proj",
)
LORA_STRENGTH = 0.1  # of what the base layer puts out
OUTPUT_GAIN = 0.1


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One object, as upstream lays it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def padded(vocabulary: Mapping[str, int], size: int) -> dict[str, int]:
    """The vocabulary with entries that no text uses before the start and the end token, which
    stay last."""
    *words, start, end = sorted(vocabulary, key=vocabulary.__getitem__)
    unused = (f"<|unused{i}|>" for i in range(size - len(vocabulary)))
    return {entry: i for i, entry in enumerate([*words, *unused, start, end])}


def write_vae(folder: Path, config: dict[str, Any]) -> None:
    """The autoencoder, its attention under the names that the published file has."""
    import diffusers
    import safetensors.torch

    write_json(folder / "config.json", config)
    state = diffusers.AutoencoderKL.from_config(config).state_dict()
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new_name, old_name in old.items():
        state = {name.replace(new_name, old_name): x for name, x in state.items()}
    safetensors.torch.save_file(state, folder / "diffusion_pytorch_model.safetensors")


def write_text_encoder(folder: Path, config: dict[str, Any]) -> None:
    """A text encoder, with the prefix and the buffer that the published file has."""
    import safetensors.torch
    import torch

    write_json(folder / "config.json", config)
    state = {
        n if n.startswith("text_projection") else f"text_model.{n.removeprefix('text_model.')}": x
        for n, x in make_text_encoder(config).state_dict().items()
    }
    positions = torch.arange(config["max_position_embeddings"])[None]
    state["text_model.embeddings.position_ids"] = positions
    safetensors.torch.save_file(state, folder / "model.safetensors")


def make_text_encoder(config: dict[str, Any]) -> Any:
    """A text encoder in transformers."""
    import transformers

    settings = {name: x for name, x in config.items() if name != "torch_dtype"}
    (kind,) = config["architectures"]
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**settings))


def make_unet(config: dict[str, Any]) -> Any:
    """The guidance-distilled UNet in diffusers.

    Small predictions of the noise keep latents in range: inversion and generation then nearly
    undo each other's scaling. Queries and keys have unit variance, or attention would be flat.
    """
    import diffusers
    import torch

    unet = diffusers.UNet2DConditionModel.from_config(
        config, time_cond_proj_dim=GUIDANCE_FEATURES
    ).requires_grad_(False)
    with torch.no_grad():
        unet.conv_out.weight *= OUTPUT_GAIN
        for name, module in unet.named_modules():
            if name.endswith((".to_q", ".to_k")):
                module.weight *= math.sqrt(3)  # what torch's default lacks of unit variance
    return unet


def add_lora(unet: Any, rank: int) -> Any:
    """The UNet with a LoRA of PEFT's, which starts as no change."""
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=list(LORA_TARGETS))
    return peft.get_peft_model(unet, config)


def draw_lora(model: Any, rank: int) -> None:
    """New random factors, B not zero."""
    import torch

    with torch.no_grad():
        for name, x in model.named_parameters():
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(x, a=math.sqrt(5))
            elif "lora_B" in name:
                x.normal_(std=LORA_STRENGTH * math.sqrt(rank) / ALPHA)


def lora_state(model: Any) -> dict[str, Any]:
    """The factors under the names of the published files."""
    import peft

    state = peft.get_peft_model_state_dict(model)
    return {f"unet.{name}": x.contiguous() for name, x in state.items()}


def write_unets(folder: Path, config: dict[str, Any], rank: int, teacher: str, loras: str) -> None:
    """The distilled UNet and both LoRAs.

    Args:
        teacher: what the UNet's file is called.
        loras: how the LoRAs' begin.
    """
    import safetensors.torch
    import torch

    say("UNet")
    unet = make_unet(config)
    torch.save(unet.state_dict(), folder / f"{teacher}.pt")
    model = add_lora(unet, rank)
    for file in (FINE_TUNED, f"{loras}-reverse_259_519_779_999.safetensors"):
        draw_lora(model, rank)
        state = lora_state(model)
        size = sum(x.numel() for x in state.values())
        say(f"LoRA {file}: {len(state) // 2} modules, {size} parameters")
        if config is SIZES["sd15"].unet:
            published = (278, rank * 1_050_816)
            assert (len(state) // 2, size) == published, (len(state) // 2, size / rank)
        safetensors.torch.save_file(state, folder / file, metadata={"format": "pt"})


def write_pipeline(folder: Path, size: Size) -> None:
    """The folder in diffusers layout, without the weights of the UNet, which nobody reads."""
    say("tokenizer, scheduler, autoencoder, text encoder")
    write_json(folder / "unet/config.json", size.unet)
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    write_vae(folder / "vae", size.vae)
    for name, config in size.configs.items():
        if not name.startswith("text_encoder"):
            continue
        write_text_encoder(folder / name, config)
        tokenizer = folder / name.replace("text_encoder", "tokenizer")
        write_byte_tokenizer(tokenizer)
        write_json(tokenizer / "vocab.json", padded(byte_vocabulary(), config["vocab_size"]))


@contextmanager
def default_number(name: str) -> Iterator[None]:
    """torch makes networks of this type."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def random_weights(folder: Path, size: str = "tiny", seed: int = 0, rank: int = 64) -> None:
    """Write all files of one pair of models to a new folder.

    Args:
        size: a key of SIZES.
        rank: of both LoRAs.

    Raises:
        UserError: the folder exists already or cannot be made, the rank is not positive, or
            torch, diffusers, transformers or peft is not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"random weights need {', '.join(missing)}: pip install 'ie_jax[dev]'")
    import torch

    if rank < 1:
        raise UserError(f"rank {rank} is not positive")
    configs = SIZES[size]
    folder = folder.expanduser().absolute()
    if folder.exists():
        raise UserError(f"{folder} exists already: name a new folder")
    try:
        with folder_appearing_whole(folder) as unfinished, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline = PIPELINE_SDXL if configs.text_2 else PIPELINE
            with default_number(configs.number):
                write_pipeline(unfinished / pipeline, configs)
                write_unets(unfinished, configs.unet, rank, *KINDS[pipeline])
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    say(f"wrote {folder}")


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.random_weights",
        description="Write random weights in the formats of the published files.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new folder for them")
    parser.add_argument(
        "--size",
        required=True,
        choices=SIZES,
        help="sd15: SD1.5's own, 4.5 GB; sdxl: SDXL's, 9 GB; the others: for tests",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random values (default: 0)")
    parser.add_argument("--rank", type=int, default=64, help="of both LoRAs (default: 64)")
    options = parser.parse_args(argv)
    random_weights(options.folder, options.size, options.seed, options.rank)


if __name__ == "__main__":
    run(main)
