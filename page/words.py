"""The command line's messages in the words of the page, which has fields where that has flags.

Public: FLAGS, flag_of, plain, of_error, of_progress.
"""

import re

# What the command line calls --FLAG has a field with this name here: messages are the same for both.
FLAGS = {
    "--img_blending_ratio": "“Blending ratio”",
    "--noise_norm": "“Noise norm”",
    "--holdout": "“Hold-out”",
    "--data_folder": "“Photos”",
    "--format": "“File format”",
    "--quality": "“JPEG quality”",
    "--originals": "“Original photos”",
    "--checkpoint": "“Model”",
    "--net_type": "“Architecture”",
    "--label": "“Class of the photos”",
    "--alpha": "“Accept a wrong accusation in at most”",
    "--max_queries": "“Most queries”",
    "--header": "“Header for the server”",
    "--rate_limit": "“Requests a second”",
    "--input_size": "“Input size”",
    "--mean": "“Mean”",
    "--std": "“Std”",
    "--label_only": "“The model only names a class”",
    "--beacon": "“Round of the public randomness”",
    "--timestamp": "“Time-stamp address”",
    "--keys": "“Other patterns”",
    "--selections": "“Other halves”",
    "--audit_seed": "“A text that the other side adds”",
    "--record": "“Record”",
    "--beacon_chain": "“Facts of another beacon”",
    "--timestamp_roots": "“Certificates for time stamps”",
    "--witness_key": "“Key of a witness”",
    "--publication": "“Where the photos were published”",
    "--query_batch": "“Images a request”",
    "--visibility": "“Visibility of the mark”",
    "--metadata": "“Metadata”",
    "--reference": "“Reference models”",
    "--reference_net_type": "“Network of a reference”",
    "--query_augmentations": "“Views of each photo”",
    "--batch_size": "“Images a request”",
    "--base_model": "“Base model”",
    "--model_config": "“Folder of its kind”",
    "--caption": "“What every photo shows”",
}


def flag_of(name):
    """The flag that a field of the page stands for, None where the command line has none."""
    return next((flag for flag, field in FLAGS.items() if field == f"“{name}”"), None)


def plain(text):
    """A text with the names of fields in place of flags."""
    # At the start of a word alone: a path may have two dashes, too.
    return re.sub(r"(?<![^\s(])--([a-z_]+)", lambda flag: FLAGS.get(flag[0], flag[1].replace("_", " ")), text)


def of_error(error):
    """A UserError as the page says it: the field that it is about, what is wrong, and what to do here.

    Advice for the command line alone is left out.
    """
    text = plain(f"{error.problem}; {error.advice}" if error.advice else error.problem)
    field = FLAGS.get(error.flag)
    return f"{field}: {text}" if field and field not in text else text


def of_progress(label, done, total):
    """One line on how far work has come. label, done, total: see `kit.progress.watched`."""
    if label and label.startswith("waiting for round") and total:
        return f"Waiting for {label.removeprefix('waiting for ')} of the public randomness: {total - done} seconds left"
    text = f"{label}" + (f": {done:,} of {total:,}" if total else "")
    return f"{text[:1].upper()}{text[1:]}"
