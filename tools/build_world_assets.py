"""Collect the SVG sources of the mini world into slug_lite/assets/world (run once, by hand).

    pip install python-avatars==1.4.1
    npm pack @iconify-json/{fluent-emoji-flat,fluent-emoji,...}     # unpack each into ICONS/<set>/package
    python tools/build_world_assets.py ICONS

The package never needs python-avatars or the icon sets at run time: what it uses is written here,
people as fragments with `$slots`, everything else as one small SVG file a drawing.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import python_avatars as pa
from python_avatars.core import _get_path
from python_avatars.svg_parser import SVGParser

from slug_lite.world import cast

OUT = Path(__file__).parents[1] / "slug_lite" / "assets" / "world"
PARTS = {
    "eyes": (pa.EyeType, cast.EYES),
    "eyebrows": (pa.EyebrowType, cast.EYEBROWS),
    "nose": (pa.NoseType, cast.NOSES),
    "mouth": (pa.MouthType, cast.MOUTHS),
    "accessory": (pa.AccessoryType, {p.glasses for p in cast.PEOPLE.values()} - {"NONE"}),
    "facial_hair": (pa.FacialHairType, {p.beard for p in cast.PEOPLE.values()} - {"NONE"}),
    "clothing": (pa.ClothingType, cast.CLOTHES),
    "top": (pa.HairType, {p.hair for p in cast.PEOPLE.values()}),
}
COLOUR_SLOT = {"facial_hair": "Facial-Hair-Color", "clothing": "Fabric-Color", "top": "Hair-Color"}
COLOUR_NAME = {"facial_hair": "$hair_color", "clothing": "$cloth_color", "top": "$hair_color"}


def fragment(part: str, enum: type, name: str) -> str:
    """The SVG of one part, its colour and inner slots replaced by `$names`."""
    svg = SVGParser(_get_path(enum, getattr(enum, name)))
    if part in COLOUR_SLOT and (slot := svg.get_element_by_id(COLOUR_SLOT[part])):
        slot.set_attr("fill", COLOUR_NAME[part])
    if part == "top":
        for inner, key in (("Facial-Hair", "$facial_hair"), ("Accessory", "$accessory")):
            if found := svg.get_element_by_id(inner):
                found.set_content(key)
    return "".join(str(child) for child in svg.children())


def people() -> dict:
    base = SVGParser(_get_path(pa.AvatarStyle, pa.AvatarStyle.TRANSPARENT))
    base.get_element_by_id("Skin-Color").set_attr("fill", "$skin_color")
    for slot in ("Clothing", "Mouth", "Nose", "Eyes", "Eyebrow", "Top"):
        base.get_element_by_id(slot).set_content("$" + {"Eyebrow": "eyebrows"}.get(slot, slot.lower()))
    out = {"base": str(base), "source": f"python-avatars {importlib.metadata.version('python-avatars')}, MIT"}
    for part, (enum, names) in PARTS.items():
        out[part] = {name: fragment(part, enum, name) for name in sorted(names)}
    return out


def icon(sets: dict, name: str) -> str:
    key = name
    while key not in sets["icons"]:
        key = sets["aliases"][key]["parent"]
    body = sets["icons"][key]
    width, height = body.get("width", sets["width"]), body.get("height", sets["height"])
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'color="#222" viewBox="0 0 {width} {height}">{body["body"]}</svg>\n'
    )


def main(icons: Path) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "people.json").write_text(json.dumps(people(), indent=0) + "\n")
    for style, look in cast.STYLES.items():
        data = json.loads((icons / look.source / "package" / "icons.json").read_text())
        drawable = set(data["icons"]) | set(data.get("aliases", {}))
        folder = OUT / style.lower()
        folder.mkdir(exist_ok=True)
        wanted = {o: o for o in cast.OBJECTS} | {c.source: name for name, c in cast.CHARACTERS.items()}
        for source in wanted:
            if source in drawable:
                (folder / f"{source}.svg").write_text(icon(data, source))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
