"""Train a small network on scikit-learn's handwritten digits: normnumba's norms, and NumPy for the rest.

    python examples/digits.py --model cnn --norm batch

The layers below have the interface of normnumba.layers. Calling one keeps what its backward needs; backward(dy) returns
the gradient of the input; parameters(), gradients() and state_dict() are dictionaries of arrays.
"""
# ruff: noqa: D102 - the methods are those of normnumba.layers

import argparse
from functools import partial

import numpy as np
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from normnumba.layers import BatchNorm, GroupNorm, LayerNorm, load, save


class Plain:
    """A layer that does the same in training and in evaluation, without parameters unless it says otherwise."""

    def parameters(self):
        return {}

    def gradients(self):
        return {}

    def state_dict(self):
        return self.parameters()

    def load_state_dict(self, state):
        for name, value in self.parameters().items():
            value[...] = state[name]

    def train(self, mode=True):
        return self


class Relu(Plain):
    """y = max(x, 0)"""

    def __call__(self, x):
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy):
        return dy * self.positive


class Average(Plain):
    """The average over height and width: (N, H, W, C) becomes (N, C)."""

    def __call__(self, x):
        self.shape = x.shape
        return x.mean(axis=(1, 2))

    def backward(self, dy):
        _, height, width, _ = self.shape
        return np.broadcast_to(dy[:, None, None] / (height * width), self.shape)


class Linear(Plain):
    """y = x @ weight over the last axis. It has no bias, for the norm after it has one."""

    def __init__(self, inputs, outputs, rng, dtype):
        self.outputs = outputs
        self.weight = (rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)).astype(dtype)

    def __call__(self, x):
        self.x = x
        return x @ self.weight

    def backward(self, dy):
        inputs, outputs = self.weight.shape
        self.dweight = self.x.reshape(-1, inputs).T @ dy.reshape(-1, outputs)
        return dy @ self.weight.T

    def parameters(self):
        return {"weight": self.weight}

    def gradients(self):
        return {"weight": self.dweight}


class Conv(Linear):
    """A 3 x 3 convolution of (N, H, W, C): a linear map of each pixel and its eight neighbours (im2col)."""

    def __init__(self, inputs, outputs, rng, dtype, stride=1):
        super().__init__(9 * inputs, outputs, rng, dtype)
        self.stride = stride

    def __call__(self, x):
        self.padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return super().__call__(np.concatenate([self.padded[place] for place in self.places()], axis=-1))

    def backward(self, dy):
        dpadded = np.zeros_like(self.padded)
        for place, part in zip(self.places(), np.split(super().backward(dy), 9, axis=-1), strict=True):
            dpadded[place] += part
        return dpadded[:, 1:-1, 1:-1]

    def places(self):
        """Where in the padded image the pixels have their neighbours: above left, above, above right, and so on."""
        height, width = (size - 2 for size in self.padded.shape[1:3])
        for i in range(3):
            for j in range(3):
                yield np.s_[:, i : i + height : self.stride, j : j + width : self.stride]


class Network:
    """Layers one after the other. Their arrays are named after their places, as in "1.running_mean"."""

    def __init__(self, *layers):
        self.layers = layers

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def train(self, mode=True):
        for layer in self.layers:
            layer.train(mode)
        return self

    def parameters(self):
        return self.collect("parameters")

    def gradients(self):
        return self.collect("gradients")

    def state_dict(self):
        return self.collect("state_dict")

    def load_state_dict(self, state):
        for place, layer in enumerate(self.layers):
            layer.load_state_dict({name: state[f"{place}.{name}"] for name in layer.state_dict()})

    def collect(self, method):
        parts = [(place, getattr(layer, method)()) for place, layer in enumerate(self.layers)]
        return {f"{place}.{name}": value for place, part in parts for name, value in part.items()}


def norm_and_relu(norm, channels, dtype):
    """A norm over the channels, which are on the last axis, and relu: batch and group norm do that as well."""
    if norm == "layer":
        return [LayerNorm(channels, dtype=dtype), Relu()]
    settings = {"channel_axis": -1, "activation": "relu", "dtype": dtype}
    return [BatchNorm(channels, **settings) if norm == "batch" else GroupNorm(8, channels, **settings)]


def make_network(model, norm, rng, dtype=np.float32):
    """An "mlp" for (N, 64), or a "cnn" for (N, 8, 8, 1)."""
    linear, conv = partial(Linear, rng=rng, dtype=dtype), partial(Conv, rng=rng, dtype=dtype)
    if model == "mlp":
        hidden, head = [linear(64, 256), linear(256, 128)], [linear(128, 10)]
    else:
        hidden, head = [conv(1, 16), conv(16, 32, stride=2), conv(32, 64, stride=2)], [Average(), linear(64, 10)]
    blocks = [layer for part in hidden for layer in (part, *norm_and_relu(norm, part.outputs, dtype))]
    return Network(*blocks, *head)


def cross_entropy(logits, labels):
    """The loss of a batch, and its gradient with respect to the logits."""
    rows = np.arange(len(labels))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    return loss, p / len(labels)


class Momentum:
    """Gradient descent with momentum, which changes parameters in place."""

    def __init__(self, rate=0.1, momentum=0.9):
        self.rate, self.momentum, self.velocity = rate, momentum, {}

    def update(self, parameters, gradients):
        for name, gradient in gradients.items():
            self.velocity[name] = self.momentum * self.velocity.get(name, 0) - self.rate * gradient
            parameters[name] += self.velocity[name]


def load_data(model, rng):
    """Images and labels for training, then a fifth of all for testing."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape((-1, 64) if model == "mlp" else (-1, 8, 8, 1))
    test, training = np.split(rng.permutation(len(labels)), [len(labels) // 5])
    return images[training], labels[training], images[test], labels[test]


def train_epoch(network, optimizer, images, labels, rng, batch=64):
    """Go through the images once, in random order; returns the average loss."""
    network.train()
    losses = []
    for picked in np.array_split(rng.permutation(len(labels)), len(labels) // batch):
        loss, dlogits = cross_entropy(network(images[picked]), labels[picked])
        network.backward(dlogits)
        optimizer.update(network.parameters(), network.gradients())
        losses.append(loss)
    return np.mean(losses)


def accuracy(network, images, labels):
    """How many of the images the network gets right in evaluation, as a share."""
    network.train(False)
    return np.mean(network(images).argmax(axis=1) == labels)


def run(model, norm, epochs, seed, save_to=None, load_from=None):
    """Train a network, save it and test it; returns the accuracy."""
    rng = np.random.default_rng(seed)
    images, labels, *test = load_data(model, rng)
    network, optimizer = make_network(model, norm, rng), Momentum()
    if load_from:
        network.load_state_dict(load(load_from))
    for epoch in range(1, epochs + 1):
        loss = train_epoch(network, optimizer, images, labels, rng)
        print(f"epoch {epoch:2}: loss {loss:.4f}")
    if save_to:
        save(save_to, network.state_dict())
    right = accuracy(network, *test)
    print(f"test accuracy: {right:.1%}")
    return right


def main(arguments=None):
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description="Train a small network on scikit-learn's handwritten digits.")
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--norm", choices=["batch", "layer", "group"], default="batch")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-to", metavar="PATH.npz", help="write the trained weights to this file")
    parser.add_argument("--load-from", metavar="PATH.npz", help="start from these weights; --epochs 0 only tests them")
    with threadpool_limits(1, "blas"):  # matrix products of this size are slower on several threads
        return run(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
