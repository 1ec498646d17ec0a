"""SLUG, Single Layer Unlearning Gradient (Cai, Tan, Asif, ICML 2025, arXiv 2407.11867): forget with one layer."""

from .algorithm import Task, as_task, unlearn
from .diffusion.attention import attention_maps
from .diffusion.drawing import generated_pairs
from .diffusion.pipelines import load_diffusion
from .diffusion.unlearning import unlearn_pipeline
from .edit import Edit, merge
from .gradients import Gradients, editable, one_shot_gradients
from .losses import forget_loss, retain_loss
from .models import Clip, load_clip
from .pairs import Pairs
from .runtime.batches import Memory
from .runtime.checks import NothingForgets
from .runtime.zero_shot import zero_shot_classifier
from .search import StepSearch, search_step
from .selection import pareto_front, pareto_fronts
from .several import unlearn_several
from .targets import fingerprint
from .validation import Validation
from .world import toonworld
from .world.canvas import canvas, frechet
from .world.evaluation import evaluate
from .world.judge import Judge, load_judge

__all__ = [
    "Clip", "Edit", "Gradients", "Judge", "Memory", "NothingForgets", "Pairs", "StepSearch",
    "Task", "Validation", "as_task", "attention_maps", "canvas", "editable", "evaluate", "fingerprint", "forget_loss",
    "frechet", "generated_pairs", "load_clip", "load_diffusion", "load_judge", "merge", "one_shot_gradients",
    "pareto_front", "pareto_fronts", "retain_loss", "search_step", "toonworld", "unlearn", "unlearn_pipeline",
    "unlearn_several", "zero_shot_classifier",
]  # fmt: skip
