"""What the towers' parity tests share."""

import numpy as np

from mmjax.encoders.core import stream


def save_random(model, folder, seed=0):
    """Saves a torch model of transformers with no parameter left at ones or zeros.

    Norms start at ones and biases at zeros, which would hide mistakes.
    """
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    model.eval().save_pretrained(folder)
    return folder


def condition(model, seed=1):
    """Draws convolutions so that values stay near one: transformers' would fade or explode."""
    import torch

    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)


def encode(tower, inputs, size=16, rows=None):
    """layer -> [n, F] of a tower's inputs, through its own batches."""
    out = {name: np.zeros((len(inputs), width), np.float32) for name, width in tower.layers.items()}
    for at, values in stream(tower.batches(inputs, size), tower.encode, tower.params, rows):
        for name, value in zip(out, values, strict=True):
            out[name][at] = value
    return out


def assert_states(found, wanted, mask=..., atol=1e-5):
    """Every hidden state equals torch's; what torch leaves at padding is nobody's output."""
    for n, theirs in enumerate(wanted):
        ours = np.asarray(found[f"hidden_states.{n}"])[mask]
        np.testing.assert_allclose(ours, theirs.numpy()[mask], atol=atol, rtol=0)
    assert f"hidden_states.{len(wanted)}" not in found


def pictures(folder, sizes=((61, 44), (40, 90), (48, 48)), seed=0):
    """Paths of small pictures, each (width, height) of `sizes`; smooth, as photographs are."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    paths = []
    for n, size in enumerate(sizes):
        colours = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
        paths.append(str(folder / f"{n}.{'jpg' if n % 2 else 'png'}"))
        colours.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths
