"""What each cause is in a sentence, and what to do about it."""

from __future__ import annotations

ADVICE: dict[str, tuple[str, str]] = {
    "lr_too_large": (
        "the learning rate is too large",
        "divide the learning rate by 3 to 10, or clip at 1.5 times the healthy gradient norm",
    ),
    "lr_too_small": ("the learning rate is too small", "multiply the learning rate by 3 to 10"),
    "momentum_too_large": (
        "momentum piles up steps faster than they are undone",
        "use momentum 0.9, or divide the learning rate by as much as momentum multiplies it",
    ),
    "warmup_missing": (
        "the first steps are too long",
        "raise the learning rate over the first 100 to 1000 steps",
    ),
    "init_gain_large": (
        "the initial weights amplify the signal from layer to layer",
        "use He or orthogonal initialisation with the gain of the activation, or add normalisation layers",
    ),
    "init_gain_small": (
        "the initial weights shrink the signal from layer to layer",
        "use He or orthogonal initialisation with the gain of the activation, or add normalisation layers",
    ),
    "residual_accumulation": (
        "residual branches add up without a normalisation",
        "set the last weights of each branch to 0 at the start, or put a normalisation before each branch",
    ),
    "recurrent_growth": (
        "the gradient grows from time step to time step through the recurrent weights",
        "clip the gradient norm, start the recurrent weights orthogonal, or use an LSTM or GRU",
    ),
    "attention_logit_growth": ("attention logits grow", "normalise queries and keys"),
    "vanishing": (
        "the gradient fades on its way to the first layers",
        "use ReLU-like activations, residual connections, or normalisation layers",
    ),
    "dead_units": (
        "units put out 0 for every input and do not come back",
        "use a smaller learning rate, bias 0 at the start, or a leaky slope",
    ),
    "saturation": (
        "activations sit at their flat ends",
        "use smaller initial weights, scaled inputs, or a normalisation before the activation",
    ),
    "unscaled_inputs": ("the inputs are not scaled", "standardise the inputs to mean 0 and deviation 1"),
    "unscaled_targets": (
        "the targets are not scaled",
        "standardise the targets, and turn the predictions back when they are used",
    ),
    "loss_reduction": (
        "the loss is a sum where a mean is meant",
        "average the loss over time steps and samples",
    ),
    "bad_batch": ("one batch is bad", "look at that batch: non-finite values, outliers, wrong labels"),
    "unsafe_op": (
        "an operation gives NaN or infinity for a value that it can meet",
        "find it (log, sqrt, division, exp, a mask with nothing left) and use its safe form",
    ),
    "low_precision": (
        "a value leaves the range of float16",
        "run the layer that overflows in float32, or use bfloat16",
    ),
    "stale_second_moment": (
        "Adam's second moment lags behind gradients that have grown",
        "use beta2 0.95, or clip the update (StableAdamW)",
    ),
    "bootstrapped_target": (
        "the targets are made by the model that chases them",
        "copy the target network less often, or follow it more slowly",
    ),
    "output_scale": (
        "the last layer begins with outputs that are far too large",
        "start the last layer with weights near 0",
    ),
    "loop_mistake": (
        "the training loop does something that is hardly meant",
        "mend the line that the finding names",
    ),
    "unbounded_objective": (
        "the objective has no bound, and the net follows it",
        "bound it: a Lipschitz penalty, weight clipping, a clamp, or a loss that levels off",
    ),
    "data_shift": (
        "the data have changed",
        "check the order of the data; a shuffled or warmed-up change helps",
    ),
}
