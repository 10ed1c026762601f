"""Which labels are things that can have a mask, and which are said twice."""

from collections.abc import Sequence

# Words of prompts that name no thing. A label goes if it is made of these and qualifiers alone, so that
# "soft lighting" goes, and "shadow puppet" stays.
_WORDS = """
light lighting lights sunlight moonlight backlight backlighting shadow shadows glow highlights reflection reflections
mood atmosphere ambience ambiance vibe vibes aesthetic aesthetics style composition perspective angle view viewpoint
background foreground backdrop scene scenery setting surroundings environment photo photograph photography picture image
illustration render rendering artwork art shot close-up closeup resolution quality detail details masterpiece bokeh blur
focus exposure contrast saturation grain texture textures color colors colour colours tone tones palette hue hues
pattern patterns shape shapes structure 4k 8k hd uhd hdr raytracing octane photorealism realism day night morning
evening afternoon noon dawn dusk sunrise sunset twilight midnight spring summer autumn fall winter season weather time
moment distance middle center centre left right top bottom side front back edge corner lot number group variety
artstation
"""
_TERMS = (
    "depth of field",
    "golden hour",
    "blue hour",
    "rule of thirds",
    "point of view",
    "art station",
    "unreal engine",
)
_QUALIFIERS = """
soft hard warm cold cool golden natural ambient cinematic dramatic bright dim dark harsh gentle moody eerie studio
volumetric rim vintage retro modern minimalist realistic photorealistic hyperrealistic surreal abstract artistic
aesthetic elegant beautiful stunning gorgeous epic vivid vibrant muted pastel neon high low highly ultra very extremely
intricate sharp shallow deep detailed professional award winning long short wide narrow close late early sunny cloudy
rainy foggy misty snowy stormy starry quiet calm peaceful rich subtle diffuse diffused overall general blurry blurred
anime cartoon digital impressionist baroque a an the of and in with its his her their this that rustic painterly dreamy
cozy light
"""
EXCLUDED: tuple[str, ...] = (*_WORDS.split(), *_TERMS)
QUALIFIERS: tuple[str, ...] = tuple(_QUALIFIERS.split())
_ARTICLES = {"a", "an", "the", "some", "any", "this", "that", "these", "those"}


def normal(label: str) -> str:
    """A label for comparison: lower case, single spaces, no article before it."""
    words = label.lower().split()
    while len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(words)


def is_thing(label: str, excluded: Sequence[str] = EXCLUDED, qualifiers: Sequence[str] = QUALIFIERS) -> bool:
    """Whether a label names something that can have a mask."""
    own = normal(label)
    terms = {normal(term) for term in excluded}
    if own in terms:
        return False
    for term in sorted((t for t in terms if " " in t), key=len, reverse=True):
        own = f" {own} ".replace(f" {term} ", f" {term.replace(' ', '_')} ").strip()
    single = {term.replace(" ", "_") for term in terms}
    weak = {word.lower() for word in qualifiers}
    words = own.split()
    return not (any(word in single for word in words) and all(word in single or word in weak for word in words))


def filter_labels(
    labels: Sequence[str],
    excluded: Sequence[str] = EXCLUDED,
    qualifiers: Sequence[str] = QUALIFIERS,
    most: int | None = None,
) -> list[str]:
    """Labels that name things, each once, in order; articles in front are dropped.

    Args:
        labels: As they were extracted.
        excluded: Terms that name no thing.
        qualifiers: Words that do not make a thing of an excluded term.
        most: Longest list; all by default.
    """
    kept: dict[str, str] = {}
    for label in labels:
        key = normal(label)
        if key and key not in kept and is_thing(key, excluded, qualifiers):
            words = label.split()
            kept[key] = " ".join(words[len(words) - len(key.split()) :])
    return list(kept.values())[:most]
