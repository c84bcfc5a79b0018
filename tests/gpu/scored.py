"A tiny model by transformers and PEFT alone: what it finds likely, its gradients, and what it says greedily."

import torch
from tape import fill

from toolrl_lit.collect import generate_tokens, load_model
from toolrl_lit.train import trainable

KEEP = 3  # last tokens, whose log-probabilities are taken
LENGTH = 8


def rows(device):
    "Return token ids (2, LENGTH) and masks by name: padding on either side."
    torch.manual_seed(3)
    ids = torch.randint(3, 500, (2, LENGTH))
    masks = {name: torch.ones_like(ids) for name in ("left", "right")}
    masks["left"][0, :3] = 0
    masks["right"][0, -1:] = 0
    return ids.to(device), {name: mask.to(device) for name, mask in masks.items()}


def step(model, ids, mask):
    "Return log-probabilities (2, KEEP) of the last tokens, and the gradients of their sum."
    model.zero_grad(set_to_none=True)
    how = dict(use_cache=False, logits_to_keep=KEEP + 1)
    logits = model(input_ids=ids, attention_mask=mask, **how).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(-1, ids[:, -KEEP:, None])[..., 0] * mask[:, -KEEP:]
    logps.sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return logps.detach().cpu(), {n.replace(".default", ""): g.cpu() for n, g in found.items()}


def reference(model, ids, mask):
    "Return the last logits with the adapters off."
    with torch.no_grad(), model.disable_adapter():
        return model(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1
        ).logits.cpu()


def all_of(model) -> dict:
    "Return `step` for each kind of padding, and `reference`."
    ids, masks = rows(model.device)
    told = {name: step(model, ids, mask) for name, mask in masks.items()}
    return told | {"reference": reference(model, ids, masks["left"])}


def by_plain(folder) -> dict:
    "Return `all_of` a model with fresh adapters, filled."
    model = trainable(load_model(folder)[0], 4)
    fill(model)
    return all_of(model.train())


def said_greedily(folder, prompts: list[list[int]], new: int) -> list[list[int]]:
    "Return the likeliest tokens after each prompt."
    how = dict(temperature=0, seed=0, stop={0}, pad=0)
    return generate_tokens(load_model(folder)[0], prompts, max_new_tokens=new, **how)


def scored(folder, prompts, rows) -> list[list[float]]:
    "Return the log-probabilities of the tokens that follow each prompt."
    model, told = load_model(folder)[0], []
    for prompt, row in zip(prompts, rows):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + row], device=model.device)).logits[0]
        chosen = torch.tensor(row, device=model.device)[:, None]
        told.append(logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, chosen)[:, 0].tolist())
    return told
