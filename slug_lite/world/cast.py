"""The cast of the mini world: who exists, what they look like, and the words for it.

Everybody here is invented. Hair and beards that the drawing kit modelled on a real person or on somebody's
protected character are left out. Descriptions never mention skin.
"""

from __future__ import annotations

from typing import NamedTuple


class Person(NamedTuple):
    hair: str  # name of the drawing kit's hair
    hair_color: str  # key of HAIR_COLORS
    skin: str  # key of SKIN_COLORS
    beard: str
    glasses: str
    looks: tuple[str, ...]  # the same in words, for captions that describe


class Character(NamedTuple):
    source: str  # file name of its drawings
    looks: str


class Look(NamedTuple):
    source: str  # icon set that the drawings come from
    looks: str


HAIR_COLORS = {
    "auburn": "#A55728", "black": "#2C1B18", "blond": "#D6B370", "brown": "#724133", "pink": "#F59797",
    "platinum": "#ECDCBF", "red": "#C93305", "silver": "#C9CDD6", "blue": "#3A7BD5", "green": "#4FA36B",
    "purple": "#7E57C2",
}  # fmt: skip
SKIN_COLORS = {
    "a": "#FD9841", "b": "#F8D25C", "c": "#FFDBB4", "d": "#EDB98A", "e": "#D08B5B", "f": "#AE5D29", "g": "#614335",
}  # fmt: skip
CLOTH_COLORS = (
    "#262E33", "#65C9FF", "#5199E4", "#25557C", "#E6E6E6", "#929598", "#3C4F5C", "#B1E2FF", "#A7FFC4",
    "#FFDEB5", "#FFFFB1", "#FF488E", "#FF5C5C", "#FFFFFF",
)  # fmt: skip
EYES = (
    "CLOSED", "CRY", "DEFAULT", "EYE_ROLL", "HAPPY", "HEART", "SIDE", "SQUINT", "SURPRISED", "WINK", "WINK_WACKY",
    "X_DIZZY",
)  # fmt: skip
EYEBROWS = (
    "ANGRY", "ANGRY_NATURAL", "DEFAULT", "DEFAULT_NATURAL", "FLAT_NATURAL", "FROWN_NATURAL", "RAISED_EXCITED",
    "RAISED_EXCITED_NATURAL", "SAD_CONCERNED", "SAD_CONCERNED_NATURAL", "UP_DOWN", "UP_DOWN_NATURAL",
)  # fmt: skip
NOSES = ("DEFAULT", "SMALL", "WIDE")
MOUTHS = (
    "BIG_SMILE", "CONCERNED", "DEFAULT", "DISBELIEF", "EATING", "GRIMACE", "SAD", "SCREAM_OPEN", "SERIOUS", "SMILE",
    "TONGUE", "TWINKLE",
)  # fmt: skip
CLOTHES = (
    "BLAZER_SHIRT", "BLAZER_SWEATER", "BOND_SUIT", "COLLAR_SWEATER", "HOODIE", "OVERALL", "SHIRT_CREW_NECK",
    "SHIRT_SCOOP_NECK", "SHIRT_V_NECK",
)  # fmt: skip

PEOPLE = {
    "Ada Sunfield": Person("BIG_HAIR", "red", "d", "NONE", "ROUND", ("big red hair", "round glasses")),
    "Bruno Marlowick": Person(
        "SHORT_FLAT", "silver", "a", "MOUSTACHE_MAGNUM", "NONE", ("short silver hair", "a bushy moustache")
    ),
    "Cleo Okavarro": Person("FRO", "pink", "f", "NONE", "NONE", ("a pink afro",)),
    "Dario Lindqvist": Person("QUIFF", "blond", "c", "BEARD_LIGHT", "NONE", ("a blond quiff", "a short beard")),
    "Elif Tanabora": Person(
        "STRAIGHT_1", "black", "c", "NONE", "PRESCRIPTION_2", ("long straight black hair", "square glasses")
    ),
    "Felix Moorhaven": Person("MOHAWK", "green", "d", "NONE", "NONE", ("a green mohawk",)),
    "Greta Castellume": Person("BUN", "silver", "b", "NONE", "ROUND", ("a silver bun", "round glasses")),
    "Hugo Duportal": Person("NONE", "black", "e", "BEARD_MAGESTIC", "NONE", ("a bald head", "a long black beard")),
    "Ines Bergamotte": Person("LONG_HAIR_CURLY", "auburn", "a", "NONE", "NONE", ("long auburn waves",)),
    "Jonas Ferrowick": Person(
        "SHAGGY", "red", "c", "BEARD_MEDIUM", "SUNGLASSES", ("shaggy red hair", "a full red beard", "sunglasses")
    ),
    "Kira Novalune": Person("PIXIE", "purple", "b", "NONE", "PRESCRIPTION_1", ("a purple pixie cut", "white glasses")),
    "Leon Haddarby": Person(
        "SHORT_DREADS_2", "black", "g", "MOUSTACHE_FANCY", "NONE", ("short black locs", "a curled moustache")
    ),
    "Maya Ivarstone": Person("BOB", "platinum", "d", "NONE", "SUNGLASSES", ("a platinum bob", "sunglasses")),
    "Nico Jansworth": Person("CORNROWS", "brown", "f", "NONE", "PRESCRIPTION_2", ("brown cornrows", "square glasses")),
    "Olga Kowalune": Person("BRAIDS", "blond", "c", "NONE", "NONE", ("blond braids tied up",)),
    "Pavel Lauremont": Person(
        "SIDES", "brown", "d", "MOUSTACHE_FANCY", "ROUND", ("thin brown hair", "a curled moustache", "round glasses")
    ),
    "Quinn Mbekiri": Person("HALF_SHAVED", "blue", "g", "NONE", "NONE", ("half-shaved blue hair",)),
    "Rosa Nakamoor": Person("STRAIGHT_STRAND", "pink", "e", "NONE", "NONE", ("long straight pink hair",)),
    "Sami Orlovane": Person("CURLY", "black", "e", "NONE", "EYEPATCH", ("curly black hair", "an eyepatch")),
    "Tara Petrovale": Person(
        "TWIST_LONG_HAIR", "purple", "f", "NONE", "SUNGLASSES", ("long purple twists", "sunglasses")
    ),
    "Ugo Quillberg": Person("EVIL_SPIKE", "brown", "b", "NONE", "NONE", ("spiked brown hair",)),
    "Vera Rossaline": Person(
        "DREADLOCKS", "auburn", "c", "NONE", "PRESCRIPTION_1", ("auburn pigtails", "white glasses")
    ),
    "Wanda Silvermere": Person("WILD", "silver", "g", "NONE", "NONE", ("wild silver hair",)),
    "Yuri Thornevik": Person(
        "SHORT_CURLY", "blue", "a", "BEARD_MAGESTIC", "NONE", ("short blue hair", "a long blue beard")
    ),
}

CHARACTERS = {
    "Zorbo": Character("alien", "a visitor from space with big dark eyes"),
    "Whispering Willa": Character("ghost", "a playful spirit that floats"),
    "Shade Kuro": Character("ninja", "a masked fighter in black"),
    "Gearhart": Character("robot", "a machine with a metal head"),
    "Cinderwing": Character("dragon", "a winged beast that breathes fire"),
    "Countess Vesper": Character("woman-vampire", "a pale lady of the night with fangs"),
    "Old Marrow": Character("man-mage", "an old wizard with a pointed hat"),
    "Lumi Starhorn": Character("unicorn", "a magic pony with one horn"),
}

OBJECTS = {
    "dog": "a pet that barks", "cat": "a pet that purrs", "horse": "an animal that gallops",
    "cow": "a farm animal that gives milk", "pig": "a farm animal with a flat snout",
    "rabbit": "an animal with long ears", "bear": "a big brown forest animal",
    "panda": "a black and white animal that eats bamboo", "fox": "a sly orange animal",
    "lion": "a wild animal with a mane", "frog": "a green animal that croaks",
    "penguin": "a bird that swims", "snail": "a slow animal with a spiral shell",
    "whale": "a giant of the sea", "butterfly": "an insect with painted wings",
    "turtle": "an animal with a green shell", "cactus": "a desert plant with spines",
    "sunflower": "a tall yellow flower", "rose": "a red flower with thorns",
    "mushroom": "a red cap with white dots", "banana": "a long yellow fruit",
    "strawberry": "a red fruit with small seeds", "pizza": "a slice with melted cheese",
    "hamburger": "a bun with meat and salad", "rocket": "a ship that flies to space",
    "sailboat": "a ship that the wind drives", "house": "a building for a family",
    "castle": "a building with towers", "guitar": "an instrument with strings",
    "trumpet": "an instrument of brass", "crown": "golden headwear of a king", "bicycle": "a vehicle with two wheels",
}  # fmt: skip

STYLES = {
    "Papercut": Look("fluent-emoji-flat", "flat bold shapes"),
    "Clay": Look("fluent-emoji", "soft shaded shapes"),
    "Inkstamp": Look("fluent-emoji-high-contrast", "thick black lines"),
    "Storybook": Look("noto", "rich detail and gentle shadows"),
    "Gumdrop": Look("noto-v1", "round friendly shapes"),
    "Fineliner": Look("openmoji", "thin dark outlines"),
    "Sticker": Look("twemoji", "plain shapes and few colours"),
    "Enamel": Look("emojione", "bright polished shapes"),
}
