"""SLUG, Single Layer Unlearning Gradient (Cai, Tan, Asif, ICML 2025, arXiv 2407.11867): forget with one layer."""

from . import toonworld
from .attention import attention_maps
from .canvas import canvas, frechet
from .diffusion import generated_pairs, load_diffusion
from .drawn import DrawnValidation
from .edit import Edit, fingerprint, merge
from .gradients import Gradients, editable, one_shot_gradients
from .judge import Judge, load_judge
from .losses import forget_loss, retain_loss
from .metrics import Validation, evaluate, zero_shot_classifier
from .models import Clip, load_clip
from .pairs import Pairs
from .search import search_step
from .selection import pareto_front
from .unlearn import NothingForgets, unlearn

__all__ = [
    "Clip", "DrawnValidation", "Edit", "Gradients", "Judge", "NothingForgets", "Pairs", "Validation", "attention_maps",
    "canvas", "editable", "evaluate", "fingerprint", "forget_loss", "frechet", "generated_pairs", "load_clip",
    "load_diffusion", "load_judge", "merge", "one_shot_gradients", "pareto_front", "retain_loss", "search_step",
    "toonworld", "unlearn", "zero_shot_classifier",
]  # fmt: skip
