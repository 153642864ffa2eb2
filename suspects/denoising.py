"""What a diffusion model's denoiser says of pictures, as one number each, low where it remembers them.

All of it is a function of the picture and its caption alone, given draws that are the same for all pictures. Besides
the denoising error, which the training itself makes small, the signals of the literature that need few passes:

    error   the mean squared error of the training's target at DRAWS of (timestep, noise)
    sima    SimA (Rao, Qu & Moyer 2025): the size of the noise that is seen in the picture where none was added
    pia     PIA (Kong et al. 2023): that noise, added to the picture, is found again; by how much it is missed
    secmi   SecMI (Duan et al. 2023): a deterministic step up and down again from a point of the picture's own path

Sizes are means of fourth powers (PIA, SimA) or squares, as there. Where a denoiser predicts something else than noise,
the noise follows from that.

Public: draws_of, noised, denoised, predicted_noise, latent_scale, passes_of, scores_of, FRACTIONS, NOISES,
ELEMENTS.
"""

import numpy as np
import torch

from kit.errors import UserError
from utils import key_generator

# Of the schedule's timesteps, and noises at each: chosen by studies/generative_choice.py.
FRACTIONS, NOISES = (0.05, 0.1, 0.2, 0.4), 2
PATH, STEP = 0.1, 0.01  # of SecMI: up to which fraction of the timesteps, and by how many at a time
ELEMENTS = 1 << 18  # of latents in one pass: 16 pictures of 512 px
MOST_PASSES = 64


def draws_of(seed, shape, fractions=FRACTIONS, noises=NOISES):
    """[(fraction of the timesteps, noise float32 of `shape`), ...], the same for a seed on every machine."""
    generator = key_generator(seed, "denoising")
    noise = generator.standard_normal((len(fractions) * noises, *shape), dtype=np.float32)
    return [(fractions[place // noises], torch.from_numpy(one)) for place, one in enumerate(noise)]


def _step_of(schedule, fraction):
    """The timestep as the denoiser is told it."""
    if schedule["prediction"] == "flow":
        return fraction * schedule["timesteps"]
    return min(schedule["timesteps"] - 1, round(fraction * schedule["timesteps"]))


def _shares(schedule, fraction):
    """(share of the picture, share of the noise) at a fraction of the timesteps."""
    if schedule["prediction"] == "flow":
        return 1 - fraction, fraction
    kept = float(schedule["scheduler"].alphas_cumprod[_step_of(schedule, fraction)])
    return kept**0.5, (1 - kept) ** 0.5


def noised(schedule, clean, noise, fraction):
    """(noisy float32 (N, C, h, w), timestep, target of the denoiser float32 (N, C, h, w)) of clean latents.

    noise: (C, h, w), the same for all. Flow matching goes straight from the picture to the noise, and its target is
    their difference; the others mix by the cumulative alphas of the schedule (Ho et al. 2020, Salimans & Ho 2022).
    """
    noise = noise.to(clean).expand_as(clean)
    step = _step_of(schedule, fraction)
    if schedule["prediction"] == "flow":
        return (1 - fraction) * clean + fraction * noise, step, noise - clean
    steps = torch.full((len(clean),), step, device=clean.device)
    scheduler = schedule["scheduler"]
    target = {
        "epsilon": lambda: noise,
        "sample": lambda: clean,
        "v_prediction": lambda: scheduler.get_velocity(clean, noise, steps),
    }[schedule["prediction"]]()
    return scheduler.add_noise(clean, noise, steps), step, target


def denoised(model, noisy, step, told):
    """What the denoiser of a Pipeline says of noisy latents, of their shape."""
    network = model.network
    steps = torch.full((len(noisy),), float(step), device=noisy.device)
    inputs = noisy.to(next(network.parameters()).dtype)
    if model.name == "FluxPipeline":
        return _denoised_in_pieces(model, inputs, step / model.schedule["timesteps"], told)
    if model.part == "transformer":
        return network(inputs, timestep=steps, **_told_transformer(model, noisy, told))[0][:, : noisy.shape[1]]
    steps = steps.long() if model.schedule["prediction"] != "flow" else steps
    if model.whole is None:
        return network(inputs, steps).sample
    added = {}
    if model.name == "StableDiffusionXLPipeline":
        height, width = (side * latent_scale(model) for side in noisy.shape[2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=noisy.device).expand(len(noisy), -1)
        added = {"added_cond_kwargs": {"text_embeds": told["pooled"], "time_ids": sizes.to(inputs)}}
    return network(inputs, steps, encoder_hidden_states=told["words"], **added).sample


def _told_transformer(model, noisy, told):
    """What a transformer is told beside noise and timestep: arguments of its call. DiT is told no class, which the last
    of its embeddings stands for; PixArt is told size and form of the picture where it was trained to be."""
    network = model.network
    if model.name == "DiTPipeline":
        if noisy.shape[2] != noisy.shape[3]:
            raise UserError("a DiT takes square pictures", advice="give one number of pixels", flag="--input_size")
        return {"class_labels": torch.full((len(noisy),), network.config.num_embeds_ada_norm, device=noisy.device)}
    if model.name == "StableDiffusion3Pipeline":
        return {"encoder_hidden_states": told["words"], "pooled_projections": told["pooled"]}
    added = {"resolution": None, "aspect_ratio": None}
    if network.use_additional_conditions:
        height, width = (float(side * latent_scale(model)) for side in noisy.shape[2:])
        added["resolution"] = noisy.new_tensor([[height, width]]).expand(len(noisy), -1)
        added["aspect_ratio"] = noisy.new_tensor([[height / width]]).expand(len(noisy), -1)
    words = {"encoder_hidden_states": told["words"], "encoder_attention_mask": told["mask"]}
    return {**words, "added_cond_kwargs": added}


def _denoised_in_pieces(model, noisy, share, told):
    """The same of Flux, which sees latents as a row of pieces of 2 x 2 with their places. share: of the noise. Models
    that are told how much to keep to the caption are told 1, as when nothing is guided."""
    network, (height, width) = model.network, (side // 2 for side in noisy.shape[2:])
    pieces = torch.nn.functional.pixel_unshuffle(noisy, 2).flatten(2).transpose(1, 2)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(noisy)
    ones = noisy.new_ones(len(noisy))
    said = network(
        pieces,
        encoder_hidden_states=told["words"],
        pooled_projections=told["pooled"],
        timestep=share * ones,
        img_ids=places,
        txt_ids=noisy.new_zeros(told["words"].shape[1], 3),
        guidance=ones if network.config.guidance_embeds else None,
    )[0]
    return torch.nn.functional.pixel_shuffle(said.transpose(1, 2).unflatten(2, (height, width)), 2)


def latent_scale(model):
    """Pixels of a side for one of the latents."""
    return 1 if model.vae is None else 2 ** (len(model.vae.config.block_out_channels) - 1)


def predicted_noise(model, noisy, fraction, told):
    """The noise that a denoiser sees in `noisy`, float32 of its shape, whatever it predicts."""
    schedule = model.schedule
    found = denoised(model, noisy, _step_of(schedule, fraction), told).float()
    picture, noise = _shares(schedule, fraction)
    return {
        "epsilon": lambda: found,
        "v_prediction": lambda: picture * found + noise * noisy,
        "sample": lambda: (noisy - picture * found) / noise,
        "flow": lambda: noisy + picture * found,
    }[schedule["prediction"]]()


def _error(model, clean, told, draws):
    total = 0.0
    for fraction, noise in draws:
        noisy, step, target = noised(model.schedule, clean, noise, fraction)
        total = total + _size(denoised(model, noisy, step, told).float() - target, 2)
    return total / len(draws)


def _sima(model, clean, told, draws):
    fractions = sorted({fraction for fraction, _ in draws})
    return sum(
        _size(predicted_noise(model, _shares(model.schedule, fraction)[0] * clean, fraction, told), 4)
        for fraction in fractions
    ) / len(fractions)


def _pia(model, clean, told, draws):
    start = predicted_noise(model, clean, 0.0, told)
    fractions, total = sorted({fraction for fraction, _ in draws}), 0.0
    for fraction in fractions:
        picture, noise = _shares(model.schedule, fraction)
        again = predicted_noise(model, picture * clean + noise * start, fraction, told)
        total = total + _size(start - again, 4)
    return total / len(fractions)


def _secmi(model, clean, told, draws):
    place = clean
    for number in range(round(PATH / STEP)):
        place = _moved(model, place, number * STEP, (number + 1) * STEP, told)
    above = _moved(model, place, PATH, PATH + STEP, told)
    return _size(_moved(model, above, PATH + STEP, PATH, told) - place, 2)


def _moved(model, noisy, origin, goal, told):
    """A deterministic step (DDIM; Euler's for flow matching) from one fraction of the timesteps to another."""
    seen = predicted_noise(model, noisy, origin, told)
    (picture, noise), (kept, added) = (_shares(model.schedule, fraction) for fraction in (origin, goal))
    return kept * (noisy - noise * seen) / picture + added * seen


def _size(values, power):
    return values.abs().pow(power).flatten(1).mean(1).double()


def passes_of(signal):
    """How often a picture goes through the denoiser for a signal."""
    return {
        "error": len(FRACTIONS) * NOISES,
        "sima": len(FRACTIONS),
        "pia": 1 + len(FRACTIONS),
        "secmi": round(PATH / STEP) + 2,
    }[signal]


def scores_of(model, clean, told, draws, signal="error"):
    """A signal of a Pipeline for clean latents float32 (N, C, h, w): float64 (N,).

    told: {name: tensor (N, ...)}, what the denoiser is told beside; draws: of `draws_of`.
    """
    measure = {"error": _error, "sima": _sima, "pia": _pia, "secmi": _secmi}[signal]
    size = max(1, min(MOST_PASSES, ELEMENTS // clean[0].numel()))
    found = [
        measure(model, part, {name: value[first : first + size] for name, value in told.items()}, draws)
        for first, part in ((first, clean[first : first + size]) for first in range(0, len(clean), size))
    ]
    return torch.cat(found).cpu().numpy()
