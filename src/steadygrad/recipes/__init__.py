"""Combinations that work together, one function for each kind of net, ready for a plain loop.

    recipe = recurrent(model, x[:8], total_steps=2000)
    for x, y in recipe.loader(data, batch_size=32):
        loss_fn(recipe.model(x), y).backward()
        recipe.step()                # clip, optimizer, schedule, zero_grad

``print(recipe)`` says what was changed and chosen. Which combinations help each other was measured in the study under
``studies/combinations``.
"""

from steadygrad.recipes.kinds import conv_net as conv_net
from steadygrad.recipes.kinds import deep_mlp as deep_mlp
from steadygrad.recipes.kinds import recurrent as recurrent
from steadygrad.recipes.kinds import transformer as transformer
from steadygrad.recipes.recipe import Recipe as Recipe
