"""Language models: GPT-2, from scratch or pretrained, with or without LoRA; the signals of a text.

Needs transformers, and peft for LoRA, only when a model is built.
Public: build, LanguageModel, token_losses.
"""

import torch
import torch.nn.functional as F

from attacks.signals import scaled_from_losses
from kit.errors import UserError, optional
from privacy.data import PAD


def build(vocabulary, length, settings):
    """GPT-2 (Radford et al. 2019) for texts of up to `length` tokens out of `vocabulary`.

    settings: pretrained, a name of the Hugging Face hub or a folder, or None for random weights and a layer of each
    width in `hidden` (all alike); peft_type "lora" trains matrices of rank lora_rank beside those of lora_modules (each
    attention layer's), and nothing else (Hu et al. 2022). Raises UserError.
    """
    transformers = optional("transformers", "gpt2")
    if settings["pretrained"] is None:
        width, depth = settings["hidden"][0], len(settings["hidden"])
        if width % 32 or len(set(settings["hidden"])) > 1:
            raise UserError(f"train.hidden {settings['hidden']}: gpt2 has layers of one width, a multiple of 32")
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=vocabulary, n_positions=length, n_embd=width, n_layer=depth, n_head=width // 32
            )
        )
    else:
        try:
            model = transformers.GPT2LMHeadModel.from_pretrained(settings["pretrained"], use_safetensors=True)
        except (OSError, ValueError) as error:
            problem = str(error).splitlines()[0]
            raise UserError(
                f"train.pretrained {settings['pretrained']} can't be loaded ({problem})",
                advice="give a name of the Hugging Face hub or a folder",
            ) from None
        if vocabulary > model.config.vocab_size:
            raise UserError(
                f"data.tokenizer has {vocabulary} tokens and train.pretrained {model.config.vocab_size}",
                advice="take the tokenizer that belongs to the model",
            )
    if settings["peft_type"] is None:
        return model
    peft = optional("peft", "train.peft_type lora")
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=settings["lora_rank"],
            lora_alpha=2 * settings["lora_rank"],
            target_modules=list(settings.get("lora_modules") or ["c_attn"]),
            fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        ),
    )


class LanguageModel:
    """A trained language model; a text's loss is the mean cross entropy of its next tokens, each given those before.

    `correct`: most next tokens were the likeliest ones. The logit-scaled confidence is that of exp(-mean loss).
    """

    def __init__(self, model, device):
        self._model, self._device = model.to(device).eval(), device

    @torch.inference_mode()
    def signals(self, records, rows, query="identity"):
        """Signals of rows int64 (n,): see the module."""
        tokens = records.inputs[torch.as_tensor(rows)].to(self._device)
        losses, right = token_losses(self._model, tokens)
        counts = (tokens[:, 1:] != PAD).sum(dim=1)
        mean = (losses.double().sum(dim=1) / counts).cpu()
        return {
            "cross_entropy": mean,
            "scaled_loss": torch.from_numpy(-scaled_from_losses(mean.numpy())),
            "correct": (2 * right.sum(dim=1) > counts).double().cpu(),
        }


def token_losses(model, tokens):
    """Losses float32 and hits bool, both (n, L - 1), of each next token; 0 and False behind the end of a text."""
    known = tokens != PAD
    output = model(input_ids=tokens.clamp_min(0), attention_mask=known.long())
    logits, wanted = output.logits[:, :-1].float(), tokens[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, reduction="none")
    return losses.view(wanted.shape), (logits.argmax(-1) == wanted) & known[:, 1:]
