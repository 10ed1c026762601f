"""Closed lists of English words, as far as finding the noun phrases of a prompt needs them."""


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _set("""
a an the this that these those some any each every no another his her its their my your our both several many few
various numerous countless all other
""")
NUMBERS = _set("""
one two three four five six seven eight nine ten eleven twelve twenty thirty fifty hundred thousand dozen half first
second third
""")
PREPOSITIONS = _set("""
on in at of with without by for from to into onto upon over under below beneath above behind beside besides between
among amongst amid across along against around near inside outside within through throughout toward towards off out up
down past via during after before beyond underneath alongside atop featuring including surrounding like as than per
about next while when where whose which who whom that's
""")
CONJUNCTIONS = _set("""
and or but nor plus then so yet both either neither
""")
PRONOUNS = _set("""
i you he she it we they me him us them himself herself itself themselves someone somebody something everyone
everything nothing nobody there here each-other what
""")
ADVERBS = _set("""
very extremely highly slightly gently softly brightly quickly slowly happily quietly calmly together alone away apart
closely nearby ahead outdoors indoors upside sideways straight forward forwards backwards not too also just only still
again almost nearly partially partly fully completely densely lightly heavily neatly freshly newly peacefully proudly
majestically elegantly gracefully beautifully carefully loosely tightly barely mostly
""")
AUXILIARIES = _set("""
is are was were be been being am has have had having do does did can could will would shall should may might must
isn't aren't
""")
# Base forms; their inflections are added below.
_VERBS = """
sit stand lie lean wear hold carry ride drive walk run jump fly swim play eat drink look stare gaze watch read write
sleep rest lay hang perch climb chase catch throw kick pull push drag pour cook bake cut fill cover surround overlook
face show depict contain include feature display reveal float drift sail soar glide hover rise grow bloom shine glow
burn fall drop land cross pass enter leave follow lead make take give get put place set keep use wave smile laugh talk
sing dance hug kiss fight point reach touch wrap tie dress paint draw decorate park wait work relax enjoy prepare
serve illuminate light reflect cast stretch emerge appear go come move turn spin curl crouch kneel nap bathe hide peek
graze feed bark crash splash stack arrange scatter line fit frame sip knit build repair fix clean sweep wash pet drape
mount parade skate ski surf row type examine inspect approach swing bounce roll race gallop roam wander hike explore
camp orbit launch
"""
_IRREGULAR = """
sat stood lay lain leant wore worn held rode ridden drove driven ran flew flown swam ate eaten drank drunk slept hung
caught threw thrown cut grew grown shone fell fallen left led made took taken gave given got put set kept sang sung
fought drew drawn lit went gone came hid hidden fed swung spun built swept knelt wound bound bent
"""


def _inflected(base: str) -> set[str]:
    short = len(base) <= 4 and base[-1] not in "aeiouwxy" and base[-2] in "aeiou" and base[-3:-2] not in tuple("aeiou")
    stem = base[:-1] if base.endswith("e") else base + base[-1] if short else base
    third = f"{base}es" if base.endswith(("s", "sh", "ch", "x", "z", "o")) else f"{base}s"
    if base.endswith("y") and base[-2] not in "aeiou":
        third = f"{base[:-1]}ies"
    if base == "lie":
        stem = "ly"
    return {third, f"{stem}ing", f"{stem}ed", f"{base}d" if base.endswith("e") else f"{stem}ed"}


INFLECTED = frozenset(form for base in _VERBS.split() for form in _inflected(base)) | _set(_IRREGULAR)
BASES = _set(_VERBS)
# Plurals and other nouns that look like forms of the verbs above.
NOUNS = _set("""
waves plants lights paints drinks drawings painting paintings building buildings ring rings king kings wing wings
string strings earring earrings ceiling ceilings clothing lightning morning evening wedding railing railings awning
awnings bedding parking spring stuffing sling swing swings dumpling dumplings pudding frosting icing flooring siding
lettering wiring duckling ducklings seedling seedlings sibling viking vikings sapling saplings herring stocking
stockings outing offspring thing things skates skis rows boats bed beds seed seeds weed weeds shed sheds sled sleds
reed reeds thread threads bread breads red head heads parks faces frames covers looks shows ropes leaves fireworks
dress dresses racket sails streets stacks stack cut cuts set sets paint light cover frame face dance camp camps place
pets leads lands falls lines cooks watch watches bark saw play park show look wave wait rest line fit glow fall drop
pass land lighting setting seating furnishing furnishings covering coverings table tables vegetable vegetables cable
cables stable stables olive olives hive fish dish goldfish starfish jellyfish catfish swordfish radish brush bush
locomotive locomotives detective native archive relative
""")
# "a photo of a dog": what holds the subject is not one.
PICTURES = _set("""
photo photograph picture image painting portrait illustration drawing sketch render rendering shot view snapshot
closeup close-up photos pictures images watercolor watercolour poster scene depiction still snap selfie headshot
""")
# "a group of people": what counts the things is not one.
COUNTS = _set("""
group pair couple bunch lot lots number set row rows series variety collection handful swarm flock herd pack team
crowd piece pieces slice pile stack bit kind type sort part top side edge middle bottom front back inside rest plenty
line array field host cluster assortment selection dozens hundreds thousands style center centre corner depth end use
""")
# After "of" these count all the same: "a field of wheat" is a field, and wheat.
HOLDERS = _set("""
field
""")
ADJECTIVES = _set("""
red orange yellow green blue purple pink brown black white grey gray golden silver dark light bright pale deep big
small large tiny huge giant little tall short long wide old young new ancient modern vintage wooden stone metal glass
soft warm cold hot wet dry clean dirty beautiful pretty cute happy sad empty full open closed broken round flat thick
thin heavy sunny cloudy rainy snowy foggy stormy calm quiet busy crowded colorful colourful striped checked solid
shiny rusty fluffy furry curly fresh ripe tropical medieval futuristic rustic cozy elegant serene majestic lush rocky
sandy grassy narrow steep distant lone lonely single asleep awake afloat abandoned detailed realistic shallow sharp
elderly friendly lovely woolly silly ugly lively cinematic photorealistic hyperrealistic surreal dramatic
""")
# Alone or at the end of a phrase these adjectives are things: "an orange", "a broken glass".
MATERIALS = _set("orange glass stone gold silver metal")
# Said of pictures, with an "of" that joins no thing.
FIXED = ("depth of field", "rule of thirds", "point of view", "work of art", "field of view")
