"""The slider of still pictures: its frames, its words, what it refuses."""

import json
import re
from base64 import b64decode
from html import unescape
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from slug_lite.book import plots


def test_slider_holds_every_frame_and_says_which_is_shown():
    frames = {f"step {k} <x>": np.full((4, 6, 3), 40 * k, np.uint8) for k in range(3)}
    html = plots.slider(frames, label="length & more", alt='a "face"').data
    tags = re.findall(r"<img [^>]*>", html)
    assert len(tags) == 3 and ["hidden" in tag for tag in tags] == [False, True, True]
    for k, tag in enumerate(tags):
        png = b64decode(re.search(r"base64,([^\"]+)", tag)[1])
        assert np.array_equal(np.asarray(Image.open(BytesIO(png))), frames[f"step {k} <x>"])
        assert unescape(re.search(r'alt="([^"]*)"', tag)[1]) == f'a "face" step {k} <x>'
    assert json.loads(unescape(re.search(r'data-texts="([^"]*)"', html)[1])) == list(frames)
    assert 'max="2"' in html and "length &amp; more" in html and "<x>" not in html
    assert 'aria-label="length &amp; more"' in html and 'aria-valuetext="step 0 &lt;x&gt;"' in html


def test_one_frame_is_no_slider():
    one, other = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)
    for frames, message in (({"a": one}, "1 frames"), ({"a": one, "b": other}, "all of one shape")):
        with pytest.raises(ValueError, match=message):
            plots.slider(frames, label="x", alt="y")
