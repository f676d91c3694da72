"""Edits by the methods of `ie_jax.methods.table`: prompts in, pictures out, as with our own."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from ie_jax.devices import BATCH, LATER, WHOLE
from ie_jax.diffusion.schedule import Schedule
from ie_jax.editing.config import EditConfig
from ie_jax.errors import UserError
from ie_jax.methods import infedit, prompts
from ie_jax.methods.inverse_and_edit import Edit as Result
from ie_jax.methods.inverse_and_edit import contexts, encode_image, finish, leading
from ie_jax.methods.prompt_to_prompt import Blend, Edits
from ie_jax.methods.settings import Numbers, Size
from ie_jax.methods.table import Edit, Request, settled
from ie_jax.models.networks import Networks, Prompts
from ie_jax.models.pixels import Pixels
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.weights.folder import Weights

FEW = 4
"""Steps of icd, for which Prompt-to-Prompt's tables are made."""
BLENDING = ("p2p", "p2p-npi", "p2p-nti", "p2p-direct", "icd", "infedit")
"""Methods that look at the maps of words."""
BLEND_START = 0.2
"""Share of the steps before Prompt-to-Prompt's blend; icd's begins at once."""
METHOD_PLACES: Any = (
    (WHOLE, BATCH, BATCH, BATCH, WHOLE, BATCH, WHOLE, BATCH, WHOLE, WHOLE),
    Result(BATCH, BATCH, LATER, None),
)
"""Where the images are in arguments and result of `edit_by`."""


class Words:
    """Two prompts as Prompt-to-Prompt's arrays."""

    def __init__(
        self, tokenizer: Tokenizer, length: int, embed: Callable[[str], np.ndarray]
    ) -> None:
        """`embed` gives a prompt's embedding (tokens, width), for InfEdit."""
        self.tokenizer, self.length, self.embed = tokenizer, length, embed

    def encode(self, text: str) -> list[int]:
        """Token ids without padding."""
        return self.tokenizer.encode(text, self.length)

    def decode(self, token: int) -> str:
        """The text of a token."""
        return self.tokenizer.decode(token)

    def blend(self, source: str, target: str, config: EditConfig) -> Blend | infedit.Words | None:
        """Where the target may differ, without an axis for images; None: everywhere.

        Raises:
            UserError: a word is not in its prompt, or the method looks at none.
        """
        chosen = settled(config.method, config.baseline)
        if chosen.blend is None:
            return None
        if config.method not in BLENDING:
            raise UserError(f"baseline: blend is for {', '.join(BLENDING)}, not {config.method}")
        masks = []
        for text, word in zip((source, target), chosen.blend, strict=True):
            if word and word not in text.split(" "):
                raise UserError(f"baseline: blend: {word!r} is no word of {text!r}")
            masks.append(prompts.word_mask(text, [word], self.encode, self.decode, self.length))
        if config.method == "infedit":
            return self.infedit_words(source, target, chosen.blend[1], chosen.blend_threshold)
        words = np.stack(masks)
        start = 0 if config.method == "icd" else int(BLEND_START * chosen.steps)
        threshold = np.float32(chosen.blend_threshold)
        given: Any = words, 0 * words, threshold, threshold, np.int32(start)
        return Blend(*given)

    def infedit_words(self, source: str, target: str, word: str, threshold: float) -> infedit.Words:
        """As published, the target's word alone counts, and what is joined to its tokens."""
        ids, others, phrase = (self.encode(text) for text in (source, target, word))
        mask = prompts.phrase_mask(others, phrase, self.length)
        for at, taken in self.aligned(source, target)[2]:
            if ids[taken] in phrase:
                mask[at] = 1
        inside, none = np.zeros_like(mask), np.zeros_like(mask)
        inside[1 : len(others) - 1] = 1
        near = np.float32(threshold)
        given: Any = mask, none, none, inside, near, near
        return infedit.Words(*given)

    def aligned(
        self, source: str, target: str
    ) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
        """InfEdit's alignment, see `infedit.joined`."""
        ids = self.encode(source), self.encode(target)
        states, lengths = (self.embed(source), self.embed(target)), map(len, reversed(ids))
        return infedit.joined(*prompts.refine_mapper(*ids, self.length), *states, *lengths)

    def edits(self, source: str, target: str, config: EditConfig) -> Edits:
        """What the target takes over, without an axis for images.

        Raises:
            UserError: the prompts cannot be aligned as asked for.
        """
        chosen, texts = settled(config.method, config.baseline), (self.encode, self.decode)
        if chosen.words == "replace":
            alignment = prompts.replace(source, target, *texts, self.length)
        else:
            if config.method == "infedit":
                mapper, weights, _ = self.aligned(source, target)
            else:
                ids = self.encode(source), self.encode(target)
                mapper, weights = prompts.refine_mapper(*ids, self.length)
            alignment = prompts.refine(mapper, weights)
        new = {word: chosen.amplify for word in set(target.split(" ")) - set(source.split(" "))}
        steps = FEW if config.method == "icd" else chosen.steps
        table = prompts.time_table(steps, chosen.cross_steps, {}, target, *texts, self.length)
        return Edits(
            matrix=alignment.matrix,  # type: ignore[arg-type]
            own=alignment.own,  # type: ignore[arg-type]
            equalizer=prompts.equalizer(target, new, *texts, self.length),  # type: ignore[arg-type]
            cross=table,  # type: ignore[arg-type]
            self_steps=np.array([0, int(steps * chosen.self_steps)], np.int32),  # type: ignore[arg-type]
        )


def of_batch(blend: Blend | infedit.Words) -> Blend | infedit.Words:
    """What `Words.blend` gives for each edit, stacked, as methods take it: the prompts' groups come
    first, and the numbers are the same for all."""
    if isinstance(blend, infedit.Words):
        near, source = blend.target_threshold[0], blend.source_threshold[0]
        return replace(blend, target_threshold=near, source_threshold=source)
    words, without = (jnp.moveaxis(x, 1, 0) for x in (blend.words, blend.without))
    numbers = blend.threshold, blend.without_threshold, blend.start
    return Blend(words, without, *(x[0] for x in numbers))


def edit_by(
    networks: Networks,
    weights: Weights,
    pixels: Pixels,
    sources: Prompts,
    targets: Prompts,
    nothing: Prompts,
    keys: UInt32[Array, "b 2"],
    schedule: Schedule,
    edits: tuple[Edits, Blend | infedit.Words | None],
    numbers: Numbers,
    match: Float[Array, ""],
    *,
    method: Edit,
    size: Size,
) -> Result:
    """b images edited e times each, as one program.

    Args:
        sources, targets, nothing: tokens (b, ...), (b, e, ...), and of the empty prompt (1, ...).
        keys: data of the images' keys.
        edits: what is taken over and where targets may differ, leaves (b, e, ...).
        match: 1 to give results the source's brightness and contrast.
    """
    b, e = leading(targets, 2)

    def each(x: Any) -> Any:
        """For every edit of an image."""
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, e, axis=0), x)

    def flat(x: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(b * e, *leaf.shape[2:]), x)

    empty = contexts(networks, weights, nothing)
    rows, blend = flat(edits)
    z, own = encode_image(networks, weights, pixels), jax.random.wrap_key_data(keys)
    request = Request(
        z=each(z),
        noise=each(jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(own)),
        keys=each(jax.vmap(partial(jax.random.fold_in, data=1))(own)),
        source=each(contexts(networks, weights, sources)),
        target=flat(contexts(networks, weights, targets)),
        empty=jax.tree.map(lambda x: jnp.broadcast_to(x, (b * e, *x.shape[1:])), empty),
        edits=replace(rows, cross=jnp.moveaxis(rows.cross, 1, 0), self_steps=rows.self_steps[0]),
        blend=None if blend is None else of_batch(blend),
        schedule=schedule,
        numbers=numbers,
    )
    z = method(networks, weights, request, size)
    result, finite = finish(networks, weights, z, pixels, match)
    return Result(
        result.reshape(b, e, *result.shape[1:]),
        finite.reshape(b, e),
        z.reshape(1, b, e, *z.shape[1:]),
        None,
    )
