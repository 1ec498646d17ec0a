"""What of a folder's configuration may reach a loader: a known few keys, and sizes that its weights bear out.

A configuration is somebody else's input. open_clip hands what stands in it on to transformers and timm, which take
paths, names on the hub and switches that run a folder's Python; and a model is built before its weights are looked at.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from .files import JSON_LIMIT, TEXT_LIMIT, Header, read_json
from .labels import shown

_TOP = {
    "embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "quick_gelu", "custom_text", "init_logit_scale",
    "init_logit_bias", "nonscalar_logit_scale",
}  # fmt: skip
_PARTS = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
# Dictionaries within a part, and what may stand in them
_INNER = {
    "act_kwargs": {"approximate"}, "norm_kwargs": {"eps", "elementwise_affine", "bias"},
    "tokenizer_kwargs": {"clean", "strip_sep_token"},
}  # fmt: skip
_PREPROCESS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
_CHOICES = {
    "clean": ("lower", "whitespace", "canonicalize"), "tokenizer_mode": ("", "clips"), "mode": ("RGB",),
    "interpolation": ("bicubic", "bilinear", "random"), "resize_mode": ("shortest", "longest", "squash"),
}  # fmt: skip
_MOST = {"image_size": 2048, "size": 2048, "context_length": 2048}  # what costs memory although no weight shows it
# Tokenizers that CLIPs have; what their files may say. No path among it, and nothing that names code.
_TOKENIZERS = (
    "BertTokenizer", "CLIPTokenizer", "GemmaTokenizer", "MT5Tokenizer", "NllbTokenizer", "PreTrainedTokenizer",
    "RobertaTokenizer", "SiglipTokenizer", "T5Tokenizer", "XLMRobertaTokenizer",
)  # fmt: skip
_TOKENIZER_KEYS = {
    "add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder", "additional_special_tokens",
    "backend", "bos_token", "chat_template", "clean_up_tokenization_spaces", "cls_token", "do_basic_tokenize",
    "do_lower_case",
    "eos_token", "errors", "extra_ids", "extra_special_tokens", "is_local", "language_codes", "legacy",
    "legacy_behaviour", "local_files_only", "mask_token", "max_length", "model_input_names", "model_max_length",
    "name_or_path", "never_split", "pad_to_multiple_of", "pad_token", "pad_token_type_id", "padding_side",
    "processor_class", "sep_token", "sp_model_kwargs", "spaces_between_special_tokens", "special_tokens_map_file",
    "split_special_tokens", "src_lang", "stride", "strip_accents", "tgt_lang", "tokenize_chinese_chars",
    "tokenizer_class", "trim_offsets", "truncation_side", "truncation_strategy", "unk_token",
    "use_default_system_prompt", "use_fast",
}  # fmt: skip

# What a tokenizer of transformers is read from; the vocabulary may be long
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_TOKENIZER_MOST = {"extra_ids": 1_000, "pad_to_multiple_of": 1_000, "stride": 1_000}
# What may stand in tokenizer.json
_BACKEND_KEYS = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
    "model",
}  # fmt: skip
_BACKEND_MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
_NORMALIZERS = (
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Prepend", "Replace", "Strip",
    "StripAccents",
)  # fmt: skip
_PART_LIMIT = 10_000  # characters of a step of it, but for the normalizer


def check_known(found: object, allowed: Collection[str], where: str) -> None:
    """ValueError unless `found` is a table whose keys are all among `allowed`."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} is {shown(found)!r}; a table is needed")
    others = sorted(shown(key) for key in found if key not in allowed)
    if others:
        raise ValueError(
            f"{where} holds {others[0]!r}, which is not handed on to any loader; take it out. Allowed: "
            f"{', '.join(sorted(allowed))}"
        )


def check_clip_config(content: Mapping[str, Any], head: Header, where: str) -> None:
    """ValueError unless a configuration of open_clip holds what is known alone, in sizes that the weights bear out."""
    config = content["model_cfg"]
    check_known(config, _TOP, f"the model_cfg of {where}")
    for part, kind in _PARTS.items():
        if part in config:
            check_known(config[part], {field.name for field in fields(kind)}, f"the {part} of {where}")
            for key, value in config[part].items():
                if key in _INNER and value is not None:
                    check_known(value, _INNER[key], f"{key} of {where}")
                    _check_values(value, f"{key} of {where}")
            _check_values({k: v for k, v in config[part].items() if k not in _INNER}, f"the {part} of {where}")
    _check_values({key: value for key, value in config.items() if key not in _PARTS}, f"the model_cfg of {where}")
    preprocess = content.get("preprocess_cfg") or {}
    check_known(preprocess, _PREPROCESS, f"the preprocess_cfg of {where}")
    _check_values(preprocess, f"the preprocess_cfg of {where}")
    _check_names(config, where)
    _check_sizes(config, head, where)


def _check_values(table: Mapping[str, Any], where: str) -> None:
    """ValueError for what is neither a number, a short text, a choice that is known, nor four numbers at most."""
    for key, value in table.items():
        values = value if isinstance(value, list) and len(value) <= 4 else [value]
        for one in values:
            good = one is None or (isinstance(one, str) and len(one) <= 100 and one.isprintable())
            good |= isinstance(one, (bool, int, float)) and abs(one) < 1 << 31  # which NaN is not
            if not good or (key in _CHOICES and one not in (None, *_CHOICES[key])):
                allowed = f"; allowed: {', '.join(map(repr, _CHOICES[key]))}" if key in _CHOICES else ""
                raise ValueError(f"{key!r} in {where} is {shown(repr(value))}, which no CLIP has{allowed}")
            if key in _MOST and isinstance(one, (int, float)) and one > _MOST[key]:
                raise ValueError(f"{key!r} in {where} is {shown(value)}; at most {_MOST[key]:,} is allowed")


def _check_names(config: Mapping[str, Any], where: str) -> None:
    """ValueError for a tower by a name that is not timm's own, or not one that open_clip itself knows."""
    timm_name, hf_name = config["vision_cfg"].get("timm_model_name"), config["text_cfg"].get("hf_model_name")
    if timm_name:
        import timm

        if not re.fullmatch(r"\w+(\.\w+)?", str(timm_name)) or not timm.is_model(timm_name):
            raise ValueError(f"timm_model_name in {where} is {shown(timm_name)!r}; a model of timm's own is allowed")
    if not hf_name:
        return
    texts = [open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()]
    own = {text["hf_model_name"] for text in texts if "hf_model_name" in text}
    if hf_name not in own:
        raise ValueError(f"hf_model_name in {where} is {shown(hf_name)!r}; allowed: {', '.join(sorted(own))}")


def _check_sizes(config: Mapping[str, Any], head: Header, where: str) -> None:
    """ValueError for a model that would have more numbers, or more layers, than the file of its weights holds."""
    try:
        layers, asked = _layers_and_numbers(config)
        if layers <= len(head.tensors) and asked <= head.size and _by_name(config):
            asked = _built_of_nothing(config)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"the sizes in {where} are none: {error}") from error
    if layers > len(head.tensors) or asked > head.size:
        raise ValueError(
            f"{where} asks for {layers:,.0f} layers and {asked:.3g} numbers at least; the weights beside it are not "
            f"those of its configuration: {len(head.tensors):,} tensors of {head.size:.3g} numbers"
        )


def _layers_and_numbers(config: Mapping[str, Any]) -> tuple[float, float]:
    """How many layers the towers of open_clip's own kinds have, and at the least how many numbers."""
    vision = asdict(CLIPVisionCfg()) | config["vision_cfg"]
    width, layers, embed = vision["width"], vision["layers"], config["embed_dim"]
    numbers, depth = embed, 0
    if vision["timm_model_name"]:
        pass
    elif isinstance(layers, list):  # a ResNet: in each block a 3 x 3 convolution, and two of 1 x 1
        depth += sum(layers)
        numbers += sum(count * 9 * (width * 2**k) ** 2 for k, count in enumerate(layers))
    else:
        side, patch = _largest(vision["image_size"]) // _largest(vision["patch_size"]), _largest(vision["patch_size"])
        pooled = vision["attn_pooler_queries"] * embed if vision["attentional_pool"] else 0
        depth += layers
        numbers += _blocks(layers, width, vision["mlp_ratio"]) + 3 * patch**2 * width + side**2 * width + pooled
    towers = [asdict(CLIPTextCfg()) | config["text_cfg"]]
    if "multimodal_cfg" in config:
        towers.append(asdict(MultimodalCfg()) | config["multimodal_cfg"])
    for text in towers:
        if not text["hf_model_name"]:
            depth += text["layers"]
            numbers += _blocks(text["layers"], text["width"], text["mlp_ratio"]) + embed
            numbers += (text["vocab_size"] + text["context_length"]) * text["width"] if text is towers[0] else 0
    return depth, numbers


def _largest(value: Any) -> int:
    return max(value) if isinstance(value, list) else value


def _blocks(layers: float, width: float, ratio: float) -> float:
    """The numbers of a transformer's matrices."""
    if layers < 0 or width < 0 or ratio < 0:
        raise ValueError(f"{layers} layers, width {width}, mlp_ratio {ratio}")
    return layers * (4 * width * width + 2 * int(width * ratio) * width)


def _by_name(config: Mapping[str, Any]) -> bool:
    """Is a tower given by the name of another library's model, whose size the configuration does not say?"""
    return bool(config["vision_cfg"].get("timm_model_name") or config["text_cfg"].get("hf_model_name"))


def _built_of_nothing(config: Mapping[str, Any]) -> int:
    """How many numbers such a model has: it is built on the meta device, where tensors have no memory."""
    config = {key: dict(value) if key in _PARTS else value for key, value in config.items()}
    config["vision_cfg"]["timm_model_pretrained"] = config["text_cfg"]["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or config["text_cfg"].get("hf_model_name")
    several = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    with torch.device("meta"):
        model = (several if custom else open_clip.CLIP)(**config)
    return sum(p.numel() for p in model.parameters())


def copy_tokenizer(folder: Path, own: Path) -> None:
    """Copy a tokenizer's files into a folder of our own. ValueError for a path, code, or a class no CLIP has in them.

    What else lies in `folder` is left there: transformers goes by a config.json into other classes and into subfolders.
    """
    files = _tokenizer_files(folder)
    kind = None
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in files:
            content = _tokenizer_config(files[name])
            kind = content.get("tokenizer_class")
    if kind is None:
        raise ValueError(
            f"{str(folder / 'tokenizer_config.json')!r} names no tokenizer_class; allowed: {', '.join(_TOKENIZERS)}"
        )
    if "tokenizer.json" in files:
        _check_backend(files["tokenizer.json"])
    for name, file in files.items():
        shutil.copyfile(file, own / name)


def _tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files in a folder that a tokenizer is read from, by name. ValueError for too long ones and for no files."""
    found = sorted({file for name in TOKENIZER_FILES for file in folder.glob(name)})
    for file in found:
        if not file.is_file():
            raise ValueError(f"{str(file)!r} is no regular file")
        most = TEXT_LIMIT if file.name in _VOCABULARIES or file.suffix == ".model" else JSON_LIMIT
        if file.stat().st_size > most:
            raise ValueError(f"{str(file)!r} has {file.stat().st_size:,} bytes; at most {most:,} are read")
    return {file.name: file for file in found}


def _tokenizer_config(file: Path) -> dict[str, Any]:
    """What a tokenizer's configuration says. ValueError for unknown keys and classes, and for numbers too large."""
    content = read_json(file)
    check_known(content, _TOKENIZER_KEYS, repr(str(file)))
    _check_class(content, file)
    if content.get("sp_model_kwargs"):
        raise ValueError(f"{str(file)!r} holds sp_model_kwargs, {shown(content['sp_model_kwargs'])!r}; take it out")
    for key, most in _TOKENIZER_MOST.items():
        value = content.get(key)
        if value is not None and not (isinstance(value, int) and 0 <= value <= most):
            raise ValueError(f"{key!r} in {str(file)!r} is {shown(value)!r}; a number from 0 to {most:,} is allowed")
    return content


def _check_class(content: Mapping[str, Any], file: Path) -> None:
    kind = content.get("tokenizer_class")
    if kind is not None and str(kind).removesuffix("Fast") not in (*_TOKENIZERS, "TokenizersBackend"):
        raise ValueError(
            f"the tokenizer_class in {str(file)!r} is {shown(kind)!r}; allowed: {', '.join(_TOKENIZERS)}, each also "
            "with Fast behind it"
        )


def _check_backend(file: Path) -> None:
    """ValueError for a tokenizer.json whose steps no CLIP's has: by some of them one letter becomes a million."""
    content = read_json(file, TEXT_LIMIT)
    check_known(content, _BACKEND_KEYS, repr(str(file)))
    if not isinstance(model := content.get("model"), dict) or model.get("type", "BPE") not in _BACKEND_MODELS:
        raise ValueError(f"the model in {str(file)!r} has another type; allowed: {', '.join(_BACKEND_MODELS)}")
    for key in ("truncation", "padding", "pre_tokenizer", "post_processor", "decoder"):
        if (length := len(json.dumps(content.get(key)))) > _PART_LIMIT:
            raise ValueError(f"the {key} in {str(file)!r} has {length:,} characters; at most {_PART_LIMIT:,} are read")
    steps = list(_steps(content.get("normalizer")))
    if len(steps) > 16 or sum(step.get("type") == "Precompiled" for step in steps) > 1:
        raise ValueError(f"the normalizer in {str(file)!r} has {len(steps)} steps; 16, one Precompiled, are allowed")
    for step in steps:
        kind, text = step.get("type"), step.get("content", step.get("prepend", ""))
        if kind not in _NORMALIZERS or not isinstance(text, str) or len(text) > 1:
            raise ValueError(
                f"a step of the normalizer in {str(file)!r} is {shown(step)}; allowed: {', '.join(_NORMALIZERS)}, "
                "each putting in one character at most"
            )
        if kind == "Precompiled" and (longest := _longest(step)) > 64:
            raise ValueError(f"Precompiled in {str(file)!r} puts in {longest:,} bytes for a letter; 64 are allowed")


def _steps(normalizer: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, those of its sequences one by one."""
    if normalizer is None:
        return
    if not isinstance(normalizer, dict) or depth > 4:
        raise ValueError(f"a step of a normalizer is {shown(normalizer)}; a table is needed")
    if normalizer.get("type") != "Sequence":
        yield normalizer
        return
    for one in normalizer.get("normalizers") or []:
        yield from _steps(one, depth + 1)


def _longest(step: Mapping[str, Any]) -> int:
    """How many bytes sentencepiece's table puts in for a letter at most: they follow a trie, each with a zero."""
    try:
        table = base64.b64decode(str(step.get("precompiled_charsmap")), validate=True)
    except ValueError as error:
        raise ValueError(f"the precompiled_charsmap of a normalizer is no base64: {error}") from error
    return max(map(len, table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")))


def made_tokenizer(make: Callable[[], Any], tokenize: Callable[[Any], object], where: str) -> Any:
    """What `make` makes, tried once by `tokenize`. ValueError for files that no tokenizer can be made of.

    The tokenizers of Rust raise a bare Exception, and where Rust panics, what is no Exception at all.
    """
    try:
        tokenizer = make()
        tokenize(tokenizer)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = shown(" ".join(str(error).split()), 300)
        raise ValueError(f"{where} is no tokenizer of its files: {type(error).__name__}: {reason}") from error
    return tokenizer
