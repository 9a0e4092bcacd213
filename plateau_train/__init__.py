"""Train neural networks with reduce-on-plateau, and see when, why, and whether it helps."""
