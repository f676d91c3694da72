"""What captions say of scenes."""

from ie_jax.data.world.scenes import ATTRIBUTES, RIGHT, Scene

THING = "a {surface} {colour} {shape}"
TEMPLATES = (
    "{thing} on {background}",
    "a picture of {thing} on {background}",
    "{background} with {thing}",
)
EMPTY_TEMPLATES = (
    "an empty {bare}",
    "a picture of nothing on {background}",
    "{background} with nothing",
)
SIDE_TEMPLATES = (
    *["{thing} at the {side} of {background}"] * 2,
    "{background} with {thing} at the {side}",
)
PAIR_TEMPLATES = (
    *["{left} left of {right} on {background}"] * 2,
    "{background} with {left} left of {right}",
)
"""Without "a picture of", for which 16 tokens are too few."""
SIDES = ("left", "right")
WORDS = sorted(
    {
        word
        for text in (
            *(*TEMPLATES, *EMPTY_TEMPLATES, *SIDE_TEMPLATES, *PAIR_TEMPLATES),
            *(THING, "a an background", *SIDES),
        )
        for word in text.split()
        if not word.startswith("{")
    }
    | {word for values in ATTRIBUTES.values() for word in values}
)
"""All words of all captions."""


def caption(scene: Scene, template: int | None = None) -> str:
    """What a scene shows, in words.

    Args:
        template: which wording, from 0 (`TEMPLATES`); None: the scene's own.
    """
    article = "an" if scene.background[0] in "aeiou" else "a"
    bare = f"{scene.background} background"
    words = {"bare": bare, "background": f"{article} {bare}"}
    shown = [(side, o) for side, o in zip(SIDES, scene.things, strict=False) if not o.empty]
    templates: tuple[str, ...]
    match [THING.format(**vars(thing)) for _, thing in shown]:
        case []:
            templates = EMPTY_TEMPLATES
        case [thing]:
            templates = TEMPLATES if len(scene.things) == 1 else SIDE_TEMPLATES
            words |= {"thing": thing, "side": shown[0][0]}
        case left, right:
            templates = PAIR_TEMPLATES
            words |= {"left": left, "right": right}
    return templates[scene.template if template is None else template].format(**words)


def named(caption: str) -> list[int]:
    """The value numbers that a scene's caption names, in the order of `ATTRIBUTES`; `nothing` where
    it names none."""
    if " at the right" in caption:
        first, second = "", caption
    else:
        first, _, second = caption.partition(" left of ")

    def number(attribute: str) -> int:
        right = attribute.startswith(RIGHT)
        text = caption if attribute == "background" else second if right else first
        values = ATTRIBUTES[attribute]
        return next((i for i, x in enumerate(values) if x in text.split()), len(values) - 1)

    return [number(attribute) for attribute in ATTRIBUTES]
