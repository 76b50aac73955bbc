"""A character LSTM at the rate of a well-known recipe, without the clipping that the recipe has.

PyTorch's word_language_model trains with plain SGD at lr 20 and clips at 0.25. Whoever copies the rate alone gets this
run; ``--fixed`` clips. The text is the Python documentation that ships with Python. A plain script: nothing here knows
of steadygrad.

    python char_lstm.py [--seed 0] [--steps 400] [--fixed] [--json]
"""

import argparse
import json
from pydoc_data.topics import topics

import torch
import torch.nn as nn
import torch.nn.functional as F

LENGTH = 64
TARGET = 2.2  # nats for each character of unseen text; characters drawn by their frequency: 3.2


class CharLSTM(nn.Module):
    def __init__(self, vocabulary: int, width: int = 96, depth: int = 2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, depth, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        states, _ = self.lstm(self.embed(tokens))
        return self.head(states)


def batch_of(data, size, generator=None):
    starts = torch.randint(0, len(data) - LENGTH - 1, (size,), generator=generator)
    tokens = torch.stack([data[start : start + LENGTH + 1] for start in starts])
    return tokens[:, :-1], tokens[:, 1:]


def loss_of(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=20.0)
    parser.add_argument("--fixed", action="store_true", help="clip the gradient at 0.25")
    parser.add_argument("--json", action="store_true", help="print how it ended as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)

    text = "\n".join(topics[name] for name in sorted(topics))
    symbols = sorted(set(text))
    index = {symbol: i for i, symbol in enumerate(symbols)}
    data = torch.tensor([index[symbol] for symbol in text])
    train, unseen = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]

    model = CharLSTM(len(symbols))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)

    for step in range(args.steps):
        inputs, targets = batch_of(train, 20)
        loss = loss_of(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        if args.fixed:
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
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
