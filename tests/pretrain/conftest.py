"""A few pictures and captions to train on."""

import pytest
from small_diffusion import SIDE, UNET, VAE

from slug_lite.pretrain import autoencoder, latents
from slug_lite.pretrain.clip import ClipRecipe, Pool


@pytest.fixture(scope="module")
def pool():
    """Three concepts of each kind, up to three pictures of each."""
    everything = Pool(ClipRecipe(pool=1), SIDE)
    few = {kind: members[:3] for kind, members in everything.groups.items()}
    everything.images = {c: everything.images[c][:3] for members in few.values() for c in members}
    everything.groups = few
    return everything


@pytest.fixture
def data(pool, tmp_path, _tiny):
    """What a UNet is trained on: their latents, their captions' hidden states."""
    return latents.prepare(tmp_path, autoencoder.build_vae(VAE), _tiny, pool, UNET)
