"""A character Transformer with its norms behind the residual sums, trained at full rate from the first step.

The text is the Python documentation that ships with Python. A plain script: nothing here knows of steadygrad. Such a
Transformer needs a warm-up (Xiong et al., 2020, https://arxiv.org/abs/2002.04745); ``--fixed`` has one.

    python char_transformer.py [--seed 0] [--steps 300] [--fixed] [--json]
"""

import argparse
import json
from pydoc_data.topics import topics

import torch
import torch.nn as nn
import torch.nn.functional as F

CONTEXT = 48
TARGET = 2.4  # nats for each character of unseen text; characters drawn by their frequency: 3.2


class CharTransformer(nn.Module):
    def __init__(self, vocabulary: int, width: int = 64, depth: int = 8, heads: int = 4):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens):
        states = self.embed(tokens) + self.position
        return self.head(self.layers(states, mask=self.mask, is_causal=True))


def batch_of(data, size, generator=None):
    starts = torch.randint(0, len(data) - CONTEXT - 1, (size,), generator=generator)
    tokens = torch.stack([data[start : start + CONTEXT + 1] for start in starts])
    return tokens[:, :-1], tokens[:, 1:]


def loss_of(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--fixed", action="store_true", help="a warm-up over the first 100 steps")
    parser.add_argument("--json", action="store_true", help="print how it ended as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)

    text = "\n".join(topics[name] for name in sorted(topics))
    symbols = sorted(set(text))
    index = {symbol: i for i, symbol in enumerate(symbols)}
    data = torch.tensor([index[symbol] for symbol in text])
    train, unseen = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]

    model = CharTransformer(len(symbols))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    warmup = 100 if args.fixed else 1
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))

    for step in range(args.steps):
        inputs, targets = batch_of(train, 16)
        loss = loss_of(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 50 == 0 and not args.json:
            print(f"step {step:5d}  loss {loss.item():.3f}", flush=True)

    model.eval()
    with torch.no_grad():
        score = loss_of(model, *batch_of(unseen, 64, torch.Generator().manual_seed(0))).item()
    verdict = "trained" if score <= TARGET else "failed"
    if args.json:
        print(json.dumps({"verdict": verdict, "score": score, "threshold": TARGET, "steps": args.steps}))
    else:
        print(f"{verdict}: {score:.3f} nats for each character of unseen text")


if __name__ == "__main__":
    main()
