"""A small fast net for CPUs (0.39 M parameters), for demonstrations and sweeps on a few thousand 32-px images.

A plain convolutional net in VGG's manner (Simonyan and Zisserman 2015) with batch normalisation. It was chosen among
candidates of 0.3 to 0.42 M parameters, measured so:
- speed: images per CPU second of a training step, relative to the chosen net; batch 128, bfloat16 autocast,
  channels_last, one thread of a Xeon with AMX that others used too; all candidates in turn in one process, medians;
- accuracy in %: 2,000 CIFAR-10 images, 60 epochs of SGD (lr 0.1, momentum 0.9, weight decay 5e-4, batch 128, divided
  by 5 at 60/80/90 %), crop and flip drawn per image; on those images without augmentation, and on 3,000 test images;
  mean and standard deviation over seeds; "random": training accuracy with 100 random labels instead, one seed.
The candidates had PyTorch's default initialisation and a bfloat16 classifier, not layers.py's; the rest is the same.

  design (channels; "/" halves the side)               speed   train   test         seeds  random
  4x4 s2 32, 64 / 128 / 256 /      (this file)         1.00    99.8    63.3 +- 0.4    6     99.9
  the same with a 3x3 stem of stride 2                 1.01    99.9    63.4 +- 0.5    3      -
  4x4 s2 32, 64 / 96 / 128 / 192                       1.07    99.7    61.1 +- 0.3    3     99.8
  4x4 s2 32, 64 / 128 / 128 / 128                      1.04    99.6    62.5 +- 0.8    3     99.5
  4x4 s2 32, 64 / 96 96 / 128 128                      0.71    99.2    63.8 +- 0.8    3     95.6
  4x4 s2 32, residual blocks of 32, 64 and 128         0.73    95.0    57.2           1     81.2
  4x4 s2 64, ResNet's basic blocks 64 and 128          0.80    93.4    56.7           1      -
  this file with strides instead of max-pools          1.40      -       -            -      -
  3x3 s1 32, ResNet's basic blocks 32, 64 and 128      0.23      -       -            -      -
"""

from itertools import pairwise

from torch import nn

from networks.layers import Classifier, convolution

_CHANNELS = (32, 64, 128, 256)  # multiples of 32, which is what the CPU's matrix tiles hold of bfloat16


def build(num_classes):
    """SmallNet: 389,568 parameters and 257 for each class."""
    return SmallNet(num_classes)


class SmallNet(nn.Module):
    """A stem of stride 2 and three 3x3 convolutions with max-pools: sides 16, 8, 4 and 2 of a 32-px image.

    (N, 3, S, S) normalised images -> (N, num_classes) float32 logits. Pooling comes before normalisation and ReLU,
    which then have a quarter of the values to pass over.
    """

    def __init__(self, num_classes):
        super().__init__()
        first = _CHANNELS[0]
        layers = [nn.Conv2d(3, first, 4, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)]
        for before, after in pairwise(_CHANNELS):
            layers += [convolution(before, after, 3), nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = Classifier(_CHANNELS[-1], num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))
