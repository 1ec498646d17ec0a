"""Folders of pipelines: what a loader gets to see of one, which is never the folder itself.

diffusers runs a component's Python where it lies in a folder, and both libraries make random what a file lacks. So a
loader gets a folder of our own: configurations with the keys that its classes know, and links to the very files of
weights that were looked at before, whose tensors are, name by name and shape by shape, those of the model to be built.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from .configs import copy_tokenizer, made_tokenizer
from .files import Header, check_tensors, header, read_json, safe_files
from .labels import shown

MODELS = {
    "unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}  # fmt: skip
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
# What is checked before anything is built, even of nothing: how often a loop goes round, and what takes memory
_LOOPS = ("layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
_MOST = {"num_hidden_layers": 256, "max_position_embeddings": 4096, "vocab_size": 1 << 20, "sample_size": 1024}
_LARGEST = 1 << 17
# Attention in the names of long ago, which diffusers translates
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
# What files of text encoders hold beyond a CLIPTextModel: transformers leaves it aside
_ASIDE = re.compile(
    r"(.*\.)?position_ids|text_projection\.weight|logit_scale|vision_model\..*|visual_projection\.weight"
)


def check_pipeline(folder: Path) -> dict[str, Any]:
    """The index of a StableDiffusionPipeline, as far as it is admitted. FileNotFoundError, ValueError for others."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    index = folder / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no model_index.json, so it is no pipeline of diffusers")
    try:
        content = read_json(index)
        kind = content["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(index)!r} is no pipeline's index with a '_class_name': {error}") from error
    if kind != "StableDiffusionPipeline":
        raise ValueError(f"{str(folder)!r} holds a {shown(kind)}; a StableDiffusionPipeline is needed")
    for part in (*MODELS, "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"the pipeline in {str(folder)!r} has no {part}")
    wanted = {part: [list(kind)] for part, kind in MODELS.items()}
    wanted["tokenizer"] = [["transformers", name] for name in _TOKENIZERS]
    for part, allowed in wanted.items():
        if content.get(part) not in allowed:
            raise ValueError(
                f"{part} in {str(index)!r} is {shown(content.get(part))}; allowed: "
                f"{' or '.join('.'.join(one) for one in allowed)}"
            )
    none = {part: [None, None] for part in ("safety_checker", "feature_extractor", "image_encoder")}
    found = {part: content[part] for part in wanted} | {"scheduler": ["diffusers", _scheduler(content, index)]}
    about = {"_class_name": kind, "_diffusers_version": _version(content), "requires_safety_checker": False}
    return {**about, **none, **found}


def _scheduler(content: Mapping[str, Any], index: Path) -> str:
    """The name of a pipeline's scheduler. ValueError for one that is not diffusers' own."""
    import diffusers

    library, name = found if isinstance(found := content.get("scheduler"), list) and len(found) == 2 else (None, None)
    kind = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Scheduler") else None
    if library != "diffusers" or not issubclass(kind or object, diffusers.SchedulerMixin):
        raise ValueError(f"scheduler in {str(index)!r} is {shown(found)}; one of diffusers' own schedulers is allowed")
    return name


def admit(folder: Path, own: Path) -> Path:
    """An empty folder, filled with what may be read of a pipeline. FileNotFoundError, or ValueError."""
    index = check_pipeline(folder)
    heads = {part: _weights(folder / part) for part in MODELS}
    configs = {part: _config(folder / part) for part in MODELS}
    for part in MODELS:
        _check_model(folder / part, part, configs[part], heads[part])
    scheduler = _scheduler_config(folder / "scheduler", index["scheduler"][1])
    (own / "model_index.json").write_text(json.dumps(index))
    for part, config in configs.items():
        (own / part).mkdir()
        (own / part / "config.json").write_text(json.dumps(config))
        _link(heads[part], own / part)
    (own / "scheduler").mkdir()
    (own / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (own / "tokenizer").mkdir()
    copy_tokenizer(folder / "tokenizer", own / "tokenizer")
    return own


def read_text_encoder(own: Path, dtype: torch.dtype) -> nn.Module:
    """The text encoder of a folder that `admit` filled, in eval mode, each of its tensors out of the files.

    transformers' own loader knows the names of one of its versions, and makes random what goes by the other's.
    """
    config = read_json(own / "text_encoder" / "config.json")
    model = _built("text_encoder", config)
    weights = {name: x for file in (own / "text_encoder").glob("*.safetensors") for name, x in load_file(file).items()}
    taken = {_modern(name): x for name, x in weights.items() if not _ASIDE.fullmatch(name)}
    getattr(model, "text_model", model).load_state_dict(taken, strict=True)
    return model.to(dtype).eval()


def read_tokenizer(own: Path, folder: Path) -> Any:
    """The tokenizer of a folder that `admit` filled. ValueError for bad files; folder: what it is called by."""
    import transformers

    kind = getattr(transformers, read_json(own / "model_index.json")["tokenizer"][1])
    where = folder / "tokenizer"

    def make() -> Any:
        return kind.from_pretrained(own / "tokenizer", local_files_only=True, trust_remote_code=False)

    made = made_tokenizer(make, lambda it: it(["a cat", ""]), repr(str(where)))
    if not 0 < made.model_max_length <= _MOST["max_position_embeddings"]:  # every prompt is made as long as this
        raise ValueError(
            f"model_max_length in {str(where)!r} is {made.model_max_length:,}; from 1 to "
            f"{_MOST['max_position_embeddings']:,} is allowed"
        )
    made.name_or_path = str(where)
    return made


def _weights(folder: Path) -> dict[Path, Header]:
    """The files that hold a model's weights, with their headers: the one that loaders read, or those of an index."""
    name = "model" if folder.name == "text_encoder" else "diffusion_pytorch_model"
    file, index = folder / f"{name}.safetensors", folder / f"{name}.safetensors.index.json"
    if file.is_file():
        return {file: header(file)}
    if not index.is_file():
        found = ", ".join(file.name for file in safe_files(folder))
        raise FileNotFoundError(f"{str(folder)!r} has no {file.name}, which is what is read; it has {found}")
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{str(index)!r} has no 'weight_map' from tensors to files")
    for tensor, place in places.items():
        if not isinstance(place, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", place, re.ASCII):
            raise ValueError(
                f"{str(index)!r} says that {shown(tensor)!r} is in {shown(place)!r}; the name of a .safetensors file "
                "beside it is allowed"
            )
        if not (folder / place).is_file():
            raise FileNotFoundError(f"{str(index)!r} names {place!r}, which is not there")
    heads = {folder / place: header(folder / place) for place in sorted(set(places.values()))}
    told = {name: file.name for file, head in heads.items() for name in head.tensors}
    if told != places or sum(len(head.tensors) for head in heads.values()) != len(told):
        raise ValueError(f"{str(index)!r} does not say what the files that it names hold")
    return heads


def _link(heads: Mapping[Path, Header], own: Path) -> None:
    """Links to the files of weights, and their index, where there are several."""
    for file in heads:
        (own / file.name).symlink_to(file.resolve())
    if len(heads) > 1 or next(iter(heads)).stem not in ("model", "diffusion_pytorch_model"):
        name = "model" if own.name == "text_encoder" else "diffusion_pytorch_model"
        places = {name: file.name for file, head in heads.items() for name in head.tensors}
        index = {"metadata": {"total_size": sum(file.stat().st_size for file in heads)}, "weight_map": places}
        (own / f"{name}.safetensors.index.json").write_text(json.dumps(index))


def _table(file: Path) -> dict[str, Any]:
    """What a configuration says. FileNotFoundError for none, ValueError for what is no table."""
    if not file.is_file():
        raise FileNotFoundError(f"{str(file.parent)!r} has no {file.name}")
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} is no table")
    return content


def _config(folder: Path) -> dict[str, Any]:
    """A model's configuration, with what its class takes alone. ValueError for sizes that no model has."""
    kind = MODELS[folder.name][1]
    content = _table(file := folder / "config.json")
    if folder.name == "text_encoder":
        content = content.get("text_config", content) if content.get("model_type") == "clip" else content
        known: dict[str, Any] = {"architectures": [kind], "model_type": "clip_text_model"}
        taken = _TEXT_KEYS
    else:
        known = {"_class_name": kind, "_diffusers_version": _version(content)}
        taken = _taken(kind)
    config = {key: value for key, value in content.items() if key in taken}
    for key, value in config.items():
        _check_value(key, value, file)
    return config | known


def _taken(kind: str) -> list[str]:
    """What a class of diffusers takes from a configuration."""
    import diffusers

    return list(inspect.signature(getattr(diffusers, kind).__init__).parameters)[1:]


def _check_value(key: str, value: Any, file: Path, depth: int = 0) -> None:
    """ValueError for a value that no configuration of such a model has, before even a loop is gone through by it."""
    if isinstance(value, list) and depth < 3 and len(value) <= 64:
        for one in value:
            _check_value(key, one, file, depth + 1)
        return
    most = 64 if key in _LOOPS else _MOST.get(key, _LARGEST)
    good = value is None or (isinstance(value, str) and len(value) <= 100 and value.isprintable())
    if not good and not (isinstance(value, (bool, int, float)) and abs(value) <= most):
        raise ValueError(f"{key!r} in {str(file)!r} is {shown(value)!r}; at most {most:,} is allowed")


def _check_model(folder: Path, part: str, config: dict[str, Any], heads: Mapping[Path, Header]) -> None:
    """ValueError unless the files hold the model's tensors, and no others: it is built of nothing, to be compared."""
    found = {name: one for head in heads.values() for name, one in head.tensors.items()}
    found = {_modern(name): one for name, one in found.items() if part != "text_encoder" or not _ASIDE.fullmatch(name)}
    blocks = {name.split(".layers.")[1].split(".")[0] for name in found if ".layers." in name}
    try:
        if part == "text_encoder" and config.get("num_hidden_layers", 12) != len(blocks):
            raise ValueError(f"{config.get('num_hidden_layers', 12)} layers; the file has {len(blocks)}")
        if part != "text_encoder" and (least := _least_tensors(config)) > len(found):
            raise ValueError(f"it asks for {least:,} tensors at least; the file has {len(found):,}")
        with torch.device("meta"):
            model = _built(part, config)
    except Exception as error:  # whatever a constructor makes of sizes that do not go together
        reason = " ".join(str(error).split())[:400]
        raise ValueError(
            f"the pipeline cannot be loaded: {str(folder / 'config.json')!r} is no configuration of its weights: "
            f"{type(error).__name__}: {reason}"
        ) from error
    wanted = {name.removeprefix("text_model."): tuple(p.shape) for name, p in model.state_dict().items()}
    check_tensors(folder, {n: s for n, s in wanted.items() if not n.endswith("position_ids")}, found)


def _least_tensors(config: Mapping[str, Any]) -> int:
    """How many tensors a UNet or VAE has at the least: loops within loops, each short, go round a million times.

    A block of convolutions has 8 tensors or more, a layer of a transformer 16 or more.
    """
    import diffusers

    kind = inspect.signature(getattr(diffusers, config["_class_name"]).__init__).parameters
    told = {key: one.default for key, one in kind.items()} | dict(config)
    layers, deep = told["layers_per_block"], told.get("transformer_layers_per_block", 0)
    sides = [(told["down_block_types"], layers, deep)]
    ups = told.get("reverse_transformer_layers_per_block") or (deep[::-1] if isinstance(deep, list) else deep)
    sides.append((told["up_block_types"], layers[::-1] if isinstance(layers, list) else layers, ups))
    least = 0
    for kinds, layers, deep in sides:
        for place, name in enumerate(kinds):
            count = layers[place] if isinstance(layers, (list, tuple)) else layers
            depth = deep[place] if isinstance(deep, (list, tuple)) else deep
            depths = sum(depth) if isinstance(depth, list) else count * depth
            least += 8 * count + (16 * depths if name.startswith("CrossAttn") else 0)
    return least


def _modern(name: str) -> str:
    """A tensor's name as the libraries have it today, without the "text_model." of a text encoder."""
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def _built(part: str, config: dict[str, Any]) -> nn.Module:
    if part == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig(**{key: config[key] for key in _TEXT_KEYS if key in config}))
    import diffusers

    return getattr(diffusers, MODELS[part][1]).from_config(config)


def _scheduler_config(folder: Path, kind: str) -> dict[str, Any]:
    """A scheduler's configuration, with what its class takes alone. ValueError for numbers of another order."""
    content = _table(file := folder / "scheduler_config.json")
    taken = _taken(kind)
    config = {key: value for key, value in content.items() if key in taken and key != "trained_betas"}
    for key, value in config.items():
        if value not in (float("inf"), float("-inf")):  # bounds that are none
            _check_value(key, value, file)
    betas = content.get("trained_betas")
    many = isinstance(betas, list) and 0 < len(betas) <= 10_000
    if betas is not None and not (many and all(isinstance(beta, float) and 0 <= beta <= 1 for beta in betas)):
        raise ValueError(
            f"trained_betas in {str(file)!r} is {shown(betas)}; up to 10,000 numbers from 0 to 1 are known"
        )
    return {**config, "_class_name": kind, "_diffusers_version": _version(content), "trained_betas": betas}


def _version(content: Mapping[str, Any]) -> str:
    """The version of diffusers that wrote a configuration, by which it mends what old ones left out."""
    found = str(content.get("_diffusers_version"))
    return found if re.fullmatch(r"\d{1,3}(\.\d{1,3}){1,2}(\.\w{1,8})?", found, re.ASCII) else "0.34.0"
