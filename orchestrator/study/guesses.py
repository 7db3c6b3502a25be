"""Names that other tools use, and what a study has in their place: Optuna, Hydra, Ray Tune, lm-eval, Hugging Face, W&B.

A wrong key or option whose meaning is known gets the line that helps; all others get the nearest key (`refusals.hint_of`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from orchestrator.study.schema import PART_MODELS, Axes, Stop, Study
from trainers.records import short_number
from trainers.spec import Evaluation

_LENGTH = "the length of training is a list of budgets, axes.compute_flops, or axes.compute_steps in optimizer steps"
_TOKENS = "a budget is in training FLOPs, axes.compute_flops, some 6 per parameter and token, or in tokens, axes.compute_tokens"
_REPEATS = "repetitions are counted in axes.replicates, as in replicates: 3; each has its own random streams"
_GRID = "a study trains every cell of its axes (arm, n_tasks, compute_flops, replicates); other settings vary by name in axes.variant, as in variant: {one: {}, deep: {model: {n_layers: 4}}}"
_ALL = "the trials follow from axes, and none is pruned, because it could be the one in which a skill appears late"
_OUTPUT = "results go to $EMERGENCE_HOME, and checkpoints to 'emergence run --storage FOLDER'"
_DEVICE = (
    "machines are no part of a study: 'emergence run STUDY --device cuda', --slots-per-gpu, --workers or --address"
)
_MLFLOW = "MLflow keeps the record: 'emergence run STUDY --tracking-uri URI'"
_RESUME = "the same 'emergence run' again resumes a study; only missing trials run"
_FAMILY = "tasks, sequences and vocabulary come from family: {name: ...}; docs/families.md shows how to write one"

_MEANT: dict[str, str] = {
    "tokens compute_tokens n_tokens max_tokens train_tokens total_tokens token_budget": _TOKENS,
    "epochs n_epochs num_epochs max_epochs num_train_epochs": _LENGTH,
    "steps n_steps num_steps max_steps train_steps total_steps iterations n_iterations max_iters": _LENGTH,
    "seed seeds n_seeds num_seeds random_seed random_state": _REPEATS,
    "repeats n_repeats repetitions n_replicates num_replicates num_samples": _REPEATS,
    "grid sweep search_space param_grid param_space params parameters hyperparameters": _GRID,
    "config config_name config_path config_dir": "one file holds the whole study: 'emergence run FILE'",
    "defaults hydra overrides set variants variant _target_ launcher sweeper": _GRID,
    "n_trials sampler pruner direction early_stopping method max_concurrent_trials": _ALL,
    "output out output_dir output_path out_dir logdir log_dir save_dir checkpoint_dir results_dir storage home": _OUTPUT,
    "device devices accelerator gpu gpus n_gpus num_gpus gpus_per_trial cuda resources resources_per_trial slots": _DEVICE,
    "n_jobs jobs address": _DEVICE,
    "project entity wandb logger tracking tracking_uri mlflow experiment_name": _MLFLOW,
    "resume resume_from restore continue": _RESUME,
    "data dataset datasets tokenizer vocab_size seq_len max_length context_length sequence_length block_size": _FAMILY,
    "num_fewshot limit": _FAMILY,
    "dry_run dryrun": "'emergence plan STUDY' shows what a run would do, and starts nothing",
    "lr learning_rates rate": "write training.learning_rate",
    "bs batch train_batch_size global_batch_size per_device_train_batch_size": "write training.batch_size, the sequences of a step over all workers",
    "wd": "write training.weight_decay",
    "betas": "write training.beta1 and training.beta2",
    "grad_clip clip max_grad_norm gradient_clip_val": "write training.clip_norm",
    "warmup num_warmup_steps warmup_ratio": "write training.warmup_steps, in optimizer steps",
    "lr_scheduler lr_scheduler_type scheduler": "write training.schedule",
    "bf16 fp16 amp dtype mixed_precision": "write training.precision, fp32 or bf16",
    "optimizer optim": "AdamW is the only one; its settings are keys of training",
    "trainer": "write training",
    "n_layer num_layers num_hidden_layers layers": "write model.n_layers",
    "n_embd hidden_size hidden_dim embed_dim width": "write model.d_model",
    "n_head num_heads num_attention_heads heads": "write model.n_heads",
    "intermediate_size d_ff ffn_dim": "write model.d_mlp",
    "model_name model_name_or_path pretrained model_args size": "write model.preset, as in model: {preset: 124m}; weights always start from random",
    "gradient_accumulation_steps accumulate_grad_batches micro_batch_size": "write place.micro_batch; batch_size is the whole batch",
    "num_workers n_workers world_size": "write place.workers, or give --workers to 'emergence run'",
    "zero deepspeed": "write place.zero_stage",
    "tasks task num_tasks task_count": "write axes.n_tasks, a list of numbers; their kind is the family's name",
    "flops compute budget budgets": "write axes.compute_flops, a list of budgets in FLOPs",
    "time_limit timeout time_budget_s time_budget walltime max_time max_wall_time": "write stop.max_hours, or give --max-hours to 'emergence run'",
    "flop_limit max_compute compute_limit": "write stop.max_flops, or give --max-flops to 'emergence run'",
    "arms": "write axes.arm, a list of names",
    "name study_name experiment run_name": "write study",
    "description notes": "write question, or expectation",
    "metric metrics objective monitor": "all skills are measured; skills orders those that are shown, and primary claims one",
    "hypothesis claim": "write primary, or expectation for words",
    "eval_every eval_steps eval_interval log_every logging_steps": "write evaluation.points_per_decade, on a grid of FLOPs that all trials share",
    "eval_batch_size n_eval n_examples": "write evaluation.n_sequences",
}
MEANT = {word: meaning for words, meaning in _MEANT.items() for word in words.split()}
"""A key or option that other tools have -> the line that helps."""

_SECTIONS = {**PART_MODELS, "evaluation": Evaluation, "axes": Axes, "stop": Stop}
"""Section of a study -> the record of its keys."""


def plain(word: str) -> str:
    """A key or option as `MEANT` spells it: `--N-Seeds` -> `n_seeds`."""
    return word.lstrip("-").lower().replace("-", "_")


def as_variants(part: str, key: str, values: list[Any]) -> str:
    """The line of YAML by which a setting takes several values: a variant for each of the first three."""
    shown = []
    for value in values[:3]:
        text = _text(value)
        name = re.sub(r"[^a-z0-9_.-]+", "-", f"{key}_{text}".lower())
        shown.append(f"{name}: {{{part}: {{{key}: {text}}}}}")
    rest = ", ..." if len(values) > 3 else ""
    return f"variant: {{{', '.join(shown)}{rest}}}"


def unknown_key(
    place: tuple[Any, ...], key: str, given: Any, allowed: list[str], keys_of: Callable[[Any], list[str]], near: str
) -> str:
    """The refusal of a key that its section does not have.

    place: the section. given: the key's value. allowed: the keys of the section. keys_of: the keys of a record. near: the hint
    for the nearest of them, from `hint_of`.
    """
    where = f"{'.'.join(map(str, place))}: " if place else ""
    section, _, inner = key.partition(".")
    of = next((part for part, record in _SECTIONS.items() if key in keys_of(record) and (part,) != place), None)
    if inner and section in (*_SECTIONS, "family"):
        return f"{where}keys are nested: for '{key}' write {section}: {{{inner}: {_short(given)}}}"
    if place == ("axes",) and of in PART_MODELS:
        values = given if isinstance(given, list) and given else [given]
        return f"{where}'{key}' is a key of {of}; vary it by name, under axes: {as_variants(of, key, values)}"
    if place[:1] != ("family",):
        if of is not None:
            return f"{where}'{key}' is a key of {of}: write it there"
        if meant := MEANT.get(plain(key)):
            part, _, other = meant.removeprefix("write ").partition(".")
            if isinstance(given, list) and given and part in PART_MODELS and other in keys_of(PART_MODELS[part]):
                meant = f"under axes write {as_variants(part, other, given)}"
            return f"{where}unknown key '{key}': {meant}"
        if place and key in Study.model_fields:
            return f"{where}'{key}' is a key of the study: write it at the left margin"
    return f"{where}unknown key '{key}'{near or ';'} {'Keys' if near else 'keys'} are {', '.join(allowed)}"


def stands_for(text: str, place: tuple[Any, ...]) -> bool:
    """Whether a refusal already asks for the key at `place`. Its absence is then no further problem."""
    name = ".".join(map(str, place))
    return f"write {name}" in text or (len(place) > 1 and name in text)


def _short(given: Any) -> str:
    return "..." if isinstance(given, dict | list) or given is None else _text(given)


def _text(value: Any) -> str:
    """A value as a study file writes it, at most 40 characters."""
    if isinstance(value, bool):
        return str(value).lower()
    return short_number(value) if isinstance(value, int | float) and abs(value) < 1e30 else str(value)[:40]


def wrong_value(place: tuple[Any, ...], given: Any) -> str:
    """A hint for a value of the wrong kind at a place of a study, to follow the reason; "" if none is known."""
    key, of_variant = str(place[-1]), place[:2] == ("axes", "variant")
    section = place[3] if of_variant and len(place) == 5 else place[0] if len(place) == 2 else None
    if place[:2] == ("axes", "training_of_arm") and len(place) == 4:
        section = "training"
    if isinstance(given, list) and section in (*PART_MODELS, "family"):
        return f"; one value a variant, under axes: {as_variants(section, key, given)}" if given else ""
    if place == ("axes", "replicates") and isinstance(given, list):
        return f"; give their number, as in replicates: {max(len(given), 1)}"
    if place[:1] == ("axes",) and len(place) == 2 and key in ("arm", "n_tasks", "compute_flops"):
        return f"; as in {key}: [{_text(given)}]" if isinstance(given, str | int | float) else ""
    if place == ("model",) and isinstance(given, str):
        return "; a size has a name: model: {preset: 124m}"
    if of_variant and len(place) == 3 and isinstance(given, list):
        part = next((part for part, record in PART_MODELS.items() if key in record.model_fields), None)
        return f"; {as_variants(part, key, given)}" if part and given else "; as in one: {model: {n_layers: 4}}"
    if place == ("axes", "variant"):
        return "; each variant has a name: variant: {one: {}, deep: {model: {n_layers: 4}}}"
    return ""


def wrong_option(word: str, arguments: list[str]) -> str | None:
    """The line for an option or argument that a command does not have; None if its meaning is not known.

    word: as it was given, such as `--set` or `model.depth=4`. arguments: all that were given.
    """
    setting = r"(?:(?:--)?set=)?\+{0,2}([a-z_][a-z0-9_.]*)=(.*)"
    for given in (word, *arguments):
        of_set = given == word or plain(word) in ("set", "override", "o")
        if of_set and (found := re.fullmatch(setting, given, flags=re.IGNORECASE | re.DOTALL)):
            return f"{given}: {_no_overrides(*found.groups())}"
    if re.fullmatch(r"(model|training|family|place)\.[a-z0-9_]+", plain(word)):
        after = arguments[arguments.index(word) + 1 :] if word in arguments else []
        return f"{word}: {_no_overrides(plain(word), after[0] if after else '...')}"
    if plain(word) in ("set", "override", "overrides", "o"):
        return f"{word}: {_no_overrides('model.n_layers', '4')}"
    if plain(word) in ("m", "multirun"):
        return f"{word}: {_GRID}"
    if (meaning := MEANT.get(plain(word))) is None:
        return None
    return f"{word} is no option of this command: {'in the study ' * meaning.startswith('write ')}{meaning}"


def _no_overrides(dotted: str, value: str) -> str:
    """Why there are no overrides, and the variant to write for one."""
    why = "settings are not changed on the command line, because the study file says what ran"
    *_, part, key = ["", *dotted.lower().split(".")]
    meaning = MEANT.get(key, "")
    if found := re.match(r"write (model|training)\.([a-z0-9_]+)", meaning):
        part, key = found.groups()
    part = part or next((name for name, record in PART_MODELS.items() if key in record.model_fields), "")
    if part in (*PART_MODELS, "family"):
        values = [one.strip() for one in value.strip("[]() ").split(",") if one.strip()] or ["..."]
        return f"{why}; write it there, or to compare, under axes: {as_variants(part, key, values)}"
    return f"{why}; {meaning or 'edit it there; sweeps/README.md has every key'}"
