#!/usr/bin/env python3
"""Show that weights travel between Sinter and PyTorch unchanged, both ways.

    venv/bin/python tests/exchange.py build/apps/sinter DATA_DIR

DATA_DIR holds cifar-10-batches-bin. Needs torch, numpy and safetensors (pip). PyTorch's fresh weights go into
`sinter train --init`; what it saves goes into load_state_dict, is trained on for a few steps there, and goes back into
`sinter eval`. After each crossing both sides compute the logits of the 10,000 test images; exits 1 unless they agree to
1e-4 of the largest (float32 sums in different orders).
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

sinter, data_dir = sys.argv[1], sys.argv[2]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(3, 6, 5), torch.nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = torch.nn.Linear(400, 120), torch.nn.Linear(120, 84), torch.nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def read(name):
    records = np.fromfile(f"{data_dir}/cifar-10-batches-bin/{name}.bin", dtype=np.uint8).reshape(-1, 3073)
    x = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()).float()
    return (x / 255 - 0.5) / 0.5, torch.from_numpy(records[:, 0].astype(np.int64))


def run(*args):
    print("$ sinter", *args)
    print(subprocess.run([sinter, *map(str, args)], check=True, capture_output=True, text=True).stdout, end="")


def compare(what, net, weights, folder):
    """Logits of the test set from the same file of weights, by both."""
    run("eval", "--device", "cpu", "--quiet", "--data-dir", data_dir, "--weights", weights, "--logits", folder / "logits.safetensors")
    ours = load_file(folder / "logits.safetensors")["logits"]
    with torch.no_grad():
        theirs = torch.cat([net(x) for x in test_x.split(1000)])
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    accuracy = float((theirs.argmax(1) == test_y).float().mean()) * 100
    print(f"{what}: PyTorch {accuracy:.2f} %; logits differ by {error:.1e} of the largest")
    if not error <= 1e-4:
        sys.exit(f"{what}: logits differ")


test_x, test_y = read("test_batch")
train_x, train_y = read("data_batch_1")
torch.manual_seed(0)
net = Net()
with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    save_file(net.state_dict(), folder / "torch.safetensors")
    compare("PyTorch's weights in Sinter", net, folder / "torch.safetensors", folder)
    run("train", "--device", "cpu", "--quiet", "--data-dir", data_dir, "--max-steps", 200,
        "--init", folder / "torch.safetensors", "--save", folder / "sinter.safetensors")
    print(net.load_state_dict(load_file(folder / "sinter.safetensors")))
    compare("Sinter's weights in PyTorch", net, folder / "sinter.safetensors", folder)
    adam = torch.optim.Adam(net.parameters())
    for x, y in zip(train_x[:6400].split(64), train_y[:6400].split(64)):
        adam.zero_grad()
        F.cross_entropy(net(x), y).backward()
        adam.step()
    save_file(net.state_dict(), folder / "again.safetensors")
    compare("trained on in PyTorch, back in Sinter", net, folder / "again.safetensors", folder)
