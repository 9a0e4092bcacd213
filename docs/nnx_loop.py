"""A training loop of Flax NNX with the plateau rule, which explains every drop.

Start it with .venv/bin/python docs/nnx_loop.py
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import plateau_train as pt

x = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
y = np.sin(x.sum(axis=1, keepdims=True))

rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(8, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 1, rngs=rngs))
rule = pt.reduce_on_plateau(0.5, patience=2, rtol=0.05, accumulation_size=10, min_scale=0.1)
optimizer = nnx.Optimizer(model, optax.chain(optax.adam(0.05), rule), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, x, y):
    def loss_of(model):
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads, value=loss)
    return loss


scale = 1.0
for step in range(1, 601):
    loss = train_step(model, optimizer, x, y)
    _, plateau = optimizer.opt_state  # of adam, and of the rule
    if float(plateau.scale[...]) < scale:
        scale = float(plateau.scale[...])
        print(f"step {step}, loss {loss:.4f}\n{pt.explain(optimizer.opt_state)}\n")
