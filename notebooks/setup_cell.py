# On Google Colab: install the book's package, keeping Colab's own torch. Elsewhere this cell does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess
    from importlib.metadata import version
    from pathlib import Path

    keep = [f"{name}=={version(name)}" for name in ("torch", "torchvision", "numpy", "pillow", "ipywidgets")]
    Path("keep.txt").write_text("\n".join(keep))
    source = "slug-lite @ git+https://github.com/slug-book/slug-lite"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "--constraint", "keep.txt", source])
