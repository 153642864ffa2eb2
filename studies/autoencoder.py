"""Small autoencoders of the shape of latent diffusion models' (`AutoencoderKL`), for studies/through_vae.py.

One with random weights needs many thousands of steps until it gives more back than a photo's mean colour. These start
as averaging (8 x 8 pixels to one) and interpolation: three channels of the network carry the colours, three more the
same with the other sign, two are constant, so that the last normalisation of an encoder or decoder hardly changes them
and what its SiLU bends cancels out. All else that a block would add is zero at first. Training goes on from there.

Public: WIDTHS, CROP, make_autoencoder.
"""

import torch

import utils
from kit.progress import Progress
from suspects.pipelines import library

WIDTHS = (32, 64, 128, 128)  # Stable Diffusion's has 128, 256, 512, 512
GROUPS = 4
CROP = 128
RATE, WARM_UP = 1e-4, 0.2
KL = 1e-6

COLOURS, CONSTANT = 3, 8.0
CARRIED = 2 * COLOURS + 2  # colours, colours with the other sign, two constants
QUIET = -8.0  # log variance of the latents at first: with that of random weights noise would drown them

POINT = torch.tensor([[1.0]])
CENTRE = torch.nn.functional.pad(POINT, (1, 1, 1, 1))
MEAN = torch.nn.functional.pad(torch.full((2, 2), 0.25), (0, 1, 0, 1))  # of 2 x 2 pixels, in a kernel of 3 x 3
LINE = torch.tensor([0.25, 0.5, 0.25])
TENT = torch.outer(LINE, LINE)  # interpolates doubled pixels


def make_autoencoder(channels, photos, steps, batch, seed):
    """An AutoencoderKL of 8 times smaller latents, trained on random crops of photos (uint8 (3, H, W) each)."""
    with utils.seeded("vae", channels, seed):
        model = _untrained(channels)
        precision, draws = utils.choose_precision("auto", torch.device("cpu")), utils.key_generator("vae", seed)
        optimizer = torch.optim.AdamW(model.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=WARM_UP)
        model.train()
        for _ in Progress(range(steps), f"training the autoencoder of {channels} channels"):
            clean = torch.stack([_crop(photos[draws.integers(len(photos))], draws) for _ in range(batch)])
            with utils.autocast(clean.device, precision):
                latents = model.encode(clean).latent_dist
                given = model.decode(latents.sample()).sample
            loss = (given.float() - clean).abs().mean() + KL * latents.kl().mean() * (8 / CROP) ** 2
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval().requires_grad_(False)


def _crop(photo, draws):
    """A random crop of CROP px, perhaps of the photo at half its size, mirrored or not: float32 from -1 to 1."""
    if draws.random() < 0.5 and min(photo.shape[1:]) >= 2 * CROP:
        photo = torch.nn.functional.avg_pool2d(photo.float(), 2)
    top, left = (draws.integers(side - CROP + 1) for side in photo.shape[1:])
    part = photo[:, top : top + CROP, left : left + CROP].float() / 127.5 - 1
    return part.flip(2) if draws.random() < 0.5 else part


@torch.no_grad()
def _untrained(channels):
    """A network that averages and interpolates; latents above the third are of no use yet."""
    count = len(WIDTHS)
    model = library("diffusers").AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=WIDTHS,
        latent_channels=channels,
        norm_num_groups=GROUPS,
    )
    encoder, decoder = model.encoder, model.decoder
    for block in model.modules():
        if hasattr(block, "conv_shortcut"):  # a ResnetBlock2D
            _silence(block.conv2)
            if block.conv_shortcut is not None:
                _carry(block.conv_shortcut, POINT)
        elif hasattr(block, "to_out"):  # an Attention
            _silence(block.to_out[0])
    for block in encoder.down_blocks:
        for layer in block.downsamplers or ():
            _carry(layer.conv, MEAN)
    for block in decoder.up_blocks:
        for layer in block.upsamplers or ():
            _carry(layer.conv, TENT)
    for half in (encoder, decoder):
        _spread(half.conv_in)
        _gather(half.conv_out, half.conv_norm_out.num_channels)
    encoder.conv_out.weight[channels:] *= 0.1
    encoder.conv_out.bias[channels:] = QUIET
    for layer in (model.quant_conv, model.post_quant_conv):
        layer.weight.copy_(torch.eye(len(layer.weight))[:, :, None, None])
        layer.bias.zero_()
    return model


def _silence(layer, count=None):
    """The first channels of a layer's output, or all, are 0."""
    layer.weight[:count] = 0
    layer.bias[:count] = 0


def _carry(layer, taps):
    """The first channels of a convolution's output become those of its input, through taps (k, k)."""
    _silence(layer, CARRIED)
    for place in range(CARRIED):
        layer.weight[place, place] = taps


def _spread(layer):
    """The first three channels of the input to all that is carried."""
    _silence(layer, CARRIED)
    for place in range(COLOURS):
        layer.weight[place, place] = CENTRE
        layer.weight[COLOURS + place, place] = -CENTRE
    layer.bias[CARRIED - 2] = CONSTANT
    layer.bias[CARRIED - 1] = -CONSTANT


def _gather(layer, width):
    """What is carried, normalised over groups of width / GROUPS channels, to the first three channels of the output."""
    spread = (2 * CONSTANT**2 / (width / GROUPS)) ** 0.5
    _silence(layer, COLOURS)
    for place in range(COLOURS):
        layer.weight[place, place] = spread * CENTRE
        layer.weight[place, COLOURS + place] = -spread * CENTRE
